"""`--dry-run`: the resolved request, the model's files and the output names. Loads no weights and writes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backend.batch.prompt_notes import prompt_notes
from backend.errors import OutOfMemoryError, human_bytes
from backend.inputs.begin import last_pass
from backend.picture.outputs import OutputPlan
from backend.requests import ResolvedRequest
from backend.session import check_loras
from backend.wish import Wish
from lens_cli.terminal.console import Talk
from lens_cli.terminal.wording import arithmetic, command_line, describe
from lens_cli.work.reasoner import describe_plan

if TYPE_CHECKING:
    from backend.memory.machine import RunPlan
    from backend.reasoner.refine import RewritePlan


def explain(
    resolved: ResolvedRequest, plan: OutputPlan, settings: Wish, talk: Talk, *, output: str | None,
    reasoner: RewritePlan | None = None, flags: Sequence[str] = (),
) -> None:  # fmt: skip
    """Output names on stdout, one per line; everything else on stderr, or all of it as JSON.

    `reasoner` is who would rewrite the prompt first; None: nobody is asked (`lens rerun`). `flags` are the ones about
    that for the command line which does it.
    """
    request, found = resolved.request, resolved.files
    files, total = model_files(resolved)
    planned, refused = None, None
    if found is not None:
        from backend.memory.machine import forecast

        for note in found.notes:
            talk.say(f"note: {note}")
        check_loras(resolved, talk.warn)
        for note in prompt_notes(request, found):
            talk.warn(note)
        planned, refused = forecast(last_pass(request), found)
    absent = foretell(resolved) if found is None and resolved.preset.sources else None
    sizes = [Path(use.path).stat().st_size for use in request.loras]
    files += [
        {"component": "lora", "path": use.path, "bytes": size} for use, size in zip(request.loras, sizes, strict=True)
    ]
    if total is not None and found is not None:  # otherwise it is what a download would take
        total += sum(sizes)
    outputs = [] if plan.template is None else list(plan.paths(request, datetime.now()))
    talk.say(describe(request))
    talk.say(f"prompt: {request.prompt}")
    if reasoner is not None:
        talk.say(describe_plan(reasoner))
    if request.negative_prompt:
        talk.say(f"negative prompt: {request.negative_prompt}")
    talk.say(arithmetic(request))
    _say_files(files, total, resolved, absent, talk)
    _say_plan(planned, refused, talk)
    for path in outputs:
        talk.data(path)
    line = command_line(request, settings, output, reasoner=flags)
    talk.say(line)
    talk.result(
        {
            "request": asdict(request),
            "files": files,
            "total_bytes": 0 if found is None else total,
            "download_bytes": total if found is None else 0,
            "plan": planned.plan.data() if planned is not None else None if absent is None else absent.plan,
            "cards": [] if absent is None else absent.cards,
            "outputs": [str(path) for path in outputs],
            "quant": None
            if planned is None
            else {"scheme": planned.quant.scheme, "linear_bytes": planned.linear_bytes},
            "again": line,
            "reasoner": reasoner.data() if reasoner is not None else None,
        }
    )


def _say_files(
    files: list[dict[str, Any]], total: int | None, resolved: ResolvedRequest, absent: Absent | None, talk: Talk
) -> None:
    """What would be read, or what a download would take."""
    for row in files:
        talk.say(f"reads {human_bytes(row['bytes']):>8}  {row['component']:<12}  {row['path']}")
    if resolved.files is None:
        talk.say(f"{resolved.missing}; to download: {'size unknown' if total is None else human_bytes(total)}")
        for line in () if absent is None else absent.lines:
            talk.say(line)
    else:
        talk.say(f"reads {human_bytes(total or 0):>8}  in all; nothing to download")


def _say_plan(planned: RunPlan | None, refused: str | None, talk: Talk) -> None:
    """How the memory would be used, or that it does not suffice."""
    if planned is not None:
        held = human_bytes(planned.linear_bytes)
        talk.say(f"holds {held:>8}  linears of the transformer, {planned.quant.scheme or planned.dtype}")
        for note in filter(None, (*planned.quant.notes, planned.reason)):
            talk.warn(note)
        talk.say(f"plan: {planned.plan.line()}")
    elif refused is not None:
        talk.warn(f"this will not run: {refused}")


@dataclass(frozen=True)
class Absent:
    """What can be said of a model that is not on this disk."""

    lines: list[str]
    plan: dict[str, Any] | None  # here, or on the card that the request names; None: it does not run
    cards: list[dict[str, Any]]


def foretell(resolved: ResolvedRequest) -> Absent:
    """From the registry's shapes: the plan for this machine or the card that was named, then every usual card."""
    from backend.memory.cards import drawing_of, plan_absent
    from backend.memory.machine import expected_machine
    from lens_cli.terminal.cards_table import answers, table

    preset, request = resolved.preset, last_pass(resolved.request)
    drawing = drawing_of(request, preset.params)
    found = answers(preset, drawing)
    try:
        plan = plan_absent(request, preset.params, preset.sources[0], expected_machine(request))
        first = f"plan, once it is here: {plan.line()}"
    except OutOfMemoryError as error:
        plan, first = None, f"this will not run: {error}"
    lines = [first, *table(preset, drawing, found)]
    return Absent(lines, None if plan is None else plan.data(), [one.data() for one in found])


def model_files(resolved: ResolvedRequest) -> tuple[list[dict[str, Any]], int | None]:
    """(one row per file, bytes) of a model on this disk, or ([], bytes to download; None: not known)."""
    if resolved.files is None:
        sources = resolved.preset.sources
        return [], sources[0].total if sources else None
    rows = [{"component": part, "path": str(Path(path)), "bytes": size} for part, path, size in resolved.files.files()]
    return rows, resolved.files.total_bytes
