"""Events as JSON, and back: what a session tells in a worker, heard on the other side of a pipe or of HTTP.

The names and fields are those of `backend.server.jobs`. What comes back is the event a session would have told, so that
whoever listens (a progress bar, a table, an app) does not know whether it was drawn here or there.

Light ring: Pillow arrives with a picture.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_origin

from backend.errors import UntrustedError, UsageError, shown
from backend.events import (
    DrawingStarted,
    Event,
    Generation,
    Noticed,
    PhaseDone,
    PhaseStarted,
    PictureFailed,
    PictureSaved,
    PlanMade,
    PreviewMade,
    PromptRefused,
    PromptRewritten,
    StepDone,
)
from backend.fields import Misfit, as_data, from_data, object_from, words_for
from backend.server.jobs import error_data, error_from
from backend.types import Encoder, Expander, GenerationRequest, InputPicture, LoraUse, ModelIdentity
from backend.wish import ROWS, Wish

if TYPE_CHECKING:
    from PIL import Image

    from backend.memory.plan import MemoryPlan

# Events whose fields are plain: theirs are those of the JSON.
PLAIN = {
    "phase_started": PhaseStarted,
    "step_done": StepDone,
    "phase_done": PhaseDone,
    "noticed": Noticed,
    "prompt_rewritten": PromptRewritten,
    "prompt_refused": PromptRefused,
}


def event_data(event: Event) -> dict[str, Any]:
    """An event as JSON, without the bytes of a picture's file."""
    match event:
        case PlanMade():
            return {"event": "plan_made", "line": event.plan.line(), "plan": event.plan.data(), "reason": event.reason}
        case PreviewMade():
            place = {"image": event.image, "step": event.step, "total": event.total}
            return {"event": "preview_made", **place, "png": base64.b64encode(png(event.picture)).decode()}
        case DrawingStarted():
            return {"event": "drawing_started", "request": asdict(event.request)}
        case PictureSaved():
            return {"event": "picture_saved", **event.row(), "record": dict(event.record)}
        case PictureFailed():
            return {"event": "picture_failed", "index": event.index, "seed": event.seed, **error_data(event.error)}
        case _:
            name = next(name for name, kind in PLAIN.items() if kind is type(event))
            return {"event": name, **asdict(event)}


def png(picture: Image.Image) -> bytes:
    """A picture as a PNG without a record, quickly."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


@dataclass(frozen=True)
class ToldPlan:
    """A memory plan that was made elsewhere: as much of it as is shown."""

    text: str
    facts: Mapping[str, Any]

    def line(self) -> str:
        return self.text

    def data(self) -> dict[str, Any]:
        return dict(self.facts)


def event_from(data: Mapping[str, Any]) -> Event | None:
    """The event that a session told somewhere else; None: it is about the job, or of a newer server.

    But for a saved picture, which needs its file as well: `saved_from`. Raises UntrustedError.
    """
    try:
        match name := data.get("event"):
            case "plan_made":
                plan = cast("MemoryPlan", ToldPlan(str(data["line"]), dict(data["plan"])))  # as much as is shown
                return PlanMade(plan=plan, reason=from_data(data["reason"], str | None))
            case "preview_made":
                picture = _picture(base64.b64decode(data["png"], validate=True))
                return PreviewMade(image=data["image"], step=data["step"], total=data["total"], picture=picture)
            case "drawing_started":
                return DrawingStarted(request=object_from(data["request"], GenerationRequest))
            case "picture_failed":
                return PictureFailed(index=data["index"], seed=data["seed"], error=error_from(data))
            case _:
                kind = PLAIN.get(str(name))
                return None if kind is None else object_from(data, kind)
    except (Misfit, ValueError, TypeError, KeyError, binascii.Error) as error:
        raise UntrustedError(f"the server tells an event {shown(data.get('event'))} that is none") from error


def saved_from(
    data: Mapping[str, Any], request: GenerationRequest, path: Path | None, file: bytes | None
) -> PictureSaved:
    """A picture that was drawn elsewhere and saved at `path`, or whose file is here. Its pixels are decoded when they
    are looked at. Raises UntrustedError."""
    from PIL import Image

    try:
        record = dict[str, Any](data["record"])
        model = record["model"]
        generation = Generation(
            image=Image.open(io.BytesIO(file) if file is not None else cast("Path", path)), request=request,
            index=from_data(data["index"], int), seed=from_data(data["seed"], int), sigmas=tuple(record["sigmas"]),
            timings=dict(record["timings"]), dtype=record["dtype"], device=record["ran_on"],
            model=ModelIdentity(name=model["name"], revision=model["revision"], sha256=dict(model["sha256"])),
            encoder=Encoder(record["encoder"]), loras=request.loras, template_date=record["template_date"],
            versions=dict(record["versions"]), attention=record["attention"],
        )  # fmt: skip
    except (Misfit, ValueError, TypeError, KeyError, OSError) as error:
        raise UntrustedError("the server tells of a picture that is none") from error
    return PictureSaved(generation=generation, record=record, path=path, data=file)


def _picture(file: bytes) -> Image.Image:
    from PIL import Image

    return Image.open(io.BytesIO(file), formats=["PNG"]).convert("RGB")


# A wish ---------------------------------------------------------------------------------------------------------------


def wish_data(wish: Wish) -> dict[str, Any]:
    """What was given of a wish, as JSON."""
    return {name: _plain(value) for name, value in wish.given().items()}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(part) for part in cast("tuple[Any, ...]", value)]
    return asdict(cast("Any", value)) if is_dataclass(value) else as_data(value)


def wish_from(data: object) -> Wish:
    """A wish from outside; a lone text or whole number stands for a list of one. Raises UsageError naming the field."""
    if not isinstance(data, dict):
        raise UsageError("the wish is no JSON object", hint='such as {"prompt": "a red fish", "steps": 8}')
    given = dict[str, Any]()
    for name, value in cast("dict[str, Any]", data).items():
        if name not in ROWS:
            raise UsageError(f"a wish has no {shown(name)}", hint=f"known: {', '.join(ROWS)}")
        try:
            given[name] = None if value is None else _field(name, value)
        except (Misfit, ValueError, TypeError):
            recorded = name in ("loras", "expander", "init", "mask")
            words = "as a picture records it" if recorded else words_for(ROWS[name].kind)
            raise UsageError(f"{name} = {json.dumps(value)[:60]} does not fit", hint=f"it must be {words}") from None
    return Wish(**given)


def _field(name: str, value: Any) -> Any:
    """Raises Misfit, ValueError, TypeError."""
    if name == "expander":
        return object_from(value, Expander)
    parts = cast("list[Any]", value) if isinstance(value, list) else [value]
    if name == "loras":
        return tuple(from_data(part, str) if isinstance(part, str) else object_from(part, LoraUse) for part in parts)
    if name in ("init", "mask") and not isinstance(value, str):
        return object_from(cast("object", value), InputPicture)
    kind = ROWS[name].kind
    if get_origin(kind) is tuple:
        value = [str(part) if type(part) is int else part for part in parts]
    return from_data(value, kind)
