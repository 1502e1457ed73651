"""The console entry. So small that from the first moment Ctrl-C gets an answer, and no traceback out of an import.

Light ring, and less: what the interpreter has loaded by now. Typer and the command line take a tenth of a second.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType


def main() -> None:
    """`lens`. A Ctrl-C is held back until there is somebody to answer it: `lens_cli.app`.

    SIGTERM and SIGHUP end as Ctrl-C does: finished work is kept and nothing half-written stays.
    """
    pressed: list[int] = []
    ended: list[int] = []  # the exit code, once all is said
    ready = False

    def press(number: int, frame: FrameType | None) -> None:
        if ended:  # the interpreter tidies up: nobody answers, and an exception would be a traceback
            os._exit(ended[0])
        # Noted too: raised while a package is being imported, it may come out as any error of that package.
        pressed.append(number)
        if ready:
            raise KeyboardInterrupt

    def end(number: int, frame: FrameType | None) -> None:
        now = signal.getsignal(signal.SIGINT)
        (now if callable(now) else press)(number, frame)

    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # ignored in a script's background jobs
        signal.signal(signal.SIGINT, press)
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # no SIGHUP on Windows
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:  # nohup ignores one
            signal.signal(number, end)
    from lens_cli.app import main as run

    try:
        ready = True
        run(stopped=lambda: bool(pressed))
    except KeyboardInterrupt:  # another one, while the first is being answered
        ended.append(130)
    except SystemExit as end_of_run:
        ended.append(end_of_run.code if isinstance(end_of_run.code, int) else 0)
    sys.exit(ended[0] if ended else 0)
