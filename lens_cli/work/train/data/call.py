"""One `lens train data` command as it was typed, what its stage can do, and shards run with progress on stderr."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from backend.disk import claimed
from backend.errors import CancelledError
from lens_cli.terminal.console import Talk
from lens_cli.work.interrupt import Interrupt
from train.data.engine import in_one_process, run_shards
from train.data.work import Work

STOPPING = "stopping after the shards under way; Ctrl-C again stops at once"


@dataclass(frozen=True)
class Call:
    """One command as it was typed."""

    folder: Path  # WORK, absolute
    given: tuple[str, ...]  # --set
    engine: str
    workers: int | None  # None: one a core
    dry_run: bool
    talk: Talk

    @property
    def work(self) -> Work:
        return Work(self.folder)

    @property
    def at_once(self) -> int:
        """Processes that would work here."""
        return max(1, self.workers if self.workers is not None else os.cpu_count() or 1)


class DataStage(Protocol):
    """One command: made from its Call, whose settings are checked then. Nothing is written before `run`."""

    def explain(self) -> None:
        """Say how much there is to do (`--dry-run`)."""
        ...

    def run(self) -> None:
        """Remember the settings, do what is not done, say what came of it."""
        ...


def carry_out(stage: DataStage, call: Call) -> None:
    """What the command line asked for. Raises FileError where another process works in the folder: two would take each
    other's half-done shards for faults.
    """
    if call.dry_run:
        stage.explain()
    else:
        with claimed(call.folder, doing="works in"):
            stage.run()


def run_todo(call: Call, name: str, stage: Callable[[int], None], todo: Sequence[int], *, gpus: float = 0.0) -> None:
    """Run `todo` on the engine, with a line on stderr every few seconds. `gpus`: of a Ray task, where there are any."""
    if not todo:
        call.talk.detail(f"{name}: nothing to do")
        return
    progress = ShardProgress(call.talk, name, len(todo))
    # In this process Ctrl-C stops within a shard: a stage that asks a model has kept each answer.
    apart = call.engine == "ray" or not in_one_process(todo, call.workers)
    with Interrupt(STOPPING if apart else None) as interrupt:
        run_shards(stage, todo, call.engine, call.workers, gpus=gpus, on_done=progress.step, stop=interrupt.stop)
        if interrupt.pressed:  # during the last shard: nothing of this stage is left, and the next must not begin
            raise CancelledError(f"stopped; the shards of {name} are finished", hint="the same command goes on")


class ShardProgress:
    """Tells how far a stage is, at most every `EVERY` seconds."""

    EVERY = 5.0  # seconds

    def __init__(self, talk: Talk, name: str, total: int) -> None:
        self.talk, self.name, self.total, self.ended = talk, name, total, 0
        self.began = self.told = time.monotonic()

    def step(self, _shard: int) -> None:
        self.ended += 1
        now = time.monotonic()
        if now - self.told >= self.EVERY and self.ended < self.total:
            left = (now - self.began) / self.ended * (self.total - self.ended)
            self.talk.say(f"{self.name}: {self.ended} of {self.total} shards, about {span(left)} left")
            self.told = now


def span(seconds: float) -> str:
    """90 -> "1.5 min"."""
    for limit, unit, size in ((90, "s", 1), (5400, "min", 60), (172_800, "h", 3600)):
        if seconds < limit:
            return f"{seconds / size:.0f} {unit}" if size == 1 else f"{seconds / size:.1f} {unit}"
    return f"{seconds / 86_400:.1f} days"


def tell_reasons(call: Call, counts: Counter[str], what: str = "") -> None:
    """The most frequent reasons, a line each."""
    for reason, count in counts.most_common(8):
        call.talk.say(f"  {count:>10,} {what}{reason}")
