"""Steps made ahead of the training by a thread, on a GPU in a stream beside it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from train.run.batch import Batch

Made = tuple[list[Batch], torch.cuda.Event | None]


def steps(
    make: Callable[[int], list[Batch]], start: int, stop: int, *, ahead: int, device: torch.device
) -> Generator[tuple[int, list[Batch]]]:
    """`(step, make(step))` of every step; `ahead`: so many are made before they are asked for, 0: in turn."""
    if not ahead:
        yield from ((step, make(step)) for step in range(start, stop))
        return
    side = torch.cuda.Stream(device) if device.type == "cuda" else None

    def made(step: int) -> Made:
        if side is None:
            return make(step), None
        with torch.cuda.stream(side):  # beside the training, not in turn with it
            batches = make(step)
            done = torch.cuda.Event()
            done.record(side)
            return batches, done

    with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as thread:
        pending: list[tuple[int, Future[Made]]] = []
        try:
            for step in range(start, stop + ahead):
                if step < stop:
                    pending.append((step, thread.submit(made, step)))
                if pending and (len(pending) > ahead or step >= stop):
                    ready, future = pending.pop(0)
                    batches, done = future.result()
                    if done is not None:
                        _hand_over(batches, done, device)
                    yield ready, batches
        finally:
            for _, future in pending:
                future.cancel()


def _hand_over(batches: Sequence[Batch], done: torch.cuda.Event, device: torch.device) -> None:
    """Let the training's stream wait for the other, and keep the memory until both are through with it."""
    stream = torch.cuda.current_stream(device)  # by its device: the current one may be another
    stream.wait_event(done)
    for batch in batches:
        for value in vars(batch).values():
            if isinstance(value, Tensor):
                value.record_stream(stream)
