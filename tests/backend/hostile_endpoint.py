"""An endpoint on the loopback that does what no endpoint should, below HTTP too: bytes on a socket, a mode each.

A mode is given the scene and yields bytes that are sent, and numbers of seconds in which nothing is. What connects to
`Scene.other`, which stands for another host, is noted.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import re
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any

KEY = "sk-proj-Zq81LmVw0Tr5Xy"
PROMPT = "two quiet cats"
Pieces = Iterator[bytes | float]


@dataclass
class Scene:
    """`url` is asked; whoever follows a redirect arrives at `other`."""

    url: str = ""
    other: str = ""
    asked: list[bytes] = field(default_factory=list[bytes])  # requests, as they came
    elsewhere: list[bytes] = field(default_factory=list[bytes])  # that arrived at the other host


Mode = Callable[[Scene], Pieces]


def answer(body: bytes, status: int = 200, kind: str = "application/json", *more: str) -> bytes:
    """A whole answer with the right length."""
    head = [f"HTTP/1.1 {status} X", f"Content-Type: {kind}", f"Content-Length: {len(body)}", "Connection: close", *more]
    return "\r\n".join([*head, "", ""]).encode() + body


def completion(**change: Any) -> dict[str, Any]:
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "ok"}}
    return {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], **change}


def says(body: Any, status: int = 200, kind: str = "application/json", *more: str) -> Mode:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return lambda scene: iter([answer(data, status, kind, *more)])


def message(**change: Any) -> Mode:
    return says(completion(choices=[{"index": 0, "finish_reason": "stop", "message": change}]))


def error(text: Any, status: int, *more: str) -> Mode:
    return says({"error": {"message": text, "type": "x"}}, status, "application/json", *more)


def moved(to: str, status: int = 307) -> Mode:
    return lambda scene: iter([answer(b"", status, "text/plain", "Location: " + to.format(**vars(scene)))])


def raw(*pieces: bytes | float) -> Mode:
    return lambda scene: iter(pieces)


def trickle(head: bytes, piece: bytes) -> Mode:
    def mode(scene: Scene) -> Pieces:
        yield head
        for _ in range(2000):
            yield piece
            yield 0.02

    return mode


def endless(head: bytes, piece: bytes) -> Mode:
    def mode(scene: Scene) -> Pieces:
        yield head
        yield from repeat(piece, 100_000)

    return mode


def bomb(size: int, times: int) -> bytes:
    """Zeros, packed `times` times."""
    data = b"0" * size
    for _ in range(times):
        data = gzip.compress(data, mtime=0)
    return data


OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
ESCAPES = "\x1b]0;pwned\x07\x1b[31m\u202eabc\u2028error: mine\n\rhint: mine"
MODES: dict[str, Mode] = {
    "silence": raw(30.0),
    "headers trickle": trickle(b"HTTP/1.1 200 OK\r\nX-Slow: ", b"a"),
    "body trickles": trickle(OK + b"Content-Length: 999999\r\n\r\n{", b" "),
    "body without end": endless(OK + b"\r\n", b" " * 65536),
    "headers without end": endless(b"HTTP/1.1 200 OK\r\n", b"X-More: " + b"a" * 4000 + b"\r\n"),
    "one header without end": endless(b"HTTP/1.1 200 OK\r\nX-More: ", b"a" * 65536),
    "continue without end": endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000),
    "hangs up": raw(),
    "no HTTP": raw(b"\x16\x03\x01 220 smtp ready\r\n"),
    "half a head": raw(b"HTTP/1.1 20"),
    "a status of four digits": raw(b"HTTP/1.1 9999 X\r\n\r\n"),
    "switches protocols": raw(b"HTTP/1.1 101 X\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\nhello"),
    "no content": raw(b"HTTP/1.1 204 X\r\n\r\n"),
    "shorter than said": raw(OK + b'Content-Length: 9999\r\n\r\n{"choices": ['),
    "longer than said": raw(OK + b'Content-Length: 2\r\n\r\n{"choices": []}'),
    "length negative": raw(OK + b"Content-Length: -5\r\n\r\n{}"),
    "length of many digits": raw(OK + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n{}"),
    "two lengths": raw(OK + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}"),
    "chunk cut": raw(CHUNKED + b'ff\r\n{"choices":'),
    "chunk without a size": raw(CHUNKED + b"zz\r\n{}\r\n0\r\n\r\n"),
    "chunk too large": raw(CHUNKED + b"f" * 17 + b"\r\n{}"),
    "deep": says(b'{"choices":' * 50_000),
    "deep lists": says(b"[" * 200_000),
    "wide": says(b"[" + b"[]," * 20_000 + b"[]]"),
    "digits": says(b'{"choices": ' + b"9" * 10_000 + b"}"),
    "NaN": says(completion(usage={"prompt_tokens": float("nan"), "completion_tokens": float("inf")})),
    "usage negative": says(completion(usage={"prompt_tokens": -5, "completion_tokens": -(2**80)})),
    "usage huge": says(completion(usage={"prompt_tokens": 2**80, "completion_tokens": "abc"})),
    "keys twice": says(b'{"choices": 1, "choices": [], "choices": [{"message": {"content": "ok", "content": 5}}]}'),
    "no choices": says(completion(choices=[])),
    "choices an object": says(completion(choices={"0": 1})),
    "choices texts": says(completion(choices=["ok"])),
    "a list": says([1]),
    "a text": says("ok"),
    "message a text": says(completion(choices=[{"message": "ok"}])),
    "content a number": message(content=5),
    "content a list": message(content=[{"type": "text", "text": "ok"}]),
    "tool calls": message(content=None, tool_calls=[{"id": "1", "function": {"name": "sh", "arguments": "rm -rf /"}}]),
    "half of a pair": message(content="\ud800"),
    "escapes": message(content=ESCAPES),
    "no UTF-8": says(b'{"choices": [{"message": {"content": "\xff\xfe\xed\xa0\x80"}}]}'),
    "UTF-16": says(json.dumps(completion()).encode("utf-16")),
    "HTML": says(b"<!doctype html><html>", 200, "text/html"),
    "HTML as JSON": says(b"<!doctype html><html>"),
    "events": says(b'data: {"choices": []}\n\n', 200, "text/event-stream"),
    "a type that is none": says(completion(), 200, "\x01" * 50),
    "to another host, 302": moved("{other}/v1/x", 302),
    "to another host, 307": moved("{other}/v1/x", 307),
    "to another host, 308, without a scheme": moved("//localhost:1/x", 308),
    "to itself for ever": moved("{url}/x"),
    "to a file": moved("file:///etc/passwd"),
    "to a file of this host": moved("file://127.0.0.1/etc/passwd"),
    "to no address": moved("http://[::1"),
    "to an address with escapes": moved("http://a\x1b[31mb/"),
    "to many digits": moved("http://127.0.0.1:99999999/x"),
    "busy, absurdly long": error("wait", 429, "Retry-After: " + "9" * 400),
    "busy, not a number": error("wait", 429, "Retry-After: nan"),
    "busy, for ever": error("wait", 503, "Retry-After: inf"),
    "busy, before now": error("wait", 429, "Retry-After: -1e999"),
    "busy, escapes": error("wait", 429, "Retry-After: 99\x1b[31m9"),
    "key refused, with the key": error(f"the key {KEY.upper()} is not valid", 401),
    "key in an error": error(f"Bearer {KEY} and {KEY[3:11]} said {PROMPT}", 400),
    "key in a fault": error(f"{KEY[::-1]} {KEY}", 500),
    "key where JSON should be": says(b"Authorization: Bearer " + KEY.encode(), 400, "text/plain"),
    "escapes in an error": error(ESCAPES, 400),
    "error a list": says({"error": [ESCAPES]}, 400),
    "error an object": error({"a": [1]}, 422),
    "error deep": says(b'{"error":' * 5000, 400),
    "error without end": endless(b"HTTP/1.1 500 X\r\nContent-Type: text/plain\r\n\r\n", b"no " * 20_000),
    "packed, huge": says(bomb(3_000_000, 1), 200, "application/json", "Content-Encoding: gzip"),
    "error packed, huge": says(bomb(3_000_000, 1), 400, "application/json", "Content-Encoding: gzip"),
    "error packed three times": says(bomb(3_000_000, 3), 500, "text/plain", "Content-Encoding: gzip, gzip, gzip"),
    "packed in name only": says(b'{"choices": []}', 200, "application/json", "Content-Encoding: gzip"),
    "packed, cut": says(zlib.compress(b" " * 9999)[:9], 200, "application/json", "Content-Encoding: deflate"),
    "packed in an unknown way": says(b"\x00\x01", 200, "application/json", "Content-Encoding: br, x-none"),
    "packed seven times": says(b"x", 200, "application/json", "Content-Encoding: " + ", ".join(["gzip"] * 7)),
    "cookies": says(completion(), 200, "application/json", *(f"Set-Cookie: c{n}={'x' * 90}" for n in range(300))),
}


@contextlib.contextmanager
def endpoint(mode: Mode) -> Iterator[Scene]:
    """A running endpoint, and the other host beside it."""
    scene = Scene()
    with _listen(lambda: mode(scene), scene.asked) as port, _listen(lambda: iter([b""]), scene.elsewhere) as other:
        scene.url, scene.other = f"http://127.0.0.1:{port}/v1", f"http://localhost:{other}"
        yield scene


@contextlib.contextmanager
def _listen(pieces: Callable[[], Pieces], heard: list[bytes]) -> Iterator[int]:
    done = threading.Event()

    def talk(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.settimeout(5)
            heard.append(_request(connection))
            for piece in pieces():
                if done.is_set():
                    return
                if isinstance(piece, bytes):
                    connection.sendall(piece)
                else:
                    done.wait(piece)
            connection.shutdown(socket.SHUT_WR)
            time.sleep(0.01)  # a close with bytes unread would take along what was sent

    def accept() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:  # closed
                return
            threading.Thread(target=talk, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=accept, daemon=True).start()
        try:
            yield server.getsockname()[1]
        finally:
            done.set()
            server.shutdown(socket.SHUT_RDWR)


def _request(connection: socket.socket) -> bytes:
    """The whole request: one that is answered before it was read would be broken off."""
    data = b""
    while b"\r\n\r\n" not in data:
        if not (more := connection.recv(65536)):
            return data
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: (\d+)", head)
    while len(body) < int(length[1] if length else 0):
        if not (more := connection.recv(65536)):
            break
        body += more
    return head + b"\r\n\r\n" + body
