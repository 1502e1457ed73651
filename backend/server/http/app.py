"""The server's HTTP: one app over one `Service`. FastAPI is imported here and in the routes only.

Every error is one object, which our own client, OpenAI's and A1111's each find their words in.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from difflib import get_close_matches
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from backend.errors import LensError, shown
from backend.server.http import routes_a1111, routes_jobs, routes_openai
from backend.server.http.access import Access, Gate
from backend.server.jobs import error_data
from backend.server.place import proof
from backend.server.service import Service

# HTTP's word for an error of ours.
STATUS = {
    "usage": 400, "untrusted": 400, "refused": 400, "unknown_job": 404, "model_not_found": 404, "model_missing": 404,
    "busy": 429, "network": 502, "timeout": 504, "out_of_memory": 507, "file": 507, "cancelled": 499,
}  # fmt: skip

# Where a picture is asked for, by how the paths of a dialect begin.
_DRAWS = {
    "/v1": ["/v1/images/generations", "/v1/images/edits", "/v1/jobs"],
    "/sdapi": ["/sdapi/v1/txt2img", "/sdapi/v1/img2img"],
}


def make_app(service: Service, access: Access, *, stop: Callable[[], None]) -> FastAPI:
    """The app. `stop` is called where a client asks the server to end."""

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncGenerator[None]:
        await service.start()
        yield
        await service.stop()

    app = FastAPI(
        title="lens", version=version("lens"), lifespan=life, docs_url=None, redoc_url=None,
        description="Pictures drawn by a model that stays in memory: jobs of our own, OpenAI's images, A1111's subset.",
    )  # fmt: skip
    app.add_middleware(Gate, access=access)
    app.add_exception_handler(LensError, _known)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _plain)

    @app.get("/health", tags=["server"])
    async def health(nonce: str | None = None) -> dict[str, Any]:
        """Whether the server is there. With a nonce: what only who knows its owner's key can answer."""
        told = {"status": "ok", "version": version("lens"), "pid": os.getpid()}
        return told if nonce is None else told | {"proof": proof(access.owner_key, nonce[:64])}

    app.include_router(routes_jobs.make_router(service, stop))
    app.include_router(routes_openai.make_router(service))
    app.include_router(routes_a1111.make_router(service))
    return app


def error_answer(
    status: int, error: dict[str, Any], param: str | None = None, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """The one form of an error."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    body = {"error": {**error, "type": kind, "param": param}, "detail": error["message"]}
    return JSONResponse(body, status, {"Retry-After": "2"} if status == 429 else headers)


async def _known(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, LensError)
    status = STATUS.get(error.code, 502 if error.exit_code == 3 else 500)
    return error_answer(status, error_data(error))


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    """What FastAPI itself finds wrong, in one line."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part != "body")
    told = {"code": "usage", "message": f"{where}: {first['msg']}"[:500], "hint": None}
    sent = request.headers.get("content-type", "")
    if not where:  # the body as a whole
        told["message"] = f"the body is no JSON object: {first['msg']}"[:500]
        if "json" not in sent.partition(";")[0]:
            # Never read as JSON all the same: browsers send other types across sites without asking.
            told["message"] = f"the body was sent as {shown(sent) if sent else 'no type'}, and JSON is read here"
            told["hint"] = "curl -H 'Content-Type: application/json' -d '{\"prompt\": \"a blue fish\"}'"
    return error_answer(400, told, where or None)


async def _plain(request: Request, error: Exception) -> JSONResponse:
    """What the router found wrong: no such path, or a path that takes another method."""
    assert isinstance(error, HTTPException)
    path, told = shown(request.url.path), {"code": "http", "message": str(error.detail), "hint": None}
    if error.status_code == 404:
        told |= {"code": "unknown_path", "message": f"there is no {path} here", "hint": _nearest(request)}
    elif error.status_code == 405:
        methods = (error.headers or {}).get("Allow", "")
        message = f"{path} takes no {shown(request.method)}"
        told |= {"code": "wrong_method", "message": message, "hint": f"it takes {methods}" if methods else None}
    return error_answer(error.status_code, told, headers=error.headers)


def _nearest(request: Request) -> str:
    """The paths that are most like what was asked for, or that draw in the same dialect; and where all are listed."""
    asked = request.url.path[:200]
    known: list[str] = [*request.app.openapi()["paths"]]
    near = get_close_matches(asked, known, n=2, cutoff=0.75)
    if not near:
        front = next((one for one in _DRAWS if asked.startswith(one)), None)
        near = _DRAWS[front] if front else [paths[0] for paths in _DRAWS.values()]
    return f"{' or '.join(near)}; GET /openapi.json lists all"
