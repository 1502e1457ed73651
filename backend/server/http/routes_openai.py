"""OpenAI's images: `/v1/images/generations` and `/v1/images/edits`, plain and as a stream with partial images.

Seed, steps, guidance and negative prompt are fields beside OpenAI's own, where the SDK's `extra_body` puts them.
Source: OpenAI's API reference, images and image streaming.
"""

from __future__ import annotations

import base64
import io
import json
import secrets
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Form, Request, UploadFile
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from backend.errors import LensError, UsageError
from backend.server.http.direct import draw, events, take, take_with
from backend.server.http.intake import Intake
from backend.server.http.routes_jobs import NO_STORE
from backend.server.http.uploads import MOST_BYTES, keep_edit
from backend.server.jobs import error_data
from backend.server.service import Service
from backend.types import Fit, ImageFormat, Preview
from backend.wish import Wish


class ImageRequest(BaseModel):
    """OpenAI's fields, then ours. Others are let pass: clients send what other servers know."""

    model_config = ConfigDict(extra="ignore")

    prompt: str
    model: str | None = None
    n: Annotated[int | None, Field(ge=1, le=10)] = None
    size: Annotated[str | None, Field(max_length=32, description="WxH, or auto.")] = None
    output_format: Literal["png", "jpeg", "webp"] | None = None
    output_compression: Annotated[int | None, Field(ge=0, le=100)] = None
    response_format: Literal["b64_json", "url"] | None = None
    stream: bool | None = None
    partial_images: Annotated[int | None, Field(ge=0, le=3)] = None

    seed: Annotated[int | None, Field(ge=-1, lt=2**63, description="Of the first picture; -1 draws one.")] = None
    steps: int | None = None
    guidance: float | None = None
    cfg_scale: Annotated[float | None, Field(description="Guidance, by another name.")] = None
    negative_prompt: str | None = None
    loras: Annotated[list[str] | None, Field(max_length=16, description="NAME or NAME=0.8")] = None
    preview: Annotated[Preview | None, Field(description="What partial images are made with.")] = None
    output: Annotated[str | None, Field(description="Keep the pictures, below the server's folder.")] = None

    def wish(self) -> Wish:
        kind = None if self.output_format is None else ImageFormat(self.output_format)
        quality = self.output_compression if kind not in (None, ImageFormat.png) else None
        streams = bool(self.stream and self.partial_images)
        return Wish(
            prompt=self.prompt, model=self.model, num=self.n, size=None if self.size in (None, "auto") else self.size,
            seeds=None if self.seed is None else (str(self.seed),), steps=self.steps,
            guidance=self.guidance if self.guidance is not None else self.cfg_scale,
            negative_prompt=self.negative_prompt, loras=None if self.loras is None else tuple(self.loras),
            format=kind, quality=None if quality is None else max(1, quality),
            preview=(self.preview or Preview.proj) if streams else None,
        )  # fmt: skip


class EditRequest(ImageRequest):
    """The same fields in a multipart form, with the picture. Of more than one picture none is taken."""

    image: list[UploadFile] | None = None
    images: Annotated[list[UploadFile] | None, Field(alias="image[]", description="The image, by another name.")] = None
    mask: Annotated[UploadFile | None, Field(description="Transparent, or white, where it is drawn anew.")] = None
    strength: Annotated[float | None, Field(description="How much is drawn anew, 0 to 1: 0.6, with a mask 1.")] = None
    fit: Annotated[Fit | None, Field(description="What a size means: scale, or extend around the picture.")] = None
    lora_list: Annotated[list[str] | None, Field(alias="loras[]", max_length=16)] = None

    def wish(self) -> Wish:
        loras = self.loras or self.lora_list
        fit = self.fit or (Fit.scale if self.size not in (None, "auto") else None)
        return replace(super().wish(), strength=self.strength, fit=fit, loras=None if loras is None else tuple(loras))

    async def pictures(self) -> tuple[bytes, bytes | None]:
        """(image, mask) as they came. Raises UsageError."""
        sent = [*(self.image or ()), *(self.images or ())]
        if len(sent) != 1:
            raise UsageError(f"one image is edited at a time, not {len(sent)}", hint="send one file as image")
        read = [None if one is None else await one.read(MOST_BYTES + 1) for one in (sent[0], self.mask)]
        return read[0] or b"", read[1]


@dataclass(frozen=True, kw_only=True)
class Order:
    """A job that is about to be entered, and how its answer calls its events."""

    job_id: str
    wish: Wish
    taken: Intake
    kind: str  # image_generation, image_edit


def make_router(service: Service) -> APIRouter:
    router = APIRouter(prefix="/v1/images", tags=["OpenAI"])

    @router.post("/generations", response_model=None)
    async def generations(request: Request, wanted: ImageRequest) -> JSONResponse | StreamingResponse:
        """Draw pictures."""
        wish = wanted.wish()
        taken = await take(service, request, wish, output=wanted.output)
        order = Order(job_id=secrets.token_hex(8), wish=wish, taken=taken, kind="image_generation")
        return await answer(service, request, wanted, order)

    @router.post("/edits", response_model=None)
    async def edits(
        request: Request, wanted: Annotated[EditRequest, Form(media_type="multipart/form-data")]
    ) -> JSONResponse | StreamingResponse:
        """Draw pictures from a picture: all of it, or what is transparent in the mask or in the picture itself."""
        wish, job_id = wanted.wish(), secrets.token_hex(8)
        image, mask = await wanted.pictures()
        keep = partial(keep_edit, image=image, mask=mask)
        taken = await take_with(service, request, wish, job_id, keep, output=wanted.output)
        order = Order(job_id=job_id, wish=wish, taken=taken, kind="image_edit")
        return await answer(service, request, wanted, order)

    return router


async def answer(
    service: Service, request: Request, wanted: ImageRequest, order: Order
) -> JSONResponse | StreamingResponse:
    """The pictures of an order, in the form that was asked for."""
    taken = order.taken
    if wanted.stream:
        told = Told(wanted, order)
        return StreamingResponse(
            _stream(service, request, order, told), media_type="text/event-stream", headers=NO_STORE
        )
    job, pictures = await draw(service, request, order.wish, taken, order.job_id)
    rows = [
        {
            "b64_json": base64.b64encode(one.data).decode(),
            "revised_prompt": one.event["record"]["prompt"],
            "seed": one.event["seed"],
        }
        for one in pictures
    ]
    shape = f"{taken.resolved.request.width}x{taken.resolved.request.height}"
    return JSONResponse(
        {"created": int(job.created), "data": rows, "size": shape, "output_format": str(taken.output.format),
         "background": "opaque", "quality": "auto", "warnings": list(taken.notes)}
    )  # fmt: skip


class Told:
    """What every event of a stream says, and which previews become partial images: as many as asked for, evenly."""

    def __init__(self, wanted: ImageRequest, order: Order) -> None:
        self.count, taken = wanted.partial_images or 0, order.taken
        self.format, self._kind = taken.output.format, order.kind
        size = f"{taken.resolved.request.width}x{taken.resolved.request.height}"
        self.common = {
            "size": size, "quality": "auto", "background": "opaque", "output_format": str(self.format),
            "created_at": int(time.time()),
        }  # fmt: skip
        self.sent = 0  # of the picture at hand

    def is_due(self, step: int, total: int) -> bool:
        """Whether the preview after `step` of `total` is sent."""
        return self.sent < self.count and step * (self.count + 1) >= total * (self.sent + 1)

    def line(self, name: str, **more: Any) -> bytes:
        kind = f"{self._kind}.{name}"
        return f"event: {kind}\ndata: {json.dumps({'type': kind, **self.common, **more})}\n\n".encode()


async def _stream(service: Service, request: Request, order: Order, told: Told) -> AsyncGenerator[bytes]:
    """Partial images and pictures as server-sent events; an error is one as well, for the answer has begun."""
    try:
        async for event in events(service, request, order.wish, order.taken, order.job_id):
            if event["event"] == "preview_made" and told.is_due(event["step"], event["total"]):
                image = await run_in_threadpool(_as_format, event["png"], told.format)
                yield told.line("partial_image", partial_image_index=told.sent, b64_json=image)
                told.sent += 1
            elif event["event"] == "picture_saved":
                data = await service.read_picture(order.job_id, event["index"])
                more = {"revised_prompt": event["record"]["prompt"], "seed": event["seed"]}
                yield told.line("completed", b64_json=base64.b64encode(data).decode(), **more)
                told.sent = 0
            elif event["event"] == "job_changed" and event["state"]["error"] is not None:
                yield _failed(event["state"]["error"])
    except LensError as error:
        yield _failed(error_data(error))


def _failed(error: dict[str, Any]) -> bytes:
    body = {"type": "error", "error": {**error, "type": "server_error", "param": None}}
    return f"event: error\ndata: {json.dumps(body)}\n\n".encode()


def _as_format(png: str, format: ImageFormat) -> str:  # noqa: A002
    """A preview's PNG in the format that the stream states."""
    if format is ImageFormat.png:
        return png
    from PIL import Image

    buffer = io.BytesIO()
    with Image.open(io.BytesIO(base64.b64decode(png))) as image:
        image.save(buffer, format=format.upper())
    return base64.b64encode(buffer.getvalue()).decode()
