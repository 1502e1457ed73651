"""Seconds and bytes of one phase: medians with their extremes, on a clock that waits for the device.

Peak memory is the CUDA allocator's on a GPU (reserved, so what other programs cannot have), and the process's
resident set elsewhere, whose high-water mark Linux lets a process reset; where it cannot be reset, what is given is
the peak since the process started, and `Peak.since_start` says so.
"""

from __future__ import annotations

import ctypes
import gc
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch

from backend.memory.exhausted import process_peak_bytes

Result = TypeVar("Result")
_CLEAR = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # what proc(5) calls resetting the peak resident set size


@dataclass(frozen=True)
class Spread:
    """Samples of one quantity and what is said of them."""

    samples: tuple[float, ...]  # in the order in which they were taken; at least one

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def low(self) -> float:
        return min(self.samples)

    @property
    def high(self) -> float:
        return max(self.samples)


def added(spreads: Sequence[Spread]) -> Spread:
    """Run by run: the first samples together, the second together, … as far as all have one."""
    return Spread(tuple(map(sum, zip(*(spread.samples for spread in spreads), strict=False))))


class Peak:
    """The highest use of memory between `reset` and `read`."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.since_start = not self.reset()

    def reset(self) -> bool:
        """Start over; False where the system cannot."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
            return True
        _give_back_freed()
        try:
            _CLEAR.write_text(_RESET_PEAK)
        except OSError:
            return False
        return True

    def read(self) -> int:
        """Bytes, everything that is held counted."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_reserved(self.device)
        return process_peak_bytes()


def _give_back_freed() -> None:
    """glibc keeps freed memory (120 MB after one picture of Lens-Nano), which would count for the next phase."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # absent from other C libraries
        if trim is not None:
            trim(0)


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


class Marks:
    """Moments on the device's own time line: a GPU is not made to wait at each, so that marking costs no speed."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._events: list[torch.cuda.Event] = []
        self._moments: list[float] = []

    def mark(self) -> None:
        if self._device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.current_stream(self._device))
            self._events.append(event)
        else:
            wait(self._device)
            self._moments.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Between one mark and the next. Waits for the device."""
        wait(self._device)
        if self._device.type == "cuda":
            pairs = zip(self._events, self._events[1:], strict=False)
            return [before.elapsed_time(after) / 1e3 for before, after in pairs]  # milliseconds
        return [after - before for before, after in zip(self._moments, self._moments[1:], strict=False)]


class Took(NamedTuple):
    """One run."""

    wall: float  # seconds
    processor: float  # seconds of all threads of this process together: on a machine that others use too, the steadier


def walls(runs: Sequence[Took]) -> Spread:
    return Spread(tuple(run.wall for run in runs))


def processors(runs: Sequence[Took]) -> Spread:
    return Spread(tuple(run.processor for run in runs))


class Clock:
    """Started when it is made, with the device idle."""

    def __init__(self, device: torch.device) -> None:
        wait(device)
        self._device, self._wall, self._processor = device, time.perf_counter(), time.process_time()

    def read(self) -> Took:
        """Waits for the device."""
        wait(self._device)
        return Took(time.perf_counter() - self._wall, time.process_time() - self._processor)


def timed(device: torch.device, work: Callable[[], Result]) -> tuple[Result, Took]:
    """What `work` gives, and what it took."""
    clock = Clock(device)
    result = work()
    return result, clock.read()
