"""`lens refine`: what the reasoner makes of a request, without making a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from backend.wish import Wish
from lens_cli import options

Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="PROMPT",
        help="The request; several words are joined into one. - reads stdin.",
        show_default=False,
    ),
]
Prompt = Annotated[str | None, typer.Option("--prompt", "-p", help="The request, as a flag.")]
File = Annotated[
    Path | None,
    typer.Option("--file", "-f", help="Read the request from a file (- is stdin): all of it is one request."),
]
Edit = Annotated[bool, typer.Option("--edit", help="Open the rewrite in $VISUAL or $EDITOR; what is saved is printed.")]
Check = Annotated[
    bool,
    typer.Option("--check", help="Ask about 100 built-in requests instead; print over-refusal and miss rates."),
]
Seed = Annotated[int | None, typer.Option("--seed", "-s", min=0, help="Seed of the words, for another rewrite.")]
Temperature = Annotated[
    float | None, typer.Option("--temperature", help="0 takes the likeliest words; more varies with the seed.")
]


@options.takes_wish("refine")
def refine(
    *,
    words: Words = None,
    prompt: Prompt = None,
    file: File = None,
    edit: Edit = False,
    check: Check = False,
    wish: Wish,
    seed: Seed = None,
    temperature: Temperature = None,
    effort: options.Thinking = None,
    local: options.Local = False,
    host: options.Host = None,
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
    from lens_cli.work import refine
    from lens_cli.work.backend import open_session
    from lens_cli.work.reasoner import ask_reasoner

    talk = options.talk_for("refine", json=json, quiet=quiet, verbose=verbose, no_color=no_color)
    settings = options.load_settings(talk, local=local, host=host)
    typed = {"seed": seed, "temperature": temperature, "effort": effort}
    typed = {key: value for key, value in typed.items() if value is not None}
    settings = replace(settings, reasoner=replace(settings.reasoner, **typed))
    found = find_model(wish.model or settings.model or default_name())
    asked = ask_reasoner(settings, found, talk, mode=wish.reasoner, system_prompt=wish.system_prompt, insist=True)
    if asked.off:
        raise UsageError("the reasoner is off, so there is nothing to refine", hint="--reasoner local, or api")
    with open_session(settings, talk) as session:
        if check:
            if words or prompt is not None or file is not None or edit:
                raise UsageError("--check asks its own requests", hint="drop the request, -f and --edit")
            refine.check(session, asked, talk)
        else:
            refine.refine(options.read_prompt(words, prompt, file, talk), session, asked, talk, edit=edit)
