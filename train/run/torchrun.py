"""The end of a process that torchrun started: what went wrong in one line, said once."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from backend.errors import CancelledError, LensError, UsageError


def launch(run: Callable[[], object]) -> None:
    """Call `run`; exit with its error's code, having said what only this rank knows, or on the first what all do."""
    try:
        run()
    except LensError as error:
        rank = os.environ.get("RANK", "0")
        if rank == "0":
            print(f"error: {error}", file=sys.stderr)
            if error.hint:
                print(f"hint: {error.hint}", file=sys.stderr)
        elif not isinstance(error, (UsageError, CancelledError)):  # those are the same on every rank
            print(f"rank {rank}: error: {error}", file=sys.stderr)  # what this one met alone, nobody else would tell
        sys.exit(error.exit_code)
