"""The last part of `gen` and `rerun`: show the plan, or run it and say how it went."""

from __future__ import annotations

from dataclasses import asdict

import typer

from backend.outputs import OutputPlan
from backend.types import GenerationRequest
from lens_cli.console import Talk
from lens_cli.runner import run
from lens_cli.show import wanted
from lens_cli.wording import command_line, describe


def carry_out(
    request: GenerationRequest,
    plan: OutputPlan,
    talk: Talk,
    *,
    output: str | None,
    dry_run: bool,
    show: bool | None,
    show_setting: bool | None,
    parent_id: str | None = None,
) -> None:
    """Paths on stdout, or one JSON answer; the last line on stderr makes the pictures again.

    `output` is the flag as typed. Raises typer.Exit with the code of what went wrong, if something did.
    """
    if dry_run:
        from lens_cli.dry_run import explain

        explain(request, plan, talk, output=output)
        return
    talk.say(describe(request))
    talk.detail(f"prompt: {request.prompt}")
    if request.negative_prompt:
        talk.detail(f"negative prompt: {request.negative_prompt}")
    talk.detail(f"arithmetic: {request.dtype}, device: {request.device}")
    outcome = run(request, plan, talk, parent_id=parent_id, draw=wanted(show, show_setting, talk))
    error = outcome.error()
    line = command_line(request, output)
    data = {**outcome.data(), "request": asdict(request), "again": line}
    if outcome.pictures:
        talk.say(line)
    if error is None:
        talk.result(data)
    else:
        talk.fail(error, data)
        raise typer.Exit(error.exit_code)
