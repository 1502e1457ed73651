"""`lens gen`: from a sentence to a picture."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from backend.errors import UsageError
from backend.wish import Wish
from lens_cli import options
from lens_cli.habits import refuse_quantise_habit
from lens_cli.terminal.completions import complete_prompt


@options.takes_wish("gen")
def gen(
    *,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PROMPT",
            autocompletion=complete_prompt,
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
    prompts: options.Prompts = None,
    proceed: options.Continue = False,
    sheet: options.Sheet = None,
    local: options.Local = False,
    host: options.Host = None,
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
    from lens_cli.work.batch import Planner, carry_out_all
    from lens_cli.work.gen import carry_out

    refuse_quantise_habit(sys.argv[1:])
    talk = options.talk_for("gen", json=json, stream=json_stream, quiet=quiet, verbose=verbose, no_color=no_color)
    settings = options.load_settings(talk, local=local, host=host)
    planner = Planner(settings=settings, talk=talk, places=partial(options.plan_for, settings=settings, talk=talk))
    if prompts is not None:
        if words or prompt is not None or file is not None:
            raise UsageError("--prompts and a prompt exclude each other", hint="drop one of them")
        batch = planner.file(prompts, wish, proceed=proceed)
    elif proceed:
        raise UsageError("--continue goes on with a file of prompts", hint="add --prompts FILE")
    else:
        batch = planner.wish(replace(wish, prompt=options.read_prompt(words, prompt, file, talk)))
    if prompts is not None or sheet is not None or len(batch.items) > 1:
        carry_out_all(batch, settings, talk, show=wish.show, dry_run=dry_run, sheet=sheet, look=bool(wish.open))
        return
    (item,) = batch.items
    carry_out(
        item.resolved, item.plan, talk, output=wish.output, dry_run=dry_run, show=wish.show, settings=settings,
        reasoner=item.asked, look=bool(wish.open),
    )  # fmt: skip
