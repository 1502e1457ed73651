"""The log of a run: one JSON object a line, and after a crash the lines of steps that will run again are gone.

Why it can be trusted: files are read back as text and the crash is a line cut in the middle.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from train.metrics import Metrics


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
    Metrics(tmp_path).log(5, loss=1.0)
    Metrics(tmp_path)
    assert rows(tmp_path) == []
