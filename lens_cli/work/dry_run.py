"""`--dry-run`: the resolved request, the model's files and the output names. Loads no weights and writes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backend.errors import ModelMissingError
from backend.picture.outputs import OutputPlan
from backend.requests import find_preset
from backend.settings import GenerateSettings
from backend.types import GenerationRequest
from backend.words import human_bytes
from lens_cli.terminal.console import Talk
from lens_cli.terminal.wording import arithmetic, command_line, describe

if TYPE_CHECKING:
    from backend.reasoner.refine import RewritePlan


def explain(
    request: GenerationRequest, plan: OutputPlan, settings: GenerateSettings, talk: Talk, *, output: str | None,
    reasoner: RewritePlan | None = None, flags: Sequence[str] = (),
) -> None:  # fmt: skip
    """Output names on stdout, one per line; everything else on stderr, or all of it as JSON.

    `reasoner` is who would rewrite the prompt first; None: nobody is asked (`lens rerun`). `flags` are the ones about
    that for the command line which does it.
    """
    from backend.checkpoints.resolve import resolve_model
    from lens_cli.work.runner import check_loras

    files, total, missing = model_files(request.model)
    planned, refused = None, None
    if not missing:
        from backend.memory.machine import forecast

        found = resolve_model(request.model)
        for note in found.notes:
            talk.say(f"note: {note}")
        check_loras(request, found, talk)
        planned, refused = forecast(request, found)
    sizes = [Path(use.path).stat().st_size for use in request.loras]
    files += [
        {"component": "lora", "path": use.path, "bytes": size} for use, size in zip(request.loras, sizes, strict=True)
    ]
    if total is not None and not missing:  # otherwise it is what a download would take
        total += sum(sizes)
    outputs = [] if plan.template is None else list(plan.paths(request, datetime.now()))
    talk.say(describe(request))
    talk.say(f"prompt: {request.prompt}")
    if reasoner is not None:
        from lens_cli.work.reasoning import describe_plan

        talk.say(describe_plan(reasoner))
    if request.negative_prompt:
        talk.say(f"negative prompt: {request.negative_prompt}")
    talk.say(arithmetic(request))
    for row in files:
        talk.say(f"reads {human_bytes(row['bytes']):>8}  {row['component']:<12}  {row['path']}")
    if missing:
        talk.say(f"{missing}; to download: {'size unknown' if total is None else human_bytes(total)}")
    else:
        talk.say(f"reads {human_bytes(total or 0):>8}  in all; nothing to download")
    if planned is not None:
        held = human_bytes(planned.linear_bytes)
        talk.say(f"holds {held:>8}  linears of the transformer, {planned.quant.scheme or planned.dtype}")
        for note in filter(None, (*planned.quant.notes, planned.reason)):
            talk.warn(note)
        talk.say(f"plan: {planned.plan.line()}")
    elif refused is not None:
        talk.warn(f"this will not run: {refused}")
    for path in outputs:
        talk.data(path)
    line = command_line(request, settings, output, reasoner=flags)
    talk.say(line)
    talk.result(
        {
            "request": asdict(request),
            "files": files,
            "total_bytes": 0 if missing else total,
            "download_bytes": total if missing else 0,
            "plan": planned.plan.data() if planned is not None else None,
            "outputs": [str(path) for path in outputs],
            "quant": None
            if planned is None
            else {"scheme": planned.quant.scheme, "linear_bytes": planned.linear_bytes},
            "again": line,
            "reasoner": reasoner.data() if reasoner is not None else None,
        }
    )


def model_files(model: str) -> tuple[list[dict[str, Any]], int | None, str | None]:
    """(one row per file, bytes, None) of a model on this disk, or ([], bytes to download or None, what is missing)."""
    from backend.checkpoints.resolve import resolve_model

    try:
        found = resolve_model(model)
    except ModelMissingError as error:
        _, preset = find_preset(model)
        return [], preset.sources[0].total if preset.sources else None, str(error)
    rows = [{"component": part, "path": str(Path(path)), "bytes": size} for part, path, size in found.files()]
    return rows, found.total_bytes, None
