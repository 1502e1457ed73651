"""`lens grid`: pictures side by side, with something changed along each side."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from backend.wish import Wish
from lens_cli import options


@options.takes_wish("gen")
def grid(
    *,
    words: Annotated[
        list[str] | None, typer.Argument(metavar="PROMPT", help="What to draw. - reads stdin.", show_default=False)
    ] = None,
    x: Annotated[
        str, typer.Option("--x", metavar="FIELD=A,B,…", help="What changes along a row: guidance=1,3,5 or seed=1..4.")
    ],
    y: Annotated[str | None, typer.Option("--y", metavar="FIELD=A,B,…", help="What changes along a column.")] = None,
    cells: Annotated[
        str | None,
        typer.Option("--cells", metavar="DIR/", help="Keep the single pictures too: as -o has it."),
    ] = None,
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="The prompt, as a flag.")] = None,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="Read the prompt from a file.")] = None,
    wish: Wish,
    local: options.Local = False,
    host: options.Host = None,
    dry_run: options.DryRun = False,
    json: options.Json = False,
    json_stream: options.JsonStream = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
    no_color: options.NoColor = False,
) -> None:
    """Draw a labelled grid of pictures with one load; its path is the last line on stdout.

    Examples: lens grid "a blue fish" --x guidance=1,3,5 --y seed=1..4 -o grid.png
    · lens grid --x "prompt=a red fish;a blue fish" --y model=nano,nano-turbo -s 1
    """
    from backend.batch.grid import NO_AXIS, read_axis
    from lens_cli.work.batch import Planner
    from lens_cli.work.grid import make_grid

    talk = options.talk_for("grid", json=json, stream=json_stream, quiet=quiet, verbose=verbose, no_color=no_color)
    across, down = read_axis(x, "--x"), NO_AXIS if y is None else read_axis(y, "--y")
    if "prompt" not in (across.name, down.name):
        wish = replace(wish, prompt=options.read_prompt(words, prompt, file, talk))
    settings = options.load_settings(talk, local=local, host=host)
    places = partial(options.plan_for, settings=settings, talk=talk)
    planner = Planner(settings=settings, talk=talk, places=places)
    make_grid(planner, wish, across, down, cells=cells, dry_run=dry_run)
