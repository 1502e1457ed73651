"""`lens serve`: keep a model in memory and draw for others."""

from __future__ import annotations

from typing import Annotated

import typer

from backend.types import DrawingEngine
from lens_cli import options


def serve(
    *,
    host: Annotated[
        str | None, typer.Option("--host", help="Where to listen. Any other address than loopback needs --api-key.")
    ] = None,
    port: Annotated[
        int | None, typer.Option("--port", min=0, max=65535, help="5367 if left out; 0: a free one.")
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option("--api-key", help="What clients have to show. LENS_API_KEY sets it unseen by other users."),
    ] = None,
    keep_alive: Annotated[
        str | None,
        typer.Option("--keep-alive", metavar="TIME", help="How long an idle model stays in memory: 5m, 90s, 0, or -1."),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option("--memory", metavar="SIZE", help="An idle model that holds more, such as 8GB, goes at once."),
    ] = None,
    engine: Annotated[
        DrawingEngine | None,
        typer.Option("--engine", help="Who draws: a process here (local), or replicas of Ray Serve (ray)."),
    ] = None,
    replicas: Annotated[
        int | None, typer.Option("--replicas", min=1, max=1000, help="With --engine ray: how many; one a GPU.")
    ] = None,
    background: Annotated[bool, typer.Option("--background", help="Start it, and come back when it answers.")] = False,
    quiet: options.Quiet = False,
) -> None:
    """Keep a model in memory and draw for `lens gen`, the terminal app, and clients of OpenAI's and A1111's interfaces.

    Examples: lens serve · lens serve --keep-alive 1h · lens serve --host 0.0.0.0 --api-key KEY
    """
    from backend.settings import load
    from lens_cli.work.serve import serve as run

    talk = options.talk_for("serve", json=False, quiet=quiet)
    run(
        load(talk.warn), talk, host=host, port=port, api_key=api_key, keep_alive=keep_alive, memory=memory,
        engine=engine, replicas=replicas, background=background,
    )  # fmt: skip
