"""Batches made ahead of the training loop by worker processes, in order, each a pure function of its step.

Because batch `k` depends on `k` alone, a resumed run sees exactly the batches the uninterrupted one would have seen.
"""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Generic, TypeVar

from train import workers

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
        # "spawn": a forked child of a process that has used torch's thread pool may hang.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(self.workers, mp_context=context, initializer=_begin) as pool:
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


def _begin() -> None:
    """In a new worker."""
    workers.end_with_parent()
    workers.leave_signals_to_parent()
