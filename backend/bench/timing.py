"""Seconds and bytes of one phase: medians with their extremes, on a clock that waits for the device.

Peak memory is the CUDA allocator's on a GPU (reserved, so what other programs cannot have), and the process's
resident set elsewhere, whose high-water mark Linux lets a process reset; where it cannot be reset, what is given is
the peak since the process started, and `Peak.since_start` says so.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch

from backend.events import Event, PhaseDone, PhaseStarted, StepDone
from backend.memory.exhausted import process_peak_bytes, trim_host
from backend.types import Phase

Result = TypeVar("Result")
_CLEAR = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # what proc(5) calls resetting the peak resident set size


@dataclass(frozen=True)
class TimeSpread:
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


def added(spreads: Sequence[TimeSpread]) -> TimeSpread:
    """Run by run: the first samples together, the second together, … as far as all have one."""
    return TimeSpread(tuple(map(sum, zip(*(spread.samples for spread in spreads), strict=False))))


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
        trim_host()  # or what an earlier phase freed would count for the next
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


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


class Took(NamedTuple):
    """One run."""

    wall: float  # seconds
    processor: float  # seconds of all threads of this process together: on a machine that others use too, the steadier

    def without(self, part: Took) -> Took:
        """The rest of it."""
        return Took(self.wall - part.wall, self.processor - part.processor)


def walls(runs: Sequence[Took]) -> TimeSpread:
    return TimeSpread(tuple(run.wall for run in runs))


def processors(runs: Sequence[Took]) -> TimeSpread:
    return TimeSpread(tuple(run.processor for run in runs))


class Clock:
    """Started when it is made, with the device idle."""

    def __init__(self, device: torch.device) -> None:
        wait(device)
        self._device, self._wall, self._processor = device, time.perf_counter(), time.process_time()

    def read(self) -> Took:
        """Waits for the device."""
        wait(self._device)
        return Took(time.perf_counter() - self._wall, time.process_time() - self._processor)


class Stopwatch:
    """Listens to an engine: what every phase took, run by run, and the most memory it held."""

    def __init__(self, device: torch.device) -> None:
        self.peak = Peak(device)
        self.took: dict[Phase, list[Took]] = {}
        self.most: dict[Phase, int] = {}  # bytes
        self.steps: list[list[float]] = []  # seconds, of each denoising
        self._running: dict[Phase, Clock] = {}

    def __call__(self, event: Event) -> None:
        if isinstance(event, PhaseStarted):
            if not self._running:  # a part's peak is counted from where its phase began
                self.peak.reset()
            if event.phase is Phase.denoise:
                self.steps.append([])
            self._running[event.phase] = Clock(self.peak.device)
        elif isinstance(event, StepDone):
            self.steps[-1].append(event.seconds)
        elif isinstance(event, PhaseDone):
            self.took.setdefault(event.phase, []).append(self._running.pop(event.phase).read())
            self.most[event.phase] = max(self.most.get(event.phase, 0), self.peak.read())


def timed(device: torch.device, work: Callable[[], Result]) -> tuple[Result, Took]:
    """What `work` gives, and what it took."""
    clock = Clock(device)
    result = work()
    return result, clock.read()
