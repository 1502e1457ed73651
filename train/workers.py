"""What a worker process does at its start, beside its work."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading


def end_with_parent() -> None:
    """End this process when its parent has ended: a worker of a pool waits for work for ever, also where the process
    that would give it was killed."""
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def leave_signals_to_parent() -> None:
    """Start a session of its own: what is sent to a whole process group, as Ctrl-C by a terminal and SIGTERM by SLURM,
    systemd or `timeout`, must reach the parent alone. One that stops in good order needs its workers to the end."""
    if hasattr(os, "setsid"):  # Windows has no sessions, and only Ctrl-C
        os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)  # what it was writing is a temporary file yet
