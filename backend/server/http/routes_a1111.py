"""The part of AUTOMATIC1111's API that its clients need: `/sdapi/v1/txt2img`, `img2img`, and what they ask before.

Source: the field names of that program's own OpenAPI description, and what `webuiapi`, Open WebUI and SillyTavern send.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import secrets
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, ConfigDict, Field

from backend import presets
from backend.errors import UsageError, shown
from backend.paths import loras_dir
from backend.picture.metadata import a1111_text
from backend.server.http.direct import Picture, draw, take, take_with
from backend.server.http.intake import Intake, model_rows
from backend.server.http.uploads import Uploads, keep_img2img
from backend.server.service import Service
from backend.types import Fit, ImageFormat, Preview, Sampler
from backend.wish import Wish

# What that program calls our samplers: the first is the name, each of them is understood.
SAMPLER_NAMES = {Sampler.euler: ("Euler", "euler", "k_euler"), Sampler.dpmpp_2m: ("DPM++ 2M", "dpmpp_2m", "k_dpmpp_2m")}
LORA = re.compile(r"<lora:([^:<>/\\]{1,100})(?::(-?[0-9.]{1,8}))?>")
CROP = 1  # of its resize modes: ours
USUAL = 512  # pixels a side: what its clients send where nobody chose


class TextToImage(BaseModel):
    """The fields that mean something here; others are let pass."""

    model_config = ConfigDict(extra="ignore")

    prompt: str = ""
    negative_prompt: str | None = None
    seed: Annotated[int, Field(ge=-1, lt=2**63)] = -1
    sampler_name: str | None = None
    sampler_index: str | None = None
    batch_size: Annotated[int, Field(ge=1, le=100)] = 1
    n_iter: Annotated[int, Field(ge=1, le=100)] = 1
    steps: int | None = None
    cfg_scale: float | None = None
    width: int | None = None
    height: int | None = None
    override_settings: dict[str, Any] | None = None
    send_images: bool = True
    save_images: bool = False


class ImageToImage(TextToImage):
    init_images: Annotated[list[str], Field(description="One picture, as base64.")] = []
    denoising_strength: Annotated[float, Field(description="How much is drawn anew, 0 to 1.")] = 0.75
    mask: Annotated[str | None, Field(description="A picture of the same size as base64: white is drawn anew.")] = None
    inpainting_mask_invert: int = 0
    inpaint_full_res: bool = False
    resize_mode: int = 0

    def keep(self, folder: Path) -> Uploads:
        """The pictures, as files in a folder. Raises UsageError."""
        if len(self.init_images) != 1:
            raise UsageError(f"init_images holds {len(self.init_images)} pictures: one is drawn from at a time")
        mask = None if self.mask is None else _decoded(self.mask, "mask")
        return keep_img2img(
            folder, _decoded(self.init_images[0], "init_images"), mask, invert=bool(self.inpainting_mask_invert)
        )


class Options(BaseModel):
    model_config = ConfigDict(extra="ignore")

    sd_model_checkpoint: str | None = None


class State:
    """What this API remembers between requests: the model it was switched to, and its jobs that are not done."""

    def __init__(self, service: Service) -> None:
        self.model = service.settings.model or presets.default_name()
        self.jobs = list[str]()


def make_router(service: Service) -> APIRouter:
    router, state = APIRouter(prefix="/sdapi/v1", tags=["A1111"]), State(service)

    @router.post("/txt2img")
    async def txt2img(request: Request, wanted: TextToImage) -> dict[str, Any]:
        """Draw pictures."""
        wish, notes = make_wish(wanted, state.model)
        taken = await take(service, request, wish, output=output_of(wanted))
        return await answer(request, wanted, wish, taken, secrets.token_hex(8), notes)

    @router.post("/img2img")
    async def img2img(request: Request, wanted: ImageToImage) -> dict[str, Any]:
        """Draw pictures from a picture."""
        wish, notes = make_wish(wanted, state.model)
        wish, job_id = replace(wish, strength=wanted.denoising_strength), secrets.token_hex(8)
        if wish.width is not None or wish.height is not None:
            wish = replace(wish, fit=Fit.scale)
            if wanted.resize_mode != CROP:
                notes.append(f"resize_mode {wanted.resize_mode} is not here: {CROP} is used, which crops")
        if wanted.mask is not None and wanted.inpaint_full_res:
            notes.append("inpaint_full_res is not here: the whole picture is looked at")
        taken = await take_with(service, request, wish, job_id, wanted.keep, output=output_of(wanted))
        return await answer(request, wanted, wish, taken, job_id, notes)

    def output_of(wanted: TextToImage) -> str | None:
        return Path(service.settings.output.template).name if wanted.save_images else None

    async def answer(
        request: Request, wanted: TextToImage, wish: Wish, taken: Intake, job_id: str, notes: list[str]
    ) -> dict[str, Any]:
        state.jobs.append(job_id)
        try:
            _, pictures = await draw(service, request, wish, taken, job_id)
        finally:
            state.jobs.remove(job_id)
        return _answer(wanted, taken, pictures, (*notes, *taken.notes))

    @router.get("/progress")
    async def progress(skip_current_image: bool = False) -> dict[str, Any]:
        """How far the job at hand is."""
        return _progress(service, state, with_image=not skip_current_image)

    @router.post("/interrupt")
    @router.post("/skip")
    async def interrupt() -> dict[str, Any]:
        """Stop the job at hand after its step."""
        for job_id in state.jobs[:1]:
            await service.cancel(job_id)
        return {}

    _add_options(router, state)
    _add_lists(router)
    return router


def _add_options(router: APIRouter, state: State) -> None:
    """What is set for all requests that follow."""

    @router.get("/options")
    async def options() -> dict[str, Any]:
        return {"sd_model_checkpoint": state.model, "samples_format": "png", "CLIP_stop_at_last_layers": 1}

    @router.post("/options")
    async def set_options(options: Options) -> dict[str, Any]:
        """The model alone can be set."""
        if options.sd_model_checkpoint is not None:
            state.model = _model_name(options.sd_model_checkpoint)
        return {}


def _add_lists(router: APIRouter) -> None:
    """What clients ask to fill their menus, or to see whether somebody is there."""

    @router.get("/sd-models")
    async def sd_models() -> list[dict[str, Any]]:
        names = [row["id"] for row in await run_in_threadpool(model_rows)]
        empty = {"hash": None, "sha256": None, "filename": "", "config": None}
        return [{"title": name, "model_name": name, **empty} for name in names]

    @router.get("/samplers")
    async def samplers() -> list[dict[str, Any]]:
        return [{"name": names[0], "aliases": list(names[1:]), "options": {}} for names in SAMPLER_NAMES.values()]

    @router.get("/schedulers")
    async def schedulers() -> list[dict[str, Any]]:
        return [{"name": "automatic", "label": "Automatic", "aliases": None, "default_rho": -1.0,
                 "need_inner_model": False}]  # fmt: skip

    @router.get("/loras")
    async def loras() -> list[dict[str, Any]]:
        names = sorted(path.stem for path in loras_dir().glob("*.safetensors"))
        return [{"name": name, "alias": name, "path": "", "metadata": {}} for name in names]

    @router.get("/scripts")
    async def scripts() -> dict[str, Any]:
        return {"txt2img": [], "img2img": []}


def make_wish(wanted: TextToImage, model: str) -> tuple[Wish, list[str]]:
    """The wish, and a line for what is not as it was asked for. Raises UsageError."""
    notes = list[str]()
    if (asked := (wanted.override_settings or {}).get("sd_model_checkpoint")) is not None:
        model = _model_name(asked)
    preset = presets.get(model) if model in presets.names() else None
    loras = tuple(name if scale is None else f"{name}={scale}" for name, scale in LORA.findall(wanted.prompt))
    width, height = wanted.width, wanted.height
    if (width, height) == (USUAL, USUAL) and preset is not None and USUAL not in preset.bases:
        width = height = None  # what clients send where nobody chose
        own = "the picture's" if isinstance(wanted, ImageToImage) else "its own"
        notes.append(f"512x512 is no size of {model}: drawn at {own}")
    wish = Wish(
        prompt=LORA.sub("", wanted.prompt), negative_prompt=wanted.negative_prompt or None, model=model,
        seeds=(str(wanted.seed),), num=wanted.batch_size * wanted.n_iter, steps=wanted.steps,
        guidance=wanted.cfg_scale, width=width, height=height, loras=loras or None,
        sampler=_sampler(wanted.sampler_name or wanted.sampler_index, notes), preview=Preview.proj,
        format=ImageFormat.png,
    )  # fmt: skip
    return wish, notes


def _decoded(text: str, name: str) -> bytes:
    """A picture of base64, alone or as a data URL. Raises UsageError."""
    kind, comma, data = text.partition(",")
    try:
        return base64.b64decode(data if comma and kind.startswith("data:") else text, validate=True)
    except (ValueError, binascii.Error):
        raise UsageError(f"{name} is no base64", hint="a PNG, JPEG or WebP, encoded") from None


def _sampler(name: str | None, notes: list[str]) -> Sampler | None:
    """Ours of that name; the default, and a note, for one that is not here: clients name one that nobody chose."""
    if not name:
        return None
    for sampler, names in SAMPLER_NAMES.items():
        if name in names:
            return sampler
    notes.append(f"the sampler {name[:40]!r} is not here: {SAMPLER_NAMES[Sampler.euler][0]} is used")
    return Sampler.euler


def _model_name(value: object) -> str:
    """A title as `/sd-models` gives it. Raises UsageError."""
    if not isinstance(value, str) or value.lower() not in presets.names():
        raise UsageError(f"no model {shown(value)} here", hint=f"known: {', '.join(presets.names())}")
    return value.lower()


def _answer(wanted: TextToImage, taken: Intake, pictures: list[Picture], notes: tuple[str, ...]) -> dict[str, Any]:
    """`images`, the parameters as they came, and `info`, which is a JSON text in itself."""
    request, records = taken.resolved.request, [one.event["record"] for one in pictures]
    seeds = [one.event["seed"] for one in pictures]
    info = {
        "prompt": request.prompt, "all_prompts": [record["prompt"] for record in records],
        "negative_prompt": request.negative_prompt, "seed": seeds[0], "all_seeds": seeds, "width": request.width,
        "height": request.height, "sampler_name": SAMPLER_NAMES[request.sampler][0], "cfg_scale": request.guidance,
        "steps": request.steps, "batch_size": wanted.batch_size, "sd_model_name": request.model,
        "index_of_first_image": 0, "infotexts": [a1111_text(record) for record in records], "notes": list(notes),
    }  # fmt: skip
    images = [base64.b64encode(one.data).decode() for one in pictures] if wanted.send_images else []
    asked = wanted.model_dump(exclude={"init_images", "mask"})
    return {"images": images, "parameters": asked, "info": json.dumps(info)}


def _progress(service: Service, state: State, *, with_image: bool) -> dict[str, Any]:
    job = service.job(state.jobs[0]) if state.jobs else None
    step, steps, share, image = 0, 0, 0.0, None
    if job is not None:
        told = service.latest(job.id, "step_done")
        preview = service.latest(job.id, "preview_made")
        step, steps = (told["step"], told["total"]) if told is not None else (0, 0)
        share = min(1.0, (job.made + job.failures + (step / steps if steps else 0.0)) / job.total)
        image = preview["png"] if preview is not None and with_image else None
    states = {"job": "" if job is None else job.id, "job_count": len(state.jobs), "sampling_step": step,
              "sampling_steps": steps, "interrupted": False, "skipped": False}  # fmt: skip
    return {"progress": share, "eta_relative": 0.0, "state": states, "current_image": image, "textinfo": None}
