"""A wish from outside -> a job's request, its output and its rewrite, checked by who asks.

Who holds the owner's key may ask for whatever a command may. Anybody else gets models and LoRAs by their names, and
pictures below the server's folder: no path of theirs is used.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import prompts
from backend import presets
from backend.disk import path_below
from backend.errors import UsageError, shown
from backend.fields import Misfit, object_from
from backend.picture.outputs import OutputPlan, plan_output
from backend.requests import ResolvedRequest, build_request, find_model
from backend.server.http.uploads import Uploads
from backend.settings import Settings
from backend.sizes import size_for
from backend.types import ReasonerMode
from backend.wish import Wish

if TYPE_CHECKING:
    from backend.reasoner.refine import RewritePlan

MOST_PICTURES = 100  # of one job, where not its owner asks


class UnknownModelError(UsageError):
    """A model that has no such name."""

    code = "model_not_found"


@dataclass(frozen=True, kw_only=True)
class Intake:
    """A job that may be entered."""

    resolved: ResolvedRequest
    output: OutputPlan
    rewrite: RewritePlan | None
    notes: tuple[str, ...]  # what cannot be honoured


def take_in(
    wish: Wish, settings: Settings, *, folder: Path, owner: bool, output: object = None, rewrite: object = None,
    uploads: Uploads | None = None,
) -> Intake:  # fmt: skip
    """Everything decided. `output`: a name below `folder`, an owner's `OutputPlan` as JSON, or None: to be fetched.
    `rewrite`: an owner's `RewritePlan` as JSON; None: as the wish and the settings say. `uploads`: what came with the
    wish, to begin from.

    Raises UsageError, UntrustedError, and what `build_request` and `make_plan` do. Reads files: call it in a thread.
    """
    notes = list[str]()
    if not owner:
        check_names(wish)
    if uploads is not None:
        wish = replace(wish, init=str(uploads.image), mask=None if uploads.mask is None else str(uploads.mask))
    resolved = build_request(wish, settings, notes.append)
    if not owner and len(resolved.request.seeds) > MOST_PICTURES:
        raise UsageError(f"{len(resolved.request.seeds):,} pictures are too many for one job: {MOST_PICTURES} at most")
    return Intake(
        resolved=resolved,
        output=_output(wish, settings, folder, output, owner=owner),
        rewrite=_rewrite(wish, settings, resolved, rewrite, owner=owner),
        notes=tuple(notes),
    )


def check_names(wish: Wish) -> None:
    """Raises UsageError where a wish of somebody else than the owner names a file."""
    if wish.model is not None and wish.model.lower() not in presets.names():
        raise UnknownModelError(f"no model {shown(wish.model)} here", hint=f"known: {', '.join(presets.names())}")
    for lora in wish.loras or ():
        if not isinstance(lora, str) or any(sign in lora for sign in "/\\~") or lora.startswith("."):
            raise UsageError(f"a LoRA is asked for by its name, not {shown(lora)}")
    if wish.init is not None or wish.mask is not None:
        raise UsageError("init and mask name files, which only the server's owner may")
    if wish.system_prompt is not None and wish.system_prompt not in prompts.names():
        raise UsageError(f"no system prompt {shown(wish.system_prompt)}", hint=f"known: {', '.join(prompts.names())}")
    if wish.expander is not None or wish.original_prompt is not None or wish.output is not None:
        raise UsageError(
            "expander, original_prompt and output are none of a wish's own", hint="output stands beside it"
        )


def _output(wish: Wish, settings: Settings, folder: Path, output: object, *, owner: bool) -> OutputPlan:
    if owner and isinstance(output, dict):
        try:
            return object_from(cast("object", output), OutputPlan)
        except (Misfit, TypeError, ValueError) as error:
            raise UsageError("the output is none") from error
    if output is not None and not isinstance(output, str):
        raise UsageError("the output is a name below the server's folder", hint="such as fish/{slug}-{seed}.png")
    chosen = settings.output
    name = "-"
    if isinstance(output, str):
        path_below(folder, output.rstrip("/"), source="the request")
        name = f"{str(folder).replace('{', '{{').replace('}', '}}')}/{output}"  # braces of the folder are no fields
    plan = plan_output(
        name, format=wish.format, quality=wish.quality, metadata=chosen.metadata and not wish.no_metadata,
        default_folder=str(folder), default_template=Path(chosen.template).name, default_format=chosen.format,
        default_quality=chosen.quality,
    )  # fmt: skip
    return replace(plan, history=settings.history and not wish.no_history and plan.template is not None)


def _rewrite(
    wish: Wish, settings: Settings, resolved: ResolvedRequest, rewrite: object, *, owner: bool
) -> RewritePlan | None:
    from backend.reasoner.refine import make_plan

    if (plan := owners_plan(rewrite, owner=owner)) is not None:
        return plan
    if resolved.request.original_prompt is not None:
        return None  # it was rewritten before it came
    plan = make_plan(
        settings.reasoner, resolved.preset, resolved.request.model, mode=wish.reasoner,
        system_prompt=wish.system_prompt, files=resolved.files,
    )  # fmt: skip
    return None if plan.mode is ReasonerMode.off else plan


def owners_plan(rewrite: object, *, owner: bool) -> RewritePlan | None:
    """A reasoner's plan that its owner's command has made; None: there is none. Raises UsageError."""
    from backend.reasoner.refine import RewritePlan

    if rewrite is None:
        return None
    if not owner:
        raise UsageError("a rewrite is asked for with reasoner and system_prompt")
    try:
        return object_from(rewrite, RewritePlan)
    except (Misfit, TypeError, ValueError) as error:
        raise UsageError("the rewrite is none") from error


def model_rows() -> list[dict[str, Any]]:
    """The models on this disk, with what is drawn where nothing is said. Reads files: call it in a thread."""
    rows = list[dict[str, Any]]()
    for name in presets.names():
        found = find_model(name)
        if found.files is None:
            continue
        preset = found.preset
        width, height = size_for(Fraction(1), preset.default_base)
        defaults = {
            "steps": preset.steps, "guidance": preset.guidance, "cfg_scale": preset.guidance, "width": width,
            "height": height,
        }  # fmt: skip
        rows.append(
            {"id": name, "object": "model", "created": 0, "owned_by": "lens", "title": preset.title,
             "distilled": preset.distilled, "bases": list(preset.bases), "image_defaults": defaults}
        )  # fmt: skip
    return rows
