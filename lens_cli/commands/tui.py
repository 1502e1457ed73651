"""`lens tui`: the app in the terminal."""

from __future__ import annotations

from typing import Annotated

import typer

from lens_cli.terminal.graphics import Graphics


def tui(
    *,
    graphics: Annotated[
        Graphics,
        typer.Option("--graphics", help="How pictures are drawn; auto asks the terminal. half is two pixels a cell."),
    ] = Graphics.auto,
    fresh: Annotated[bool, typer.Option("--fresh", help="Begin anew, without the last prompt and settings.")] = False,
    keys: Annotated[bool, typer.Option("--keys", help="Print every key and its name in keys.toml, and stop.")] = False,
) -> None:
    """Make pictures in an app: prompt, preview, queue, gallery. `lens` alone opens it too.

    Keys can be changed in keys.toml beside your settings, such as: draw = "ctrl+d". F1 explains what has the focus.
    """
    from backend.settings import load

    if keys:
        from lens_cli.tui.keys import table

        for line in table():
            print(line)
        return
    from lens_cli.tui.run import run

    notes = list[str]()
    run(load(notes.append), graphics=graphics, fresh=fresh, notes=notes)
