"""Runs `lens` as a child process, with the fake engine or the real one: real argv, real streams, real signals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from backend.picture.images import read_metadata
from backend.picture.metadata import wish_from
from backend.wish import Wish
from tests.lens_cli.warm import warm

ROOT = Path(__file__).resolve().parent.parent.parent


@dataclass(frozen=True)
class Run:
    code: int
    out: bytes
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.decode().splitlines()

    @property
    def json(self) -> dict[str, Any]:
        return json.loads(self.out)


def command(*words: str, real: bool = False) -> list[str]:
    """argv of a child: the fake inside, or the real engine."""
    program = ["-c", "from lens_cli.app import main; main()"] if real else [str(ROOT / "tests/fake_engine.py")]
    return [sys.executable, *program, *words]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100", **more}


def lens(
    *words: str,
    stdin: bytes | None = None,
    real: bool = False,
    timeout: float = 300,
    start: bool = False,
    **env: str,
) -> Run:
    """Run in the working folder, as a child of the warm process. Without `stdin` the child has an empty one.

    `start`: a fresh interpreter, for what depends on its start or on what is imported when.
    """
    if start:
        done = subprocess.run(
            command(*words, real=real), input=stdin or b"", capture_output=True, timeout=timeout, env=environment(**env)
        )
        run = Run(done.returncode, done.stdout, done.stderr.decode())
    else:
        kind = "real" if real else "fake"
        code, out, err = warm(kind).call([*words], stdin or b"", environment(**env), timeout)
        run = Run(code, out, err.decode())
    if "LENS_DEBUG" not in env:
        assert "Traceback" not in run.err, run.err
    return run


def recorded(path: str | Path) -> Wish:
    """The wish that a picture records."""
    record = read_metadata(Path(path)).record
    assert record is not None, f"{path} holds no record"
    return wish_from(record, str(path))


def lens_inside(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *words: str) -> Run:
    """The same without a child: 30 times faster, for long lists of inputs. Streams are caught as file descriptors."""
    from backend.checkpoints import resolve
    from tests import fake_engine

    module = types.ModuleType("backend.engine")
    monkeypatch.setattr(module, "Engine", fake_engine.Engine, raising=False)
    monkeypatch.setitem(sys.modules, "backend.engine", module)
    monkeypatch.setattr(resolve, "resolve_model", fake_engine.resolve_model)
    return real_inside(monkeypatch, capfd, *words)


def real_inside(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *words: str) -> Run:
    """The real program in this process, nothing of it replaced: importing torch for every call would take longest."""
    from lens_cli.app import main

    monkeypatch.setattr(sys, "argv", ["lens", *words])
    capfd.readouterr()
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capfd.readouterr()
    assert isinstance(ended.value.code, int)
    assert "Traceback" not in err, err
    return Run(ended.value.code, out.encode(), err)
