"""`lens mcp`: pictures for agents."""

from __future__ import annotations

from typing import Annotated

import typer

from lens_cli import options


def mcp(
    *,
    folder: Annotated[
        str | None, typer.Option("--folder", metavar="DIR", help="Where pictures go, and nowhere else.")
    ] = None,
    local: options.Local = False,
    host: options.Host = None,
) -> None:
    """Serve the Model Context Protocol on stdin and stdout: draw, refine, history, models.

    For an agent's settings: {"command": "lens", "args": ["mcp"]}. Draws with a server that runs, else in this process.
    """
    from lens_cli.work.mcp import serve

    talk = options.talk_for("mcp", json=False)
    serve(options.load_settings(talk, local=local, host=host), talk, folder)
