"""The console entry. So small that from the first moment Ctrl-C gets an answer, and no traceback out of an import.

Light ring, and less: what the interpreter has loaded by now. Typer and the command line take a tenth of a second.
"""

from __future__ import annotations

import signal
import sys


def main() -> None:
    """`lens`. A Ctrl-C is held back until there is somebody to answer it: `lens_cli.app`."""
    held: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: held.append(number))
    from lens_cli.app import main as run

    try:
        signal.signal(signal.SIGINT, before)
        run(stopped=bool(held) and before is not signal.SIG_IGN)  # ignored in a script's background jobs
    except KeyboardInterrupt:  # another one, while the first is being answered
        sys.exit(130)
