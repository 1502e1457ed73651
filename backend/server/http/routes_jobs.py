"""The server's own routes: jobs with their events, refining, models, and the server itself."""

from __future__ import annotations

import json
import os
import re
from collections.abc import AsyncGenerator, Callable
from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Body, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from backend.errors import UsageError
from backend.presets import default_name
from backend.requests import check_prompt, find_model
from backend.server.http.intake import check_names, model_rows, owners_plan, take_in
from backend.server.service import Service
from backend.server.wire import wish_data, wish_from
from backend.types import ReasonerMode
from backend.wish import Wish

if TYPE_CHECKING:
    from backend.reasoner.refine import RewritePlan

JOB_ID = re.compile(r"[0-9a-f]{8,32}")


class NewJob(BaseModel):
    """A job that is asked for."""

    model_config = ConfigDict(extra="forbid")

    wish: dict[str, Any] = Field(description="Fields as of `lens gen`, such as prompt, seeds, steps, size, preview.")
    output: str | dict[str, Any] | None = Field(
        None, description="A name below the server's folder, which may hold {slug}, {seed}, …; null: to be fetched."
    )
    id: str | None = Field(None, description="8 to 32 hexadecimal digits of the client's; twice the same is one job.")
    rewrite: dict[str, Any] | None = Field(None, description="Of the owner's own commands.")
    parent_id: str | None = Field(None, max_length=64, description="The record that the pictures come from.")
    relation: str | None = Field(None, max_length=32, description="How, for the history.")


class NewPlace(BaseModel):
    position: int = Field(ge=0, le=1_000_000, description="0 is the next.")


class Brief(BaseModel):
    prompt: str = Field(description="What to rewrite.")
    model: str | None = Field(None, description="Whose language model answers; null: the server's default.")
    rewrite: dict[str, Any] | None = Field(None, description="Of the owner's own commands.")


def make_router(service: Service, stop: Callable[[], None]) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["jobs"])
    _add_jobs(router, service)
    _add_server(router, service, stop)
    return router


def _add_jobs(router: APIRouter, service: Service) -> None:
    """What is asked about jobs: submitted, seen, followed, moved, cancelled."""

    @router.post("/jobs", status_code=201)
    async def submit(request: Request, new: NewJob) -> dict[str, Any]:
        """Put a job at the end of the queue."""
        if new.id is not None and not JOB_ID.fullmatch(new.id):
            raise UsageError("an id has 8 to 32 hexadecimal digits")
        wish = wish_from(new.wish)
        taken = await run_in_threadpool(
            take_in, wish, service.settings, folder=service.folder, owner=is_owner(request), output=new.output,
            rewrite=new.rewrite,
        )  # fmt: skip
        job = service.submit(
            taken.resolved, taken.output, wish_data(wish), job_id=new.id, rewrite=taken.rewrite,
            parent_id=new.parent_id, relation=new.relation, notes=taken.notes,
        )  # fmt: skip
        return job.data()

    @router.get("/jobs")
    async def jobs() -> dict[str, Any]:
        """Those that run or wait, in their order, then some that have ended, the last one first."""
        service.touch()
        return {"jobs": [job.data() for job in service.jobs()]}

    @router.get("/jobs/{job_id}")
    async def job(job_id: str) -> dict[str, Any]:
        return service.job(job_id).data()

    @router.post("/jobs/{job_id}/cancel")
    async def cancel(job_id: str) -> dict[str, Any]:
        """Stop a job after its current step; a second time: at once."""
        return (await service.cancel(job_id)).data()

    @router.post("/jobs/{job_id}/move")
    async def move(job_id: str, place: NewPlace) -> dict[str, Any]:
        """Give a waiting job another place."""
        return service.move(job_id, place.position).data()

    @router.get("/jobs/{job_id}/events", response_class=StreamingResponse)
    async def events(
        job_id: str, after: Annotated[int, Query(ge=0, le=1 << 60, description="The last event that is known.")] = 0
    ) -> StreamingResponse:
        """What happens, as server-sent events, until the job has ended."""
        service.job(job_id)  # an unknown one is an error, not an empty stream
        return StreamingResponse(_lines(service, job_id, after), media_type="text/event-stream", headers=NO_STORE)

    @router.get("/jobs/{job_id}/pictures/{index}", response_class=FileResponse)
    async def picture(job_id: str, index: int) -> FileResponse:
        """The file of one picture."""
        return FileResponse(service.picture_file(job_id, index), headers=NO_STORE)


def _add_server(router: APIRouter, service: Service, stop: Callable[[], None]) -> None:
    """What is asked beside the jobs: refining, the models, and the server itself."""

    @router.post("/refine")
    async def refine(request: Request, brief: Brief) -> dict[str, Any]:
        """What the reasoner makes of a request. A refusal is an error that names its rule.

        An endpoint is asked at once; the model's own reasoner answers after the job that is drawn.
        """
        plan, name, prompt = await run_in_threadpool(_plan_refine, service, brief, is_owner(request))
        return await service.refine(prompt, plan, name)

    @router.get("/models")
    async def models() -> dict[str, Any]:
        """The models on this disk, with what is drawn where nothing is said."""
        return {"object": "list", "data": await run_in_threadpool(model_rows)}

    @router.get("/status")
    async def status() -> dict[str, Any]:
        """What runs, what is in memory and until when."""
        return {"version": version("lens"), "pid": os.getpid(), **service.status()}

    @router.post("/unload")
    async def unload() -> dict[str, Any]:
        """Give back the memory of what does not draw at the moment."""
        await service.unload()
        return service.status()

    @router.post("/stop")
    async def stop_server(request: Request, body: Annotated[dict[str, Any] | None, Body()] = None) -> dict[str, Any]:
        """End the server: its owner may. Jobs that are not finished go on with the next one."""
        if not is_owner(request):
            raise UsageError("only its owner stops this server", hint="lens stop, on its machine")
        stop()
        return {"stopping": True}


NO_STORE = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


def is_owner(request: Request) -> bool:
    """Whether who asks has shown the owner's key."""
    return bool(request.state.owner)


def _plan_refine(service: Service, brief: Brief, owner: bool) -> tuple[RewritePlan, str, str]:
    """Who is asked, of which model, what. Raises UsageError, ModelMissingError."""
    from backend.reasoner.refine import make_plan

    prompt = check_prompt(brief.prompt, "prompt")
    if not owner:
        check_names(Wish(model=brief.model))
    plan = owners_plan(brief.rewrite, owner=owner)
    named = plan.model if plan is not None and plan.mode is ReasonerMode.local else brief.model
    found = find_model(named or service.settings.model or default_name())
    plan = plan or make_plan(service.settings.reasoner, found.preset, found.name, insist=True, files=found.files)
    if plan.mode is ReasonerMode.local:
        found.need_files()
    return plan, found.name, prompt


async def _lines(service: Service, job_id: str, after: int) -> AsyncGenerator[bytes]:
    """Server-sent events; a comment where there is nothing, so that both ends notice when the other is gone."""
    async for event in service.events(job_id, after):
        if event is None:
            yield b": nothing new\n\n"
        else:
            yield f"id: {event['number']}\ndata: {json.dumps(event)}\n\n".encode()
