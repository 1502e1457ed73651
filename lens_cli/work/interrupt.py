"""Ctrl-C while something runs that can stop by itself at a good moment."""

from __future__ import annotations

import contextlib
import os
import signal
from contextlib import AbstractContextManager
from types import FrameType, TracebackType
from typing import Any

from backend.errors import CancelledError

WRITING = "stopping; Ctrl-C again stops at once"
DRAWING = "stopping after this step; Ctrl-C again stops at once"


class Interrupt(AbstractContextManager["Interrupt"]):
    """Ctrl-C once: `pressed`, for whoever polls it. Twice, or while nobody does: KeyboardInterrupt, at once."""

    def __init__(self, says: str | None = DRAWING) -> None:
        """`says`: what a person is told at the first; None: nobody polls at the moment."""
        self.pressed = False
        self.says = says
        self._raised = False
        self._before: Any = None

    def __enter__(self) -> Interrupt:
        self._before = signal.signal(signal.SIGINT, self._press)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.signal(signal.SIGINT, self._before)
        # What is raised while a package is being imported may come out as any error of that package.
        if isinstance(error, KeyboardInterrupt) or (self._raised and error is not None):
            # From here on it is an error like others, with its line or its JSON.
            raise CancelledError("stopped") from error

    def stop(self) -> bool:
        """Whether Ctrl-C was pressed."""
        return self.pressed

    def _press(self, number: int, frame: FrameType | None) -> None:
        if self.pressed or self.says is None:
            self._raised = True
            raise KeyboardInterrupt
        self.pressed = True
        # Not through Talk: the handler may run in the middle of one of its writes.
        with contextlib.suppress(OSError):
            os.write(2, f"\n{self.says}\n".encode())
