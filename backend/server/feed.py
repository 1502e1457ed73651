"""What happens to jobs, kept in memory for whoever listens, and for whoever comes back.

Light ring: standard library only.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass, field
from typing import Any

from backend.events import Noticed
from backend.server.queue import Queue, Row
from backend.server.wire import event_data

HEARTBEAT = 5.0  # seconds after which a listener is told that there is nothing
BEHIND = 2000  # events that one listener may be behind; then it loses the oldest
ENDED = 100  # jobs that have ended and whose events stay
PASSING = ("step_done", "phase_started", "phase_done", "preview_made")  # of no interest once their picture is there
SETTLES = ("picture_saved", "picture_failed")

TaggedEvent = dict[str, Any]  # with number and job


@dataclass
class _Log:
    lasting: list[TaggedEvent] = field(default_factory=list[TaggedEvent])
    passing: list[TaggedEvent] = field(default_factory=list[TaggedEvent])  # of the picture at hand
    listeners: list[deque[TaggedEvent]] = field(default_factory=list[deque[TaggedEvent]])
    news: asyncio.Event = field(default_factory=asyncio.Event)
    ended: bool = False

    def after(self, number: int) -> list[TaggedEvent]:
        """The events of greater numbers, in their order."""
        found = [*_later(self.lasting, number), *_later(self.passing, number)]
        return sorted(found, key=lambda event: event["number"])


def _later(events: list[TaggedEvent], number: int) -> list[TaggedEvent]:
    first = len(events)
    while first and events[first - 1]["number"] > number:
        first -= 1
    return events[first:]


class Feed:
    """One log a job; every event gets the next number of the queue."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._logs = OrderedDict[str, _Log]()

    def has(self, job: str) -> bool:
        return job in self._logs

    def restore(self, events: Iterable[TaggedEvent]) -> None:
        """Enter again what an earlier server told of a job, with the numbers that it had."""
        for event in events:
            self._logs.setdefault(event["job"], _Log()).lasting.append(event)

    def tell_job(self, row: Row) -> None:
        """Enter where a job stands now."""
        job = row.job
        number = self.tell(job.id, {"event": "job_changed", "state": job.data()}, last=job.state.ended)
        self._queue.tell(job.id, number)

    def notice(self, job: str, text: str) -> None:
        """Enter a warning."""
        self.tell(job, event_data(Noticed(text=text)))

    def tell(self, job: str, event: TaggedEvent, *, last: bool = False) -> int:
        """Enter an event, which is tagged; returns its number. `last`: the job has ended."""
        event |= {"number": self._queue.next_number(), "job": job}
        log = self._logs.setdefault(job, _Log())
        if event["event"] == "preview_made":  # each replaces the one before
            log.passing = [one for one in log.passing if one["event"] != "preview_made"]
        if last or event["event"] in SETTLES:
            log.passing = []
        (log.passing if event["event"] in PASSING else log.lasting).append(event)
        for listener in log.listeners:
            listener.append(event)
        log.ended = log.ended or last
        news, log.news = log.news, asyncio.Event()
        news.set()
        if last:
            ended = [one for one, its in self._logs.items() if its.ended]
            for old in ended[: max(0, len(ended) - ENDED)]:
                del self._logs[old]
        return event["number"]

    def latest(self, job: str, name: str) -> TaggedEvent | None:
        """The last passing event of a name; None: there was none, or its picture is there."""
        log = self._logs.get(job)
        return next((one for one in reversed(log.passing) if one["event"] == name), None) if log else None

    async def follow(self, job: str, after: int) -> AsyncGenerator[TaggedEvent | None]:
        """Events with numbers greater than `after`, until the job has ended; None where nothing happens for a while.

        Of a job that has a log.
        """
        log, mine = self._logs[job], deque[TaggedEvent](maxlen=BEHIND)
        ended = log.ended
        mine.extend(log.after(after))
        log.listeners.append(mine)  # from here on it misses nothing, however fast the next event replaces the last
        try:
            while True:
                while mine:
                    event = mine.popleft()
                    ended = ended or ended_by(event)
                    yield event
                if ended:
                    return
                try:
                    await asyncio.wait_for(log.news.wait(), HEARTBEAT)
                except TimeoutError:
                    yield None
        finally:
            log.listeners = [one for one in log.listeners if one is not mine]  # not `remove`: empty ones are equal


def ended_by(event: TaggedEvent) -> bool:
    """Whether it is a job's last one."""
    return event["event"] == "job_changed" and event["state"]["ended"] is not None
