"""Jobs, one after another, by one drawer: from where a job stands to its end.

Light ring: standard library only.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from backend.errors import CancelledError, LensError
from backend.fields import object_from
from backend.server.drawers import Drawer, WorkerLostError
from backend.server.feed import Feed
from backend.server.jobs import JobState, error_data, error_from
from backend.server.pictures import Pictures
from backend.server.queue import Queue, Row
from backend.server.tasks import Task, task_from
from backend.types import GenerationRequest

TRIES = 3  # of a job whose worker, or server, ends in the middle of it
log = logging.getLogger("lens.server")
Answer = TypeVar("Answer")


@dataclass(frozen=True, kw_only=True)
class Disk:
    """Pictures are written in a thread of their own: a disk may be slow."""

    pictures: Pictures
    thread: ThreadPoolExecutor

    async def do(self, call: Callable[..., Answer], *words: Any) -> Answer:
        return await asyncio.get_running_loop().run_in_executor(self.thread, partial(call, *words))


@dataclass(kw_only=True)
class Running:
    """A job while it runs."""

    row: Row
    task: Task
    first: int = 0  # pictures that were there when it began
    cancelled: bool = False
    failure: LensError | None = None  # of the server's own: a full disk, a lost worker
    error: Mapping[str, Any] | None = None  # what the worker said at its end


class Runner:
    def __init__(
        self, queue: Queue, feed: Feed, disk: Disk, drawer: Drawer, *, keep_alive: float | None, memory: int | None
    ) -> None:
        """`keep_alive`: seconds that an idle model stays in memory, None: for ever. `memory`: bytes that it may hold
        while idle, None: any."""
        self._queue, self._feed, self._disk, self.drawer = queue, feed, disk, drawer
        self._keep_alive, self._memory = keep_alive, memory
        self.running: Running | None = None
        self.model: str | None = None  # of the last job; None: nothing is in memory
        self.since = time.time()  # when its last job ended, Unix time
        self.work = asyncio.Event()
        self._refining = 0  # questions to the reasoner that are not answered yet

    async def run(self) -> None:
        """For ever."""
        while True:
            row = self._queue.next()
            if row is None:
                self.work.clear()
                await self._rest()
                continue
            try:
                await self._carry_out(row)
            except Exception as error:  # one bad job ends no other
                log.exception("job %s", row.job.id)
                known = error if isinstance(error, LensError) else LensError(f"internal error: {error}"[:500])
                self._feed.tell_job(self._queue.end(row.job.id, JobState.failed, error_data(known)))

    async def unload(self) -> None:
        """Give back the drawer's memory."""
        self.model = None
        await self.drawer.unload()

    def status(self) -> dict[str, Any]:
        """What it does, what lies in its memory and until when."""
        until = None if self._keep_alive is None or self.running else self.since + self._keep_alive
        job = None if self.running is None else self.running.row.job.id
        return {**self.drawer.status(), "model": self.model, "job": job, "until": until}

    async def _rest(self) -> None:
        """Until there is work; what lies in memory longer than it may is given back."""
        if self._memory is not None and (self.drawer.status()["resident"] or 0) > self._memory:
            await self.unload()
        try:
            await asyncio.wait_for(self.work.wait(), self._keep_alive)
        except TimeoutError:
            if not self._refining:
                await self.unload()
                await self.work.wait()

    async def refine(self, order: Mapping[str, Any]) -> dict[str, Any]:
        """The reasoner's rewrite, after the job that runs. Raises the error that the order ended with."""
        self._refining, answer = self._refining + 1, dict[str, Any]()
        try:
            async for event in self.drawer.carry_out(order):
                if event["event"] == "prompt_rewritten":
                    answer = {name: event[name] for name in ("prompt", "original", "expander", "cached")}
                if event["event"] == "finished" and event["error"] is not None:
                    raise error_from(event["error"])
        finally:
            self._refining, self.since, self.model = self._refining - 1, time.time(), self.model or str(order["model"])
            self.work.set()  # the time that it is kept begins anew
        return answer

    # -------------------------------------------------------------------------------------------------------- one job

    async def _carry_out(self, row: Row) -> None:
        row = self._queue.start(row.job.id)
        running = self.running = Running(row=row, task=task_from(row.task))
        try:
            self._feed.tell_job(row)
            running.first = await self._settled(running)
            if running.first < row.job.total:
                self.model = running.task.request.model
                async for event in self.drawer.carry_out(running.task.order(row.job.id, running.first)):
                    await self._hear(running, event)
            self._end(running)
        except WorkerLostError as error:
            log.warning("job %s: %s", row.job.id, error)
            self.model = None
            if row.tries < TRIES and not running.cancelled:
                self._feed.notice(row.job.id, f"{error}; the job goes on with another")
                self._feed.tell_job(self._queue.put_back(row.job.id))
            else:
                running.failure = None if running.cancelled else error
                self._end(running)
        except asyncio.CancelledError:  # the server ends: the next one goes on
            self._queue.put_back(row.job.id)
            raise
        finally:
            self.running, self.since = None, time.time()

    async def _settled(self, running: Running) -> int:
        """How many pictures are there already. Of one that was being written when a server ended: whether it was."""
        kept = self._queue.pictures(running.row.number)
        for one in kept:
            if one.sha256 is not None and one.path is None:
                path = await self._disk.do(self._disk.pictures.find_written, one)
                if path is None:
                    self._queue.drop(running.row.number, one.place)
                    return one.place
                await self._keep(running, one.place, path, dict(one.event))
        return len(kept)

    async def _hear(self, running: Running, event: dict[str, Any]) -> None:
        """What a worker says, in the job's own count of pictures."""
        for key in ("image", "index"):
            if event.get(key) is not None:
                event[key] += running.first
        match event["event"]:
            case "finished":
                running.error = event["error"]
            case "picture_saved":
                await self._save(running, event)
            case "picture_failed":
                number = self._feed.tell(running.row.job.id, event)
                self._queue.failed(running.row.number, event["index"], event, number)
            case "drawing_started":
                request = object_from(event["request"], GenerationRequest)
                request = replace(request, seeds=running.task.request.seeds)
                if running.task.rewrite is not None:  # a job that goes on is not rewritten again
                    running.task = replace(running.task, request=request, rewrite=None)
                    self._queue.change_task(running.row.job.id, running.task.data())
                self._feed.tell(running.row.job.id, {**event, "request": asdict(request)})
            case _:
                self._feed.tell(running.row.job.id, event)

    async def _save(self, running: Running, event: dict[str, Any]) -> None:
        """Enter the picture, write it, enter where. A disk that takes none ends the job."""
        task, number, place = running.task, running.row.number, int(event["index"])
        data, digest = await self._disk.do(_decoded, event.pop("file"))
        if task.output.template is None:
            wished = self._disk.pictures.spooled(running.row.job.id, place, task.output.suffix)
        else:
            wished = task.output.path(task.request, place, task.time)
        self._queue.intend(number, place, digest, wished, event)
        try:
            path = await self._disk.do(self._disk.pictures.write, wished, data)
        except LensError as error:
            self._queue.drop(number, place)
            running.failure = running.failure or error
            await self.drawer.cancel(running.row.job.id, hard=False)
            return
        await self._keep(running, place, path, event)

    async def _keep(self, running: Running, place: int, path: Path, event: dict[str, Any]) -> None:
        """A picture that has its file enters the history, the events and the queue."""
        output, job = running.task.output, running.row.job.id
        event["path"] = None if output.template is None else str(path)
        if output.template is not None and output.history:
            loop = asyncio.get_running_loop()

            def warn(text: str) -> None:
                loop.call_soon_threadsafe(self._feed.notice, job, text)

            relation = running.task.relation
            await self._disk.do(self._disk.pictures.enter, event["record"], path, relation, warn)
        number = self._feed.tell(job, event)
        self._queue.saved(running.row.number, place, path, event, number)

    def _end(self, running: Running) -> None:
        """How the job has ended, by what of it is there."""
        job, error = self._queue.row(running.row.job.id).job, running.error
        complete = job.made + job.failures == job.total
        stopped = running.cancelled or (error is not None and error["code"] == CancelledError.code)
        if running.failure is not None:
            state, error = JobState.failed, error_data(running.failure)
        elif stopped and not complete:
            state, error = JobState.cancelled, None
        elif error is not None and not stopped:
            state = JobState.failed
        elif not job.made:  # each picture came to nothing by itself
            failed = next(kept.event for kept in self._queue.pictures(running.row.number))
            state, error = JobState.failed, {name: failed[name] for name in ("code", "message", "hint")}
        else:
            state, error = JobState.done, None
        self._feed.tell_job(self._queue.end(job.id, state, error))


def _decoded(text: str) -> tuple[bytes, str]:
    """A picture's file, and its SHA-256."""
    data = base64.b64decode(text)
    return data, hashlib.sha256(data).hexdigest()
