"""`lens refine`: what the reasoner makes of a request, without making a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lens_cli import options


def refine(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PROMPT",
            help="The request; several words are joined into one. - reads stdin.",
            show_default=False,
        ),
    ] = None,
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="The request, as a flag.")] = None,
    file: Annotated[
        Path | None,
        typer.Option("--file", "-f", help="Read the request from a file (- is stdin): all of it is one request."),
    ] = None,
    edit: Annotated[
        bool, typer.Option("--edit", help="Open the rewrite in $VISUAL or $EDITOR; what is saved is printed.")
    ] = False,
    check: Annotated[
        bool,
        typer.Option("--check", help="Ask about 100 built-in requests instead; print over-refusal and miss rates."),
    ] = False,
    model: options.Model = None,
    reasoner: options.Reasoner = None,
    system_prompt: options.SystemPromptName = None,
    seed: Annotated[
        int | None, typer.Option("--seed", "-s", min=0, help="Seed of the words, for another rewrite.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option("--temperature", help="0 takes the likeliest words; more varies with the seed.")
    ] = None,
    effort: options.Thinking = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
    no_color: options.NoColor = False,
) -> None:
    """Rewrite a request and print the prompt, and nothing else, on stdout. A refusal exits with 7.

    With --reasoner auto the model's own language model answers where no endpoint is configured.

    Examples: lens refine "two cats" · lens refine "two cats" --edit | lens gen - --reasoner off
    · lens refine --check --reasoner api
    """
    from dataclasses import replace

    from backend.errors import UsageError
    from backend.presets import default_name
    from backend.requests import find_model
    from backend.session import Session
    from backend.settings import load
    from lens_cli.work import refine
    from lens_cli.work.reasoner import ask_reasoner

    talk = options.talk_for("refine", json=json, quiet=quiet, verbose=verbose, no_color=no_color)
    settings = load()
    chosen = settings.reasoner
    chosen = replace(
        chosen,
        seed=chosen.seed if seed is None else seed,
        temperature=chosen.temperature if temperature is None else temperature,
        effort=effort or chosen.effort,
    )
    settings = replace(settings, reasoner=chosen)
    found = find_model(model or settings.model or default_name())
    asked = ask_reasoner(settings, found, talk, mode=reasoner, system_prompt=system_prompt, insist=True)
    if asked.off:
        raise UsageError("the reasoner is off, so there is nothing to refine", hint="--reasoner local, or api")
    with Session(settings) as session:
        if check:
            if words or prompt is not None or file is not None or edit:
                raise UsageError("--check asks its own requests", hint="drop the request, -f and --edit")
            refine.check(session, asked, talk)
        else:
            refine.refine(options.read_prompt(words, prompt, file, talk), session, asked, talk, edit=edit)
