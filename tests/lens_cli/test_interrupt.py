"""Ctrl-C: once after the step, twice at once; finished files stay whole and nothing else stays."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import pytest
from PIL import Image

from tests.lens_cli.cli import command, environment


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def start(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command("gen", *words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    )


def wait_for_denoising(child: subprocess.Popen[str]) -> None:
    assert child.stderr is not None
    while "load transformer" not in (line := child.stderr.readline()):
        assert line, "the child ended early"
    time.sleep(0.1)


def test_once_stops_after_the_step_and_keeps_finished_pictures() -> None:
    child = start("slow fish", "-s", "1..50", "--steps", "4")
    assert child.stdout is not None
    first = child.stdout.readline().strip()
    child.send_signal(signal.SIGINT)
    rest, talk = child.communicate(timeout=120)
    assert child.returncode == 130
    made = [first, *rest.split()]
    assert sorted(path.name for path in Path().iterdir()) == sorted(made)  # nothing half-written
    for path in made:
        Image.open(path).load()
    assert "error: stopped: " in talk and f"{len(made)} of 50 pictures finished" in talk
    assert "Traceback" not in talk


def test_twice_stops_at_once() -> None:
    child = start("hang", "--steps", "200")
    wait_for_denoising(child)
    child.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert child.poll() is None  # the fake ignores the polite way
    child.send_signal(signal.SIGINT)
    _, talk = child.communicate(timeout=60)
    assert child.returncode == 130
    assert "Traceback" not in talk and talk.rstrip().endswith("error: stopped")
    assert list(Path().iterdir()) == []
