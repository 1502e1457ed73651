"""What a person sees while waiting: the size of a picture, the live line of a training, whether a run goes on."""

from __future__ import annotations

import io
import json
import os
import sys
import termios
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from PIL import Image
from rich.console import Console

from backend.errors import UsageError
from backend.events import DrawingStarted, PhaseStarted
from backend.types import Phase
from lens_cli.terminal import graphics, progress, show, training
from lens_cli.terminal.console import Talk
from lens_cli.terminal.graphics import hears_answers, typed_ahead
from lens_cli.terminal.progress import Meter
from lens_cli.terminal.show import BELOW, MAX_COLUMNS, half_blocks
from lens_cli.work.train import status
from train.run.metrics import Metrics
from train.run.status import find


@pytest.mark.parametrize("size", [(256, 256), (512, 256), (256, 512), (64, 640)])
@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 36), (40, 50)])
def test_a_picture_fits_the_window(size: tuple[int, int], width: int, height: int) -> None:
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=True, color_system="truecolor")
    rows = half_blocks(Image.new("RGB", size), console, rows=height - BELOW).plain.split("\n")
    assert len(rows) <= height - BELOW and max(map(len, rows)) <= min(width, MAX_COLUMNS)
    high, wide = len(rows) * 2, len(rows[0])
    assert abs(wide - high * size[0] / size[1]) <= max(2.0, 2 * size[0] / size[1])  # its ratio, to a cell


class _Stream:
    def isatty(self) -> bool:
        return True


def test_the_terminal_is_asked_only_where_it_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """textual-image asks while it is imported: with a pipe for stdin that fails, and in the background it stops."""
    console = Console(file=io.StringIO(), width=80, height=24, force_terminal=True, color_system="truecolor")
    monkeypatch.setattr(show, "_has_cells", lambda: True)
    monkeypatch.setitem(sys.modules, "textual_image", None)  # an import fails
    monkeypatch.setattr(sys, "__stdout__", _Stream())
    monkeypatch.setattr(sys, "__stdin__", open(os.devnull))  # no keyboard: `echo a cat | lens gen -`
    assert not show._has_graphics(console)
    monkeypatch.setattr(sys, "__stdin__", _Stream())
    for front, asked in ((os.getpgrp() + 1, False), (os.getpgrp(), True)):
        monkeypatch.setattr(os, "tcgetpgrp", lambda _, front=front: front)
        assert hears_answers() is asked
    monkeypatch.delitem(sys.modules, "textual_image")
    monkeypatch.setattr(graphics, "typed_ahead", lambda: True)
    assert not show._has_graphics(console)
    monkeypatch.setitem(sys.modules, "textual_image", None)
    with pytest.raises(ImportError):  # so the check above would have failed, had it asked
        show._has_graphics(console)


def test_what_was_typed_ahead_is_seen_and_left() -> None:
    """A terminal of the system: a half-typed command is there for the shell afterwards, and the mode is as it was."""
    master, keys = os.openpty()
    try:
        before = termios.tcgetattr(keys)
        assert not typed_ahead(keys)
        os.write(master, b"ls -")
        assert typed_ahead(keys) and termios.tcgetattr(keys) == before
        os.write(master, b"l\n")
        assert os.read(keys, 100) + os.read(keys, 100) == b"ls -l\n"
    finally:
        os.close(master)
        os.close(keys)
    assert not typed_ahead(os.open(os.devnull, os.O_RDONLY))


def test_a_record_of_a_run_is_read_back(tmp_path: Path) -> None:
    """What `Metrics` says is what the live line shows; every other line is none."""
    said: list[str] = []
    log = Metrics(tmp_path, say=said.append)
    log.log(10, loss=0.722964, grad_norm=0.18, pictures_per_s=3.06176, eta_s=75.4)
    log.close()
    (line,) = said
    found = training.read_record(line)
    assert found is not None and (found["step"], found["loss"]) == (10, 0.722964)
    assert training.note(found) == "loss 0.7230 · 3.06/s · 1 min 15 s left"
    for other in ("training 345,600 numbers on 8 pictures", "step 3", "saved step 10", "step 3  loss nothing"):
        assert training.read_record(other) is None


def test_a_terminal_sees_a_line_and_a_pipe_the_records(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ("encoding 9 pictures", "step 1  loss 0.5  seconds 1")
    for terminal in (False, True):
        monkeypatch.setattr(training, "talking_to_a_terminal", lambda here=terminal: here)
        with training.live(Talk(command="train lora"), 4) as say:
            for line in lines:
                say(line)
        err = capsys.readouterr().err
        assert "encoding 9 pictures" in err and (lines[1] in err) is not terminal


def test_status_says_whether_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 20, "loss": 0.5, "eta_s": 11}) + "\n")
    (tmp_path / "config.json").write_text('{"kind": "lora", "steps": 40}')
    (run,) = find(tmp_path)
    assert not run.running and "not running; the same command goes on" in status.lines(run, 80)[0]
    with FileLock(tmp_path / ".lock"):
        (run,) = find(tmp_path)
        assert run.running and "running, about 11 s left" in status.lines(run, 80)[0]
        assert status.data(run)["running"]
    assert not find(tmp_path)[0].running
    (tmp_path / "metrics.jsonl").write_text('{"step": 40}\n')
    assert "finished" in status.lines(find(tmp_path)[0], 80)[0]


def test_a_run_is_one_before_its_first_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"kind": "lora", "steps": 40}')
    with pytest.raises(UsageError, match="no run here"):  # any model's folder has such a file
        find(tmp_path)
    (tmp_path / ".lock").touch()
    assert "step 0 of 40" in status.lines(find(tmp_path)[0], 80)[0]
    (tmp_path / "checkpoints" / "step-00000006").mkdir(parents=True)
    assert "step 6 of 40" in status.lines(find(tmp_path)[0], 80)[0]


def test_the_start_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Seconds before the first phase belong to the picture's time, so a line names them."""
    clock = [10.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    meter = Meter(talk=Talk(command="gen"), total=1)
    request: Any = None
    meter(DrawingStarted(request=request))
    clock[0] += 4.25
    meter(PhaseStarted(phase=Phase.encode, total=None))
    meter(PhaseStarted(phase=Phase.denoise, total=4))
    assert capsys.readouterr().err == "starting: 4.25 s\n"
