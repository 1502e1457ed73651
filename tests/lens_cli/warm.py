"""Forks the children that run `lens` from a process which has imported what they need.

A child has argv, streams, environment, folder, signals and an exit of its own, as one that the shell starts. It does
without the interpreter's start and the imports: 0.5 s of a fake `gen`'s 0.6, and 2 s more where torch comes along.
What depends on those two is tested with a child that is started: `cli.lens(..., start=True)`, `cli.command`,
`tests/test_imports.py`. Nothing but imports happens before the fork, so no call sees what another one left.

`python -m tests.lens_cli.warm DESCRIPTOR fake|real` is the process; it ends when its socket closes.
"""

from __future__ import annotations

import atexit
import functools
import gc
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
# Not what reads the environment when it is imported: Typer's help pages (FORCE_COLOR), huggingface_hub (HF_HOME).
IMPORTS = [
    "importlib.metadata", "platformdirs", "pydantic.json_schema", "pydantic.type_adapter", "sqlite3",
    "typer._adapters",  # what Typer imports at the first flag that it reads: 0.2 s
    *(f"PIL.{name}ImagePlugin" for name in ("Bmp", "Gif", "Jpeg", "Png", "Ppm", "WebP")), "PIL.ImageDraw",
    "backend.batch.journal", "backend.picture.credentials", "backend.picture.history", "backend.picture.images",
    "backend.picture.imports", "backend.reasoner.refine", "backend.server.remote", "backend.session",
    "lens_cli.app", "lens_cli.entry",
    *(f"lens_cli.commands.{name}" for name in ("gen", "grid", "history", "info", "models", "refine", "rerun")),
    *(f"lens_cli.terminal.{name}" for name in ("progress", "show", "viewer")),
    *(f"lens_cli.work.{name}" for name in ("batch", "gen", "interrupt", "pictures", "reasoner", "rerun")),
]  # fmt: skip
MORE = {"fake": ["tests.fake_engine"], "real": ["backend.engine"]}


class Warm:
    """The process with its imports, asked by one caller, one call at a time."""

    def __init__(self, kind: str) -> None:
        self.socket, theirs = socket.socketpair()
        words = [sys.executable, "-m", __name__, str(theirs.fileno()), kind]
        self.process = subprocess.Popen(
            words, cwd=ROOT, pass_fds=[theirs.fileno()], env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,  # Python notes that they are pipes
        )  # fmt: skip
        theirs.close()
        self.answers = self.socket.makefile("r")

    def call(
        self, words: list[str], stdin: bytes, environment: dict[str, str], timeout: float
    ) -> tuple[int, bytes, bytes]:
        """Exit code, stdout and stderr of one child. Raises TimeoutExpired, after killing it."""
        (read_in, write_in), (read_out, write_out), (read_err, write_err) = (os.pipe() for _ in range(3))
        request = json.dumps({"words": words, "environment": environment, "folder": os.getcwd()})
        socket.send_fds(self.socket, [b"+"], [read_in, write_out, write_err])
        self.socket.sendall(request.encode() + b"\n")
        for descriptor in (read_in, write_out, write_err):
            os.close(descriptor)
        with ThreadPoolExecutor(4) as pool:
            pool.submit(_feed, write_in, stdin)
            out, err = pool.submit(_drain, read_out), pool.submit(_drain, read_err)
            child = int(self._answer())
            code = pool.submit(self._answer)
            try:
                return int(code.result(timeout)), out.result(timeout), err.result(timeout)
            except TimeoutError:
                os.kill(child, signal.SIGKILL)
                raise subprocess.TimeoutExpired(words, timeout) from None

    def _answer(self) -> str:
        try:
            answer = self.answers.readline()
        except ConnectionResetError:
            answer = ""
        if not answer:
            raise RuntimeError(f"the warm process has ended: {self.process.communicate()[1].decode()}")
        return answer

    def close(self) -> None:
        self.answers.close()
        self.socket.close()
        self.process.communicate(timeout=10)


@functools.cache
def warm(kind: str) -> Warm:
    """The process of a kind, "fake" or "real", started at the first call and ended with this one."""
    process = Warm(kind)
    atexit.register(process.close)
    return process


def _feed(descriptor: int, content: bytes) -> None:
    with open(descriptor, "wb") as file:
        try:
            file.write(content)
            file.flush()
        except BrokenPipeError:  # the child read as much as it wanted
            pass


def _drain(descriptor: int) -> bytes:
    with open(descriptor, "rb") as file:
        return file.read()


# ------------------------------------------------------------------------------------------------------- the other side


def main() -> None:
    descriptor, kind = int(sys.argv[1]), sys.argv[2]
    for name in (*IMPORTS, *MORE[kind]):
        importlib.import_module(name)
    gc.freeze()  # a child that collects garbage would copy every page of these modules
    _become(_next_child(socket.socket(fileno=descriptor)))
    if kind == "fake":
        importlib.import_module("tests.fake_engine").install()
        importlib.import_module("lens_cli.entry").main()
    else:
        importlib.import_module("lens_cli.app").main()


def _next_child(asked: socket.socket) -> dict[str, Any]:
    """Fork a child for every request, tell its pid and its exit code; return the request in the child alone."""
    lines = asked.makefile("r")
    while True:
        sign, streams, _, _ = socket.recv_fds(asked, 1, 3)
        if not sign:  # the caller has gone
            sys.exit()
        request = json.loads(lines.readline())
        child = os.fork()
        if child == 0:
            asked.detach()
            for target, descriptor in enumerate(streams):
                os.dup2(descriptor, target)
            os.closerange(3, 64)  # the socket and the streams' first numbers
            return request
        for descriptor in streams:
            os.close(descriptor)
        asked.sendall(b"%d\n" % child)
        asked.sendall(b"%d\n" % os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def _become(request: dict[str, Any]) -> None:
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = ["lens", *request["words"]]


if __name__ == "__main__":
    main()
