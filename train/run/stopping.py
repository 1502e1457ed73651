"""How a run ends before its time: asked to by a signal, or before a step whose loss or gradient is not finite."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from backend.errors import CancelledError, NumericsError
from train.run import checkpoints


def stopped_before(step: int, why: str, run_dir: Path, rate: str) -> NumericsError:
    """The error of a run that stops before `step` (from 0); `rate`: the field that lowers its rate.

    Nothing is saved there: the same weights would meet the same pictures, times and noise again, whatever the rate,
    which only enters after the loss. From the last checkpoint on a lower rate leads elsewhere.
    """
    found = checkpoints.folders(run_dir)
    kept = f"the last checkpoint, {found[-1].name}, is untouched" if found else "there is no checkpoint yet"
    goes_on = "goes on from there" if found else "begins anew"
    return NumericsError(
        f"step {step}: {why}; stopped before it, {kept}",
        hint=f"run again with a lower rate, it {goes_on}: --set {rate}=…; "
        "if it stops at the same step once more, look at its pictures",
    )


def check_finite(step: int, loss: float, norm: float, run_dir: Path, rate: str) -> None:
    """Raises NumericsError where the loss or the gradient's norm before clipping is not finite."""
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise stopped_before(step, f"loss {loss:g}, gradient norm {norm:g}", run_dir, rate)


T = TypeVar("T")


class Stopper:
    """SIGTERM or Ctrl-C asks for a checkpoint and a clean end; a second Ctrl-C, a second later or more, is immediate.

    Not an earlier one: torchrun passes on the Ctrl-C that the terminal has sent to its processes already.
    """

    def __init__(self) -> None:
        self.asked, self._since = False, 0.0

    def __enter__(self) -> Stopper:
        self._before = {s: signal.signal(s, self._ask) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def _ask(self, number: int, _frame: object) -> None:
        if self.asked and number == signal.SIGINT and time.monotonic() - self._since >= 1:
            raise KeyboardInterrupt
        if not self.asked:
            self.asked, self._since = True, time.monotonic()

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def steps(
        self, batches: Iterable[T], start: int, stop: int, *, save: Callable[[int], None], save_every: int
    ) -> Iterator[tuple[int, T]]:
        """The batches of the steps `start` to `stop - 1`, each with its number; `save` gets how many steps are done,
        after every `save_every`-th, after the last, and where it was asked to stop. Then it raises CancelledError."""
        for step, batch in enumerate(batches, start):
            yield step, batch
            done, last = step + 1, step + 1 == stop
            asked = self.asked  # read once: a signal between two looks must not end it unsaved
            if done % save_every == 0 or last or asked:
                save(done)
            if asked and not last:
                raise stopped(done, stop)


def stopped(step: int, steps: int) -> CancelledError:
    """What a run raises that was asked to stop after `step` steps, and has saved its state."""
    return CancelledError(
        f"stopped after step {step:,} of {steps:,}; the state is saved", hint="the same command goes on from there"
    )
