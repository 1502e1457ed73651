"""A training on a terminal: one live line with a bar instead of a record a step. Where stderr is no terminal the
records stay as they are, for a log. Rich is imported where it draws."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from lens_cli.terminal.console import Talk, talking_to_a_terminal

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_RECORD = re.compile(r"step (\d+)  \S+ \S+(  \S+ \S+)*")  # as `train.run.metrics` says a line of its log
_SHOWN = ("reward", "loss", "validation", "held_score")  # what tells how it goes, in order of weight


@contextmanager
def live(talk: Talk, steps: int | None) -> Generator[Callable[[str], None]]:
    """Gives the function that a training says its lines to. `steps`: of the whole run; None: not known."""
    if talk.quiet or not talking_to_a_terminal():
        yield talk.say
        return
    with _bar(talk) as progress:
        line = _Line(progress, progress.add_task("starting", total=steps, note=""))
        yield line.say


class _Line:
    """Reads records into the bar, and writes every other line above it."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self.progress, self.task = progress, task
        self.last: dict[str, float] = {}  # newest value of each number; a validation has a record of its own

    def say(self, text: str) -> None:
        record = read_record(text)
        if record is None:
            self.progress.console.print(text, soft_wrap=True)
            return
        self.last |= record
        description = f"step {record['step']:.0f}"
        self.progress.update(self.task, completed=record["step"], description=description, note=note(self.last))


def read_record(text: str) -> dict[str, float] | None:
    """ "step 10  loss 0.7  seconds 3" -> its numbers; None: the line is none."""
    if _RECORD.fullmatch(text) is None:
        return None
    try:
        return {key: float(value) for key, value in (part.split() for part in text.split("  "))}
    except ValueError:
        return None


def note(values: dict[str, float]) -> str:
    """What stands beside the bar: what tells how it goes, the speed, what is left."""
    parts = [f"{name} {values[name]:.4f}" for name in _SHOWN if name in values][:2]
    if "pictures_per_s" in values:
        parts.append(f"{values['pictures_per_s']:.3g}/s")
    if "eta_s" in values:
        parts.append(f"{left(values['eta_s'])} left")
    return " · ".join(parts)


def left(seconds: float) -> str:
    """75 -> "1 min 15 s"; 7500 -> "2 h 05 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def _bar(talk: Talk) -> Progress:
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=14),
        TextColumn("{task.percentage:.0f} %", markup=False),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        console=talk.screen(),
        transient=True,
    )
