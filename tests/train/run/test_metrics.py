"""The log of a run: one JSON object a line, and after a crash the lines of steps that will run again are gone.

Why it can be trusted: files are read back as text and the crash is a line cut in the middle.
"""

from __future__ import annotations

import errno
import json
import math
import os
from pathlib import Path

import pytest
from PIL import Image

from backend.errors import CheckpointError, FileError
from train.run.metrics import Metrics


def rows(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = Metrics(tmp_path / "new" / "run")
    metrics.log(10, loss=0.123456789, rate=1234567.0)
    metrics.log(20, loss=float("nan"))
    first, second = rows(tmp_path / "new" / "run")
    assert (first["step"], first["loss"], first["rate"]) == (10, 0.123456789, 1234567.0)
    assert first["seconds"] >= 0
    assert second["step"] == 20 and math.isnan(second["loss"])
    captured = capsys.readouterr()
    assert captured.out == ""  # stdout is data
    assert "step 10  loss 0.123457" in captured.err


def test_resume_drops_what_will_run_again(tmp_path: Path) -> None:
    """Steps after the checkpoint go, also where the last line was cut by a crash; new lines follow the kept ones."""
    metrics = Metrics(tmp_path)
    for step in (10, 20, 30):
        metrics.log(step, loss=1.0 / step)
    with open(metrics.path, "a") as file:
        file.write('{"step": 40, "lo')
    again = Metrics(tmp_path, resume_step=20)
    assert [row["step"] for row in rows(tmp_path)] == [10, 20]
    again.log(30, loss=0.5)
    assert [row["step"] for row in rows(tmp_path)] == [10, 20, 30]
    assert rows(tmp_path)[2]["loss"] == 0.5


def test_a_fresh_run_starts_an_empty_log(tmp_path: Path) -> None:
    """Without what a run that was killed before its first checkpoint wrote, its line of step 0 too."""
    heard: list[str] = []
    first = Metrics(tmp_path, say=heard.append)
    first.log(0, loss=2.0)
    first.log(5, loss=1.0)
    assert [line.split("  ")[0] for line in heard] == ["step 0", "step 5"]
    Metrics(tmp_path)
    assert rows(tmp_path) == []


def test_the_board_shows_each_step_once(tmp_path: Path) -> None:
    """The event of the checkpoint's own step stays, those behind it are written anew."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for resume, steps in ((0, (1, 2, 3)), (2, (3,))):
        metrics = Metrics(tmp_path, resume)
        for step in steps:
            metrics.log(step, loss=10.0 * step + resume)
        metrics.close()
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert [(event.step, event.value) for event in board.Scalars("loss")] == [(1, 10.0), (2, 20.0), (3, 32.0)]


def test_a_preview_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics, image = Metrics(tmp_path), Image.new("RGB", (8, 8), "red")
    metrics.picture(5, image)

    def full(self: object, file: object, *_more: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", full)
        with pytest.raises(FileError, match="no space left"):
            metrics.picture(6, image)
    assert [path.name for path in (tmp_path / "previews").iterdir()] == ["0000005.png"]
    with Image.open(tmp_path / "previews" / "0000005.png") as read:
        assert read.getpixel((0, 0)) == (255, 0, 0)


def test_an_edited_log_is_refused_by_its_line(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path)
    for step in (10, 20, 30):
        metrics.log(step, loss=1.0)
    lines = metrics.path.read_text().splitlines()
    metrics.path.write_text("\n".join([lines[0], "step 20}", lines[2]]) + "\n")
    with pytest.raises(CheckpointError, match="line 2 is no line of a log"):
        Metrics(tmp_path, resume_step=30)
    assert len(metrics.path.read_text().splitlines()) == 3  # nothing is lost by asking
