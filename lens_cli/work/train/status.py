"""`lens train status`: how far a run is, how fast, and its loss."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from backend.disk import write_atomic
from lens_cli.terminal.console import Talk
from lens_cli.terminal.curves import braille, svg
from train.run.status import Run, find

_CURVES = ("reward", "loss", "validation", "held_score")


def status(folder: Path, svg_path: Path | None, talk: Talk) -> None:
    """The run or runs of a folder on stdout; the curves of the first with numbers as SVG too. Raises UsageError."""
    runs = find(folder)
    columns = min(100, shutil.get_terminal_size((100, 30)).columns)
    for run in runs:
        for line in lines(run, columns):
            talk.data(line)
    if svg_path is not None:
        drawn = [(f"{run.folder.name} {key}", run.series(key)) for run in runs for key in _CURVES if run.series(key)]
        if not drawn:
            talk.warn("no loss was logged yet, so there is no plot")
        else:
            write_atomic(svg_path, svg(str(folder), drawn).encode())
            talk.say(f"wrote {svg_path}")
    talk.result({"runs": [data(run) for run in runs]})


def lines(run: Run, columns: int, rows: int = 10) -> list[str]:
    """What a person reads, with a curve of so many rows; 0: without."""
    left = f"step {run.step:,}" + (f" of {run.steps:,} ({100 * run.step / run.steps:.1f} %)" if run.steps else "")
    speed, eta, mfu = run.last("pictures_per_s"), run.last("eta_s"), run.last("mfu")
    parts = [left]
    for key in ("reward", "loss", "validation", "held_score", "grad_norm"):
        value = run.last(key)
        if value is not None:
            parts.append(f"{key} {value:.4f}")
    if speed is not None:
        parts.append(f"{speed:.3g} pictures/s")
    if mfu is not None:
        parts.append(f"MFU {100 * mfu:.1f} %")
    parts += [_state(run, eta)]
    out = [f"{run.folder}: {' · '.join(parts)}"]
    saved = ", ".join(f"{step:,}" for step in run.checkpoints)
    out.append(f"checkpoints: {saved or 'none yet'}")
    # The loss of reinforcement learning is flat by its nature.
    curve = run.series("reward") or run.series("loss") or run.series("held_score")
    if curve and rows:
        out += ["", *braille(curve, columns=columns, rows=rows), ""]
    return out


def _state(run: Run, eta: float | None) -> str:
    """Whether it goes on, and how long."""
    unfinished = run.steps is None or run.step < run.steps
    if run.running:
        return f"running, about {duration(eta)} left" if eta and unfinished else "running"
    return "not running; the same command goes on" if unfinished else "finished"


def data(run: Run) -> dict[str, Any]:
    """What a program reads."""
    keys = ("loss", "validation", "grad_norm", "pictures_per_s", "mfu", "eta_s")
    keys += ("reward",) if run.last("reward") is not None else ()
    return {
        "folder": str(run.folder),
        "step": run.step,
        "steps": run.steps,
        "running": run.running,
        "checkpoints": list(run.checkpoints),
        **{key: _finite(run.last(key)) for key in keys},
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and abs(value) < float("inf") else None


def duration(seconds: float) -> str:
    """3725 -> "1 h 02 min"."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours < 48 else f"{hours / 24:.1f} days"
