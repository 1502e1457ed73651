"""How a long run is asked to end: finish the step, save, return."""

from __future__ import annotations

import signal
import time

from backend.errors import CancelledError


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


def stopped(step: int, steps: int) -> CancelledError:
    """What a run raises that was asked to stop after `step` steps, and has saved its state."""
    return CancelledError(
        f"stopped after step {step:,} of {steps:,}; the state is saved", hint="the same command goes on from there"
    )
