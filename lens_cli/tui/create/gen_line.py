"""The flags of a `lens gen` line, to be read and not run. Those of the wish come from its table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from backend.wish import Wish
from lens_cli import options


@options.takes_wish("gen")
def gen(
    *,
    words: Annotated[list[str] | None, typer.Argument()] = None,
    prompt: Annotated[str | None, typer.Option("--prompt", "-p")] = None,
    file: Annotated[Path | None, typer.Option("--file", "-f")] = None,
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
    """Never called: only its parser is."""
