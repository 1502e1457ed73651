"""The server without HTTP: one queue, whoever draws, and what is told about it.

All methods are called from one event loop.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backend.picture.outputs import OutputPlan
from backend.requests import ResolvedRequest
from backend.server.drawers import Drawer
from backend.server.feed import Feed
from backend.server.jobs import Job, JobState, UnknownJobError
from backend.server.pictures import Pictures
from backend.server.queue import Queue
from backend.server.runner import Disk, Runner
from backend.server.tasks import Task
from backend.settings import Settings
from backend.types import ReasonerMode

if TYPE_CHECKING:
    from backend.reasoner.refine import RewritePlan


class Service:
    """Takes jobs, has them drawn, and tells how it goes."""

    def __init__(
        self, settings: Settings, queue: Queue, drawers: Sequence[Drawer], pictures: Pictures, *, folder: Path,
        keep_alive: float | None, memory: int | None = None,
    ) -> None:  # fmt: skip
        """`folder`: where pictures go whose client may name no other. `keep_alive` and `memory` as of `Runner`."""
        self.settings, self.folder, self.keep_alive = settings, folder, keep_alive
        self.used = time.monotonic()  # when somebody last wanted something
        self._refining = 0  # questions to a reasoner that are not answered yet
        self._queue, self._feed = queue, Feed(queue)
        self._disk = Disk(pictures=pictures, thread=ThreadPoolExecutor(1, thread_name_prefix="pictures"))
        self._runners = [
            Runner(queue, self._feed, self._disk, drawer, keep_alive=keep_alive, memory=memory) for drawer in drawers
        ]
        self._tasks = list[asyncio.Task[None]]()

    async def start(self) -> None:
        """Take up what an earlier server left, and begin to draw."""
        for row in self._queue.running():
            self._queue.put_back(row.job.id)
        rows = self._queue.rows(ended=0)
        await self._disk.do(self._disk.pictures.sweep, {row.job.id for row in rows})
        for row in rows:
            kept = [dict(one.event) for one in self._queue.pictures(row.number)]
            self._feed.restore(event for event in kept if "number" in event)  # without: it was not written yet
            self._feed.tell_job(row)
        self._tasks = [asyncio.create_task(runner.run()) for runner in self._runners]

    async def stop(self) -> None:
        """End at once. What is drawn at the moment is drawn again by the next server; finished pictures are kept."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for runner in self._runners:
            await runner.unload()
        await self._disk.do(self._disk.pictures.close)
        self._disk.thread.shutdown()
        self._queue.close()

    def touch(self) -> None:
        """Somebody is there."""
        self.used = time.monotonic()

    @property
    def idle(self) -> bool:
        """Whether nothing runs, nothing waits and nobody waits for a reasoner."""
        return (
            not self._refining
            and all(runner.running is None for runner in self._runners)
            and self._queue.next() is None
        )

    async def unload(self) -> None:
        """Give back the memory of every drawer that is not drawing."""
        for runner in self._runners:
            if runner.running is None:
                await runner.unload()

    def status(self) -> dict[str, Any]:
        """What runs, what is in memory and until when."""
        running = sum(runner.running is not None for runner in self._runners)
        return {
            "drawers": [runner.status() for runner in self._runners], "running": running,
            "waiting": len(self._queue.rows(ended=0)) - running, "keep_alive": self.keep_alive,
            "folder": str(self.folder),
        }  # fmt: skip

    # ----------------------------------------------------------------------------------------------------------- jobs

    def submit(
        self, resolved: ResolvedRequest, output: OutputPlan, wish: Mapping[str, Any], *, job_id: str | None = None,
        rewrite: RewritePlan | None = None, parent_id: str | None = None, relation: str | None = None,
        notes: Sequence[str] = (),
    ) -> Job:  # fmt: skip
        """Enter a job. One of the same id is not entered twice. Raises ModelMissingError, BusyError."""
        resolved.need_files()
        request, job_id = resolved.request, job_id or secrets.token_hex(8)
        task = Task(
            request=request, output=output, rewrite=rewrite, parent_id=parent_id, relation=relation,
            asked=datetime.now().isoformat(), notes=tuple(notes),
        )  # fmt: skip
        row = self._queue.add(
            job_id, wish, task.data(), prompt=request.original_prompt or request.prompt, model=request.model,
            total=len(request.seeds),
        )  # fmt: skip
        if not self._feed.has(job_id) and not row.job.state.ended:
            self._feed.tell_job(row)
            for note in notes:
                self._feed.notice(job_id, note)
        self.touch()
        for runner in self._runners:
            runner.work.set()
        return row.job

    def job(self, job_id: str) -> Job:
        """Raises UnknownJobError."""
        return self._queue.row(job_id).job

    def jobs(self) -> list[Job]:
        """Those that run or wait, in their order, then some that have ended, the last one first."""
        return [row.job for row in self._queue.rows()]

    def move(self, job_id: str, position: int) -> Job:
        """Give a waiting job another place. Raises UsageError where it does not wait."""
        row = self._queue.move(job_id, position)
        self._feed.tell_job(row)
        return row.job

    async def cancel(self, job_id: str) -> Job:
        """Stop a job after its current step; a second time, at once. One that has ended stays as it is."""
        row = self._queue.row(job_id)
        for runner in self._runners:
            if runner.running is not None and runner.running.row.job.id == job_id:
                again, runner.running.cancelled = runner.running.cancelled, True
                await runner.drawer.cancel(job_id, hard=again)
                return self.job(job_id)
        if row.job.state is JobState.queued:
            self._feed.tell_job(self._queue.end(job_id, JobState.cancelled, None))
        return self.job(job_id)

    async def events(self, job_id: str, after: int) -> AsyncGenerator[dict[str, Any] | None]:
        """As `Feed.follow`; of a job that ended long ago, its pictures and its end. Raises UnknownJobError."""
        row = self._queue.row(job_id)
        if self._feed.has(job_id):
            async for event in self._feed.follow(job_id, after):
                yield event
            return
        for kept in self._queue.pictures(row.number):
            if kept.event.get("number", 0) > after:
                yield dict(kept.event)
        number = max(after, self._queue.told(job_id))
        yield {"number": number, "job": job_id, "event": "job_changed", "state": row.job.data()}

    def latest(self, job_id: str, name: str) -> dict[str, Any] | None:
        """The last event of a name, of the picture at hand; None: there was none."""
        return self._feed.latest(job_id, name)

    def picture_file(self, job_id: str, place: int) -> Path:
        """The file of a picture. Raises UnknownJobError where there is none."""
        for kept in self._queue.pictures(self._queue.row(job_id).number):
            if kept.place == place and kept.path is not None and kept.path.is_file():
                return kept.path
        raise UnknownJobError(f"the job {job_id[:40]!r} has no picture {place}, or not any more")

    async def read_picture(self, job_id: str, place: int) -> bytes:
        """The bytes of a picture's file. Raises UnknownJobError where there is none."""
        return await self._disk.do(self.picture_file(job_id, place).read_bytes)

    def spool_of(self, job_id: str) -> Path:
        """The folder of what came with a job, and of its pictures that have no name of their own."""
        return self._disk.pictures.spool / job_id

    async def drop_spool(self, job_id: str) -> None:
        """Its pictures were fetched, and what came with it is not needed any more."""
        await self._disk.do(self._disk.pictures.drop, job_id)

    async def refine(self, prompt: str, plan: RewritePlan, model: str) -> dict[str, Any]:
        """One decision of the reasoner. An endpoint is asked at once; the model in memory after the job that it draws.

        Raises RefusedError, and what the reasoner raises.
        """
        self.touch()
        self._refining += 1
        try:
            if plan.mode is ReasonerMode.api:
                return await asyncio.to_thread(ask_endpoint, self.settings, prompt, plan)
            order = {
                "do": "refine", "job": secrets.token_hex(8), "prompt": prompt, "rewrite": asdict(plan), "model": model
            }  # fmt: skip
            return await self._runners[0].refine(order)
        finally:
            self._refining -= 1
            self.touch()


def ask_endpoint(settings: Settings, prompt: str, plan: RewritePlan) -> dict[str, Any]:
    """What the endpoint of the settings makes of a request: prompt, original, expander, cached. No model is opened."""
    from backend.reasoner.refine import Refused
    from backend.session import Session

    with Session(settings) as session:
        decision = session.rewrite(prompt, plan, None, on_event=lambda event: None)
    if isinstance(decision, Refused):
        raise decision.error()
    return {
        "prompt": decision.prompt, "original": decision.original, "expander": asdict(decision.expander),
        "cached": decision.cached,
    }  # fmt: skip
