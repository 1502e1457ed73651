"""Batches made ahead of the training loop by worker processes, in order, each a pure function of its step.

Because batch `k` depends on `k` alone, a resumed run sees exactly the batches the uninterrupted one would have seen.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing.context import SpawnContext
from typing import Generic, TypeVar

Batch = TypeVar("Batch")


class Feed(Generic[Batch]):
    """Iterate over `make(start), make(start + 1), …, make(stop - 1)`.

    `make` must be picklable (a module-level function or a `functools.partial` of one). `workers` = 0 computes inline.
    """

    def __init__(self, make: Callable[[int], Batch], *, start: int, stop: int, workers: int, ahead: int = 4) -> None:
        self.make, self.start, self.stop, self.workers, self.ahead = make, start, stop, workers, ahead

    def __iter__(self) -> Iterator[Batch]:
        if self.workers == 0:
            yield from (self.make(step) for step in range(self.start, self.stop))
            return
        with ProcessPoolExecutor(self.workers, mp_context=spawn_context(), initializer=begin_worker) as pool:
            pending: deque[Future[Batch]] = deque()
            try:
                for step in range(self.start, self.stop):
                    pending.append(pool.submit(self.make, step))
                    if len(pending) > self.ahead:
                        yield pending.popleft().result()
                while pending:
                    yield pending.popleft().result()
            finally:
                for future in pending:
                    future.cancel()


_QUIET = "ignore:resource_tracker"  # as -W has it


def spawn_context() -> SpawnContext:
    """How every pool here starts its workers. A forked child of a process with threads (torch, pyarrow) may find a lock
    held for ever. What a kill -9 leaves to Python's own process that tidies up, it tidies up without a word."""
    if _QUIET not in sys.warnoptions:
        sys.warnoptions.append(_QUIET)  # handed on to that process when it starts
    return multiprocessing.get_context("spawn")


def begin_worker() -> None:
    """Prepare a new process of a pool: it ends with its parent, and signals are the parent's affair."""
    end_with_parent()
    leave_signals_to_parent()


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
