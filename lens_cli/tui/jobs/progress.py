"""What is known of the jobs that the app shows: the server's list, and the events of the one that runs.

Light ring: standard library only; a test needs no terminal and no server.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from backend.server.jobs import Job, JobEvent

ENDED_SHOWN = 20  # jobs that have ended and are still listed


@dataclass
class Watched:
    """One job, with how far it is."""

    job: Job
    phase: str = ""  # as the backend calls it; "": nothing was told yet
    step: int = 0
    steps: int = 0  # of the phase; 0: it has none
    image: int = 0  # 0-based
    step_seconds: float = 0.0  # of the last step
    pictures: list[Any] = field(default_factory=list[Any])  # the last that were saved, as PIL images

    @property
    def state(self) -> str:
        return str(self.job.state)

    @property
    def share(self) -> float:
        """0..1 of all steps of all pictures."""
        if self.job.state.ended:
            return 1.0
        whole = (self.image + (self.step / self.steps if self.steps else 0)) / max(1, self.job.total)
        return min(1.0, max(whole, self.job.made / max(1, self.job.total)))

    def hear(self, event: JobEvent) -> None:
        """Take up an event; what it lacks is left as it was, since it comes from outside."""
        name = event.get("event")
        if name in ("phase_started", "step_done"):
            self.phase = str(event.get("phase", ""))[:40]
            self.step, self.steps = _whole(event.get("step")), _whole(event.get("total"))
            self.image = _whole(event.get("image"), self.image)
            seconds = event.get("seconds")
            self.step_seconds = float(seconds) if isinstance(seconds, (int, float)) else self.step_seconds

    def short(self) -> str:
        """`line` for a narrow place: "12/20", "load encoder", "waits"."""
        if self.state == "running" and self.steps:
            return f"{self.step}/{self.steps}"
        return self.line()

    def keep(self, picture: Any) -> None:
        """One of its pictures is finished; the last few stay at hand."""
        self.pictures = [*self.pictures, picture][-4:]

    def line(self) -> str:
        """How it is, in a few words: "denoise 12/20", "waits", "done"."""
        job = self.job
        if job.error is not None and job.state.ended:
            return str(job.error.get("message", "failed"))
        if not job.state.ended and job.started is not None:
            picture = f"{self.image + 1}/{job.total} " if job.total > 1 else ""
            if not self.steps:
                return f"{picture}{self.phase or 'starts'}"
            left = (self.steps - self.step) * self.step_seconds
            eta = f" {left:.0f} s" if left >= 1 else ""
            return f"{picture}{self.phase} {self.step}/{self.steps}{eta}"
        return {"queued": "waits"}.get(self.state, self.state)


def _whole(value: object, other: int = 0) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31 else other


class Jobs:
    """The jobs that are shown: those that run, those that wait in their order, then the last that ended."""

    def __init__(self) -> None:
        self.known: dict[str, Watched] = {}
        self.order: list[str] = []

    def put(self, jobs: Sequence[Job]) -> None:
        """The server's list."""
        for job in jobs:
            self.change(job)
        live = [job.id for job in jobs if not job.state.ended]
        ended = [job.id for job in jobs if job.state.ended][:ENDED_SHOWN]
        self.order = live + ended
        self.known = {name: self.known[name] for name in self.order}

    def change(self, job: Job) -> Watched:
        """A job at another moment; one that was not known is the last that waits."""
        watched = self.known.setdefault(job.id, Watched(job))
        watched.job = job
        if job.id not in self.order:
            waiting = [name for name in self.order if name in self.known and not self.known[name].job.state.ended]
            self.order.insert(len(waiting), job.id)
        return watched

    def listed(self) -> list[Watched]:
        return [self.known[name] for name in self.order if name in self.known]

    def running(self) -> Watched | None:
        return next((one for one in self.listed() if one.state == "running"), None)

    def waiting(self) -> list[Watched]:
        return [one for one in self.listed() if one.state == "queued"]

    def summary(self) -> str:
        """For the first line of the screen; "": nothing runs or waits."""
        running, waiting = self.running(), len(self.waiting())
        parts = [running.line()] if running is not None else []
        return ", ".join([*parts, *([f"{waiting} waiting"] if waiting else [])])
