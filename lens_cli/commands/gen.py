"""`lens gen`: from a sentence to a picture."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from backend.wish import Wish
from lens_cli import options


@options.takes_wish("gen")
def gen(
    *,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PROMPT",
            help="What to draw; several words are joined into one prompt. - reads stdin.",
            show_default=False,
        ),
    ] = None,
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="The prompt, as a flag.")] = None,
    file: Annotated[
        Path | None,
        typer.Option("--file", "-f", help="Read the prompt from a file (- is stdin): all of it is one prompt."),
    ] = None,
    wish: Wish,
    dry_run: options.DryRun = False,
    json: options.Json = False,
    json_stream: options.JsonStream = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
    no_color: options.NoColor = False,
) -> None:
    """Make pictures from a sentence. Their paths go to stdout, one per line.

    Examples: lens gen "three red balloons over a green hill" --ar 16:9
    · lens gen "a blue fish" -n 4 -o fish/ · echo "a red star" | lens gen -
    """
    from backend.requests import build_request
    from backend.settings import load
    from lens_cli.work.gen import carry_out
    from lens_cli.work.reasoner import ask_reasoner

    talk = options.talk_for("gen", json=json, stream=json_stream, quiet=quiet, verbose=verbose, no_color=no_color)
    settings = load(talk.warn)
    wish = replace(wish, prompt=options.read_prompt(words, prompt, file, talk))
    resolved = build_request(wish, settings, talk.warn)
    plan = options.plan_for(wish, len(resolved.request.seeds), settings, talk)
    asked = ask_reasoner(settings, resolved, talk, mode=wish.reasoner, system_prompt=wish.system_prompt)
    carry_out(
        resolved, plan, talk, output=wish.output, dry_run=dry_run, show=wish.show, settings=settings, reasoner=asked
    )
