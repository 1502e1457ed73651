"""`lens stop`: end the server, its jobs, or what it has in memory."""

from __future__ import annotations

from typing import Annotated

import typer

from lens_cli import options


def complete_job(incomplete: str) -> list[tuple[str, str]]:
    """(id, prompt) of the jobs that have not ended, for the shell's TAB."""
    from backend.errors import LensError
    from backend.server.client import find_server
    from backend.settings import load

    try:
        client = find_server(load())
        jobs = [] if client is None else client.jobs()
    except LensError:  # nobody reads an error there
        return []
    return [
        (job.id, " ".join(job.prompt.split())) for job in jobs if not job.state.ended and job.id.startswith(incomplete)
    ]


def stop(
    *,
    jobs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="JOB", help="Cancel these, by the first letters of their ids; left out: the server ends.",
            autocompletion=complete_job, show_default=False,
        ),
    ] = None,
    unload: Annotated[bool, typer.Option("--unload", help="Give back the model's memory; the server stays.")] = False,
    host: options.Host = None,
    quiet: options.Quiet = False,
) -> None:  # fmt: skip
    """End the server. Finished pictures are kept, and jobs that are not finished go on with the next one."""
    from lens_cli.work.serve import stop as run

    talk = options.talk_for("stop", json=False, quiet=quiet)
    run(options.load_settings(talk, local=False, host=host), talk, jobs=jobs or [], unload=unload)
