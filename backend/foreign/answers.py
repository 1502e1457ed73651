"""HTTP answers of somebody else, read within bounds: bytes once unpacked, pace, and seconds in all.

For responses of httpx2, which both `openai` and `huggingface_hub` use; nothing here imports it.

Light ring: standard library only.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")


def within(seconds: float, work: Callable[[], T]) -> T:
    """What `work` returns or raises; TimeoutError where it takes longer.

    It runs in a thread of its own, which is then left behind: headers that trickle in, or a name's look-up, would never
    let go of this one.
    """
    made: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            made.append(work())
        except BaseException as error:  # noqa: BLE001  raised again below
            failed.append(error)

    thread = threading.Thread(target=run, name="lens-answer", daemon=True)
    thread.start()
    thread.join(max(0.001, seconds))
    if failed:
        raise failed[0]
    if not made:
        raise TimeoutError
    return made[0]


def unpack_bounded(response: Any, pieces: Callable[[Iterator[bytes]], Iterator[bytes]]) -> None:
    """Have `response` read through `pieces`, which sees it unpacked, a MiB at a time, and ends or raises where it has
    had enough. Whoever reads it whole would unpack it whole: 40 kB that were packed twice are 10 GB."""
    packed = type(response)(
        response.status_code, headers=response.headers, stream=response.stream, request=response.request
    )
    base = importlib.import_module(type(response).__module__.partition(".")[0]).SyncByteStream

    class Unpacked(base):
        def __iter__(self) -> Iterator[bytes]:
            return pieces(packed.iter_bytes())

        def close(self) -> None:
            packed.stream.close()

    response.stream = Unpacked()
    response.headers.pop("content-encoding", None)  # what comes is unpacked by now


def cut(pieces: Iterator[bytes], limit: int) -> Iterator[bytes]:
    """The first `limit` bytes."""
    for piece in pieces:
        yield piece[:limit]
        limit -= len(piece)
        if limit <= 0:
            return
