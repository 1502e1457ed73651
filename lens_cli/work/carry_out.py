"""The last part of `gen` and `rerun`: show the plan, or run it and say how it went."""

from __future__ import annotations

from dataclasses import asdict

import typer

from backend.cache.store import open_stores
from backend.errors import RefusedError
from backend.picture.outputs import OutputPlan
from backend.reasoner.refine import choose_mode
from backend.requests import find_preset
from backend.settings import Settings
from backend.types import Encoder, GenerationRequest, ReasonerMode
from lens_cli.terminal.console import Talk
from lens_cli.terminal.show import wanted
from lens_cli.terminal.wording import arithmetic, command_line, describe
from lens_cli.work.reasoning import Rewriting, refusal_data
from lens_cli.work.runner import run


def carry_out(
    request: GenerationRequest,
    plan: OutputPlan,
    talk: Talk,
    *,
    output: str | None,
    dry_run: bool,
    show: bool | None,
    settings: Settings,
    rewriting: Rewriting | None = None,
    parent_id: str | None = None,
) -> None:
    """Paths on stdout, or one JSON answer; the last line on stderr makes the pictures again.

    `output` is the flag as typed. `rewriting` is the reasoner; None: the prompt is drawn as it stands, as by `rerun`.
    Raises typer.Exit with the code of what went wrong, if something did.
    """
    rewrites = rewriting is not None and not rewriting.off
    # Plain `lens gen` of what was drawn here would ask a reasoner that this run did not ask.
    plain = choose_mode(settings.reasoner, find_preset(request.model)[1])[0]
    off = () if plain is ReasonerMode.off else ("--reasoner", "off")
    if dry_run:
        from lens_cli.work.dry_run import explain

        flags = rewriting.flags if rewriting is not None and rewrites else off
        asked = rewriting and rewriting.plan
        explain(request, plan, settings.generate, talk, output=output, reasoner=asked, flags=flags)
        return
    llama = None
    if rewriting is not None and rewrites:
        try:
            request = rewriting.apply(request)
            if request.encoder is Encoder.llama:
                llama = rewriting.llama  # the GGUF that has just written the prompt reads it too
        except RefusedError as error:
            talk.fail(error, refusal_data(error, rewriting.plan))
            raise typer.Exit(error.exit_code) from None
        finally:
            if llama is None:
                rewriting.close()
    talk.say(describe(request))
    talk.detail(f"prompt: {request.prompt}")
    if request.negative_prompt:
        talk.detail(f"negative prompt: {request.negative_prompt}")
    talk.detail(arithmetic(request))
    outcome = run(
        request,
        plan,
        talk,
        parent_id=parent_id,
        draw=wanted(show, settings.output.show, talk),
        stores=open_stores(settings.cache, talk.warn),
        llama=llama,
    )
    error = outcome.error()
    line = command_line(request, settings.generate, output, reasoner=off)
    revised = request.prompt if request.expander is not None else None
    data = {**outcome.data(), "request": asdict(request), "revised": revised, "again": line}
    if outcome.pictures:
        talk.say(line)
    if error is None:
        talk.result(data)
    else:
        talk.fail(error, data)
        raise typer.Exit(error.exit_code)
