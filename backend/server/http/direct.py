"""Pictures for a client that waits for them with the same request: OpenAI's and A1111's routes.

Such a job belongs to its connection: where the client goes away, nobody could fetch what is drawn, and it is cancelled.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import Request
from fastapi.concurrency import run_in_threadpool

from backend.errors import CancelledError
from backend.server.http.intake import Intake, take_in
from backend.server.http.uploads import Uploads
from backend.server.jobs import Job, JobState, UnknownJobError, error_from
from backend.server.service import Service
from backend.server.wire import wish_data
from backend.wish import Wish

_closing = set[asyncio.Task[Any]]()  # a task that nobody refers to may be collected while it runs


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One finished picture of a direct job."""

    event: dict[str, Any]  # picture_saved
    data: bytes  # of its file


async def take(service: Service, request: Request, wish: Wish, *, output: str | None = None) -> Intake:
    """The wish, checked; see `take_in`."""
    owner = bool(request.state.owner)
    return await run_in_threadpool(take_in, wish, service.settings, folder=service.folder, owner=owner, output=output)


async def take_with(
    service: Service, request: Request, wish: Wish, job_id: str, keep: Callable[[Path], Uploads], *,
    output: str | None = None,
) -> Intake:  # fmt: skip
    """The same of a wish with pictures, which `keep` writes into the folder that it is given: the job's."""
    owner = bool(request.state.owner)

    def check() -> Intake:
        uploads = keep(service.spool_of(job_id))
        return take_in(wish, service.settings, folder=service.folder, owner=owner, output=output, uploads=uploads)

    try:
        return await run_in_threadpool(check)
    except BaseException:
        _later(service.drop_spool(job_id))
        raise


async def draw(service: Service, request: Request, wish: Wish, taken: Intake, job_id: str) -> tuple[Job, list[Picture]]:
    """All pictures of a wish. Raises the error that ended the job, unless some pictures are there."""
    pictures = list[Picture]()
    async for event in events(service, request, wish, taken, job_id):
        if event["event"] == "picture_saved":
            pictures.append(Picture(event=event, data=await service.read_picture(job_id, event["index"])))
    job = service.job(job_id)
    if job.state is not JobState.done and not pictures:
        raise CancelledError("the job was cancelled") if job.state is JobState.cancelled else error_from(job.error)
    return job, pictures


async def events(
    service: Service, request: Request, wish: Wish, taken: Intake, job_id: str
) -> AsyncGenerator[dict[str, Any]]:
    """Enter a job and tell what happens to it. Raises BusyError and ModelMissingError before the first event."""
    try:
        job = service.submit(
            taken.resolved, taken.output, wish_data(wish), job_id=job_id, rewrite=taken.rewrite, notes=taken.notes
        )  # fmt: skip
        async for event in service.events(job.id, 0):
            if await request.is_disconnected():
                return
            if event is not None:
                yield event
    finally:
        _later(_leave(service, job_id))


async def _leave(service: Service, job_id: str) -> None:
    """Cancel a job that has not ended; then what is in the spool of it has nobody who would want it."""
    with suppress(UnknownJobError):  # it was never entered, or is forgotten
        await service.cancel(job_id)
        async for _ in service.events(job_id, 0):
            pass
    await service.drop_spool(job_id)


def _later(call: Any) -> None:
    """In a task of its own: this one may be about to be cancelled."""
    task = asyncio.get_running_loop().create_task(call)
    _closing.add(task)
    task.add_done_callback(_closing.discard)
