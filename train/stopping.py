"""How a long run is asked to end: finish the step, save, return."""

from __future__ import annotations

import signal


class Stopper:
    """SIGTERM or Ctrl-C asks for a checkpoint and a clean end; the second Ctrl-C is immediate."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> Stopper:
        self._before = {s: signal.signal(s, self._ask) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def _ask(self, number: int, _frame: object) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
