"""A loopback server that answers chat completions from a list, for all that real servers do wrong.

Its weakness: it only does what a test writes down. `test_endpoint.py` also asks a real server.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One HTTP answer; `body` is sent as it is where it is text."""

    body: Any
    status: int = 200
    kind: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict[str, str])
    delay: float = 0.0  # seconds before the first byte


def completion(content: str | None, *, finish: str = "stop", **message: Any) -> Answer:
    """A chat completion with one choice."""
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": content, **message}}
    return Answer(body={"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]})


def decision(prompt: str) -> Answer:
    return completion(json.dumps({"decision": "rewrite", "prompt": prompt, "rule": None}))


def failure(status: int, message: str, **headers: str) -> Answer:
    named = {key.replace("_", "-"): value for key, value in headers.items()}
    return Answer(body={"error": {"message": message, "type": "x"}}, status=status, headers=named)


Script = Callable[[dict[str, Any]], Answer]


class Endpoint:
    """Answers one after another, the last one again and again; `asked` are the JSON bodies, `headers` theirs."""

    def __init__(self, *answers: Answer | Script) -> None:
        self.answers, self.asked, self.headers = list(answers), list[dict[str, Any]](), list[dict[str, str]]()
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                endpoint.asked.append(body)
                endpoint.headers.append({key.lower(): value for key, value in self.headers.items()})
                step = endpoint.answers.pop(0) if len(endpoint.answers) > 1 else endpoint.answers[0]
                answer = step if isinstance(step, Answer) else step(body)
                time.sleep(answer.delay)
                data = answer.body.encode() if isinstance(answer.body, str) else json.dumps(answer.body).encode()
                try:
                    self.send_response(answer.status)
                    for key, value in {"Content-Type": answer.kind, **answer.headers}.items():
                        self.send_header(key, value)
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)
                except BrokenPipeError:  # the client had a limit
                    pass

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the base class's name
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=lambda: self._server.serve_forever(poll_interval=0.02), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> Endpoint:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
