"""What `lens serve`, `ps` and `stop` do."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from backend.errors import LensError, NetworkError, UsageError, human_bytes
from backend.server.client import Client, find_server, start_server
from backend.server.jobs import Job, JobState
from backend.settings import Settings
from backend.types import DrawingEngine
from lens_cli.terminal.console import Talk

PATIENCE = 20.0  # seconds that a server may take to end
WIDTH = 48  # characters of a prompt in a line


def serve(
    settings: Settings, talk: Talk, *, host: str | None, port: int | None, api_key: str | None, keep_alive: str | None,
    memory: str | None, engine: DrawingEngine | None, replicas: int | None, background: bool,
) -> None:  # fmt: skip
    """Serve until Ctrl-C or `lens stop`. Raises UsageError, BusyError."""
    from backend.server.serve import make_plan
    from backend.server.serve import serve as run

    plan = make_plan(settings, host=host, port=port, api_key=api_key, keep_alive=keep_alive, memory=memory)
    engine = engine or settings.engine
    if replicas is not None and engine is not DrawingEngine.ray:
        raise UsageError("--replicas is about --engine ray", hint="a server has one drawing process otherwise")
    if background:
        if memory is not None or replicas is not None:
            raise UsageError("--memory and --replicas are for a server in the foreground", hint="drop --background")
        _start(settings, talk, {
            "LENS_HOST": f"{plan.place.host}:{plan.place.port}", "LENS_API_KEY": api_key, "LENS_KEEP_ALIVE": keep_alive,
        })  # fmt: skip
        return
    if engine is DrawingEngine.ray:
        from backend.server.cluster import open_cluster

        with open_cluster(replicas, keep_alive=plan.keep_alive, say=talk.say) as drawers:
            run(plan, settings, drawers, say=talk.say)
        return
    from backend.server.drawers import ProcessDrawer

    run(plan, settings, [ProcessDrawer()], say=talk.say)


def _start(settings: Settings, talk: Talk, said: dict[str, str | None]) -> None:
    if (client := find_server(settings)) is None:
        client = start_server(settings, {name: value for name, value in said.items() if value is not None})
    talk.say(f"lens serves {client.place.url} in the background: lens ps, lens stop")


def need_server(settings: Settings) -> Client:
    """Raises NetworkError where none runs."""
    client = find_server(settings)
    if client is None:
        raise NetworkError("no server runs", hint="start one: lens serve")
    return client


def show(settings: Settings, talk: Talk) -> None:
    """The server as a few lines, or as JSON."""
    client = need_server(settings)
    status, jobs = client.status(), client.jobs()
    if talk.json:
        talk.result({"url": client.place.url, **status, "jobs": [job.data() for job in jobs]})
        return
    talk.data(f"server  {client.place.url}, process {status['pid']}, lens {status['version']}")
    talk.data(f"folder  {status['folder']}")
    for drawer in status["drawers"]:
        talk.data(f"memory  {_memory(drawer, time.time())}")
    for job in jobs:
        talk.data(_line(job))


def _memory(drawer: dict[str, Any], now: float) -> str:
    """`nano, 812 MB, until 12:03:20`."""
    where = drawer.get("node")
    at = "" if where is None else f" on {where}"
    if drawer.get("model") is None or drawer.get("resident") is None:
        return f"no model{at}"
    size, until = human_bytes(drawer["resident"]), drawer.get("until")
    if drawer.get("job") is not None:
        kept = f"draws {drawer['job']}"
    else:
        kept = "for ever" if until is None else f"until {datetime.fromtimestamp(max(until, now)):%H:%M:%S}"
    return f"{drawer['model']}, {size}, {kept}{at}"


def _line(job: Job) -> str:
    prompt = " ".join(job.prompt.split())
    short = prompt if len(prompt) <= WIDTH else f"{prompt[: WIDTH - 1]}…"
    state = f"waits {job.position + 1}" if job.position is not None else str(job.state)
    error = "" if job.error is None else f": {job.error.get('message')}"
    return f"{job.id}  {state:<9}  {job.made}/{job.total}  {short}{error}"


def stop(settings: Settings, talk: Talk, *, jobs: Sequence[str], unload: bool) -> None:
    """Cancel jobs, unload, or end the server. Raises UsageError for a job that is not known."""
    client = find_server(settings)
    if client is None:
        if jobs or unload:
            raise NetworkError("no server runs")
        talk.say("no server runs")
        return
    if unload:
        client.unload()
    for job in _named(client, jobs):
        ended = client.cancel(job.id)
        talk.say(f"{job.id}: {'stops after this step' if ended.state is JobState.running else ended.state}")
    if jobs or unload:
        return
    client.stop()
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        try:
            client.status()
        except LensError:
            talk.say("the server has ended")
            return
        time.sleep(0.05)
    raise NetworkError(f"the server has not ended within {PATIENCE:g} s", hint=f"end the process {client.place.pid}")


def _named(client: Client, names: Sequence[str]) -> list[Job]:
    known, found = client.jobs() if names else [], list[Job]()
    for name in names:
        fits = [job for job in known if job.id.startswith(name)]
        if not name or len(fits) != 1:
            raise UsageError(f"{'several jobs begin' if fits else 'no job begins'} with {name!r}", hint="lens ps")
        found += fits
    return found
