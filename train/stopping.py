"""How a long run is asked to end: finish the step, save, return."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from backend.errors import CancelledError

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
