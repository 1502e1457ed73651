"""A hub on the loopback interface: model listing, HEAD and ranged GET, and faults that a test can switch on."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = (".safetensors", ".gguf", "tokenizer.json")  # stored with LFS: their ETag is the SHA-256


@dataclass
class Hub:
    """`repos`: name -> folder; the rest are faults and observations."""

    repos: dict[str, Path]
    url: str = ""
    cut: dict[str, int] = field(default_factory=dict)  # path -> bytes served before the line goes dead
    hang: dict[str, int] = field(default_factory=dict)  # path -> bytes served before the line goes silent
    hanging: set[str] = field(default_factory=set)  # paths that hang now
    dead: bool = False  # after a cut every request is refused until a test revives the hub
    gated: set[str] = field(default_factory=set)
    served: list[tuple[str, str, int]] = field(default_factory=list)  # (path, Range header, bytes sent)
    corrupt: set[str] = field(default_factory=set)  # paths whose content arrives with one byte changed
    listing: Callable[[dict[str, Any]], Any] = lambda answer: answer  # what the listing is turned into
    raw: bytes | None = None  # the listing's body, instead of JSON of it
    headers: dict[str, str] = field(default_factory=dict)  # of every content, in place of the right ones
    reply: Callable[[BaseHTTPRequestHandler, str], bool] = lambda handler, path: False  # True: it has answered itself
    tokens: list[str] = field(default_factory=list)  # Authorization headers that came

    def handler(self) -> type[BaseHTTPRequestHandler]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the base class's name
                pass

            def do_HEAD(self) -> None:
                self.answer(body=False)

            def do_GET(self) -> None:
                self.answer(body=True)

            def answer(self, *, body: bool) -> None:
                if "Authorization" in self.headers:
                    hub.tokens.append(self.headers["Authorization"])
                if hub.dead:
                    self.plain(503, b"down")
                    return
                if hub.reply(self, self.path):
                    self.close_connection = True
                    return
                parts = self.path.split("?")[0].strip("/").split("/")
                if parts[:2] == ["api", "models"]:
                    self.listing("/".join(parts[2:4]), parts[5] if len(parts) > 5 else None, "tree" in parts[4:5])
                elif len(parts) > 4 and parts[2] == "resolve":
                    self.content("/".join(parts[:2]), "/".join(parts[4:]), body)
                else:
                    self.plain(404, b"no route")

            def plain(self, status: int, text: bytes, **headers: str) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name.replace("_", "-"), value)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(text)

            def listing(self, repo: str, revision: str | None, tree: bool) -> None:
                if repo in hub.gated:
                    self.plain(403, b"gated", X_Error_Code="GatedRepo")
                elif repo not in hub.repos:
                    self.plain(404, b"none", X_Error_Code="RepoNotFound")
                elif revision not in (None, "main", COMMIT):
                    self.plain(404, b"none", X_Error_Code="RevisionNotFound")
                else:
                    root = hub.repos[repo]
                    siblings = [_sibling(root, path) for path in sorted(root.rglob("*")) if path.is_file()]
                    answer = {"id": repo, "modelId": repo, "sha": COMMIT, "tags": [], "siblings": siblings}
                    said = hub.listing(answer)
                    if tree:  # the same in another form, as whole snapshots are listed
                        said = [_in_tree(one) for one in siblings]
                    text = hub.raw or json.dumps(said).encode()
                    self.plain(200, text, Content_Type="application/json")

            def content(self, repo: str, path: str, body: bool) -> None:
                file = hub.repos[repo] / path
                if not file.is_file():
                    self.plain(404, b"none", X_Error_Code="EntryNotFound")
                    return
                data = file.read_bytes()
                first = 0
                span = self.headers.get("Range", "")
                if span:
                    first = int(span.removeprefix("bytes=").split("-")[0])
                self.send_response(206 if span else 200)
                for name, value in {"X-Repo-Commit": COMMIT, "ETag": f'"{_etag(file)}"', **hub.headers}.items():
                    self.send_header(name, value)
                self.send_header("Accept-Ranges", "bytes")
                self.send_header("Content-Length", str(len(data) - first))
                if span:
                    self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
                self.end_headers()
                if not body:
                    return
                if path in hub.corrupt:
                    data = bytes([data[0] ^ 1]) + data[1:]
                pause = hub.hang.pop(path, None)
                if pause is not None:
                    self.wfile.write(data[first:pause])
                    self.wfile.flush()
                    hub.hanging.add(path)
                    self.rfile.read(1)  # until the other side goes away
                    self.close_connection = True
                    return
                stop = hub.cut.pop(path, None)
                sent = data[first:] if stop is None else data[first:stop]
                self.wfile.write(sent)
                hub.served.append((path, span, len(sent)))
                if stop is not None:
                    hub.dead = True
                    self.close_connection = True

        return Handler


def _etag(file: Path) -> str:
    data = file.read_bytes()
    if file.name.endswith(LARGE):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _in_tree(sibling: dict[str, Any]) -> dict[str, Any]:
    row = {"type": "file", "path": sibling["rfilename"], "oid": "0" * 40, "size": sibling["size"]}
    if "lfs" in sibling:
        row["lfs"] = {**sibling["lfs"], "oid": sibling["lfs"]["sha256"]}
    return row


def _sibling(root: Path, path: Path) -> dict[str, Any]:
    size = path.stat().st_size
    entry: dict[str, Any] = {"rfilename": path.relative_to(root).as_posix(), "size": size, "blobId": "0" * 40}
    if path.name.endswith(LARGE):
        entry["lfs"] = {"sha256": _etag(path), "size": size, "pointerSize": 130}
    return entry


@contextmanager
def serve(repos: dict[str, Path]) -> Iterator[Hub]:
    """A running hub; its `url` goes into HF_ENDPOINT."""
    hub = Hub(repos)
    server = ThreadingHTTPServer(("127.0.0.1", 0), hub.handler())
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
