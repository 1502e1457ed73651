"""`lens serve`: the server as a process, from its lock to its last word.

Beside the program, `python -m backend.server.serve` is how a command starts one in the background.
"""

from __future__ import annotations

import argparse
import asyncio
import errno
import logging
import os
import re
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from backend.errors import BusyError, LensError, UsageError, os_reason
from backend.paths import expanded, history_file, pictures_dir, queue_file, server_file, spool_dir, state_dir
from backend.server.place import DEFAULT_HOST, Place, draw_key, is_loopback, parse_host, write_pid_file
from backend.settings import Settings

if TYPE_CHECKING:
    import uvicorn
    from filelock import FileLock

    from backend.server.drawers import Drawer
    from backend.server.service import Service

KEEP_ALIVE = 300.0  # seconds that an idle model stays in memory
LINGER = 5.0  # seconds that a server in the background waits for its first job in any case
UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a server is to be."""

    place: Place  # port 0: any free one
    api_key: str | None
    keep_alive: float | None  # seconds; None: for ever
    folder: Path  # of pictures whose client may name no other
    memory: int | None = None  # bytes that an idle model may hold; None: any
    leave_when_idle: bool = False  # end when nobody has wanted anything for that long
    any_port: bool = False  # another one where that of `place` is taken, as by another user of this machine


def make_plan(
    settings: Settings, *, host: str | None = None, port: int | None = None, api_key: str | None = None,
    keep_alive: str | None = None, memory: str | None = None, leave_when_idle: bool = False,
) -> Plan:  # fmt: skip
    """What was typed, over the settings. Raises UsageError: an address beyond this machine without a key, no time."""
    from backend.memory.plan import parse_bytes

    place = parse_host(host or settings.host or DEFAULT_HOST, "--host" if host else "the setting host")
    if port is not None:
        place = Place(host=place.host, port=port)
    key = api_key or settings.api_key
    if key is not None and (len(key) < 8 or not key.isascii() or not key.isprintable()):
        raise UsageError("the API key is none", hint="at least eight plain characters")
    if key is None and not is_loopback(place.host):
        raise UsageError(
            f"{place.host} can be reached from other machines, and anybody there could draw",
            hint="add --api-key KEY, or set LENS_API_KEY",
        )
    folder = pictures_dir() if settings.output_dir is None else expanded(settings.output_dir).absolute()
    kept = keep_alive if keep_alive is not None else settings.keep_alive
    return Plan(
        place=place, api_key=key, keep_alive=KEEP_ALIVE if kept is None else parse_time(kept), folder=folder,
        memory=None if memory is None else parse_bytes(memory, "--memory"), leave_when_idle=leave_when_idle,
        any_port=leave_when_idle and host is None and port is None and settings.host is None,
    )  # fmt: skip


def parse_time(text: str) -> float | None:
    """`5m`, `90`, `90s`, `1h`, `0` -> seconds; `-1`: None, for ever. Raises UsageError."""
    if text.strip() == "-1":
        return None
    found = re.fullmatch(r"([0-9]{1,7}(?:\.[0-9]{1,3})?)([smh]?)", text.strip())
    if found is None:
        raise UsageError(f"{text!r} is no time to keep a model", hint="such as 5m, 90s, 0 for not at all, -1 for ever")
    return float(found[1]) * UNITS[found[2]]


def serve(plan: Plan, settings: Settings, drawers: Sequence[Drawer], *, say: Callable[[str], None]) -> None:
    """Serve until it is stopped. `say` is told where. Raises BusyError where another one runs or the port is taken."""
    lock, place, file = _only_one(), plan.place, server_file()
    try:
        listener = _listen(place, plan.any_port)
        try:
            asyncio.run(_serve(plan, settings, drawers, listener, file, say))
        finally:
            listener.close()
            file.unlink(missing_ok=True)
    finally:
        lock.release()


def _only_one() -> FileLock:
    """One server a home: two would share a queue."""
    from filelock import FileLock, Timeout

    state_dir().mkdir(parents=True, exist_ok=True)
    lock = FileLock(state_dir() / "server.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        from backend.server.place import read_pid_file

        other = read_pid_file(server_file())
        where = "" if other is None else f" at {other.url}, as process {other.pid}"
        raise BusyError(
            f"a server of this home runs already{where}", hint="lens ps shows it, lens stop ends it"
        ) from None
    return lock


def _listen(place: Place, any_port: bool = False) -> socket.socket:
    """Raises BusyError for a port that is taken, UsageError for an address that is not of this machine."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        if taken and any_port:
            return _listen(replace(place, port=0))
        kind_of = BusyError if taken else UsageError
        raise kind_of(f"cannot listen on {place.url}: {os_reason(error)}", hint="name another with --port") from error
    return listener


async def _serve(
    plan: Plan,
    settings: Settings,
    drawers: Sequence[Drawer],
    listener: socket.socket,
    file: Path,
    say: Callable[[str], None],
) -> None:
    import uvicorn

    from backend.server.http.access import Access
    from backend.server.http.app import make_app
    from backend.server.pictures import Pictures
    from backend.server.queue import Queue
    from backend.server.service import Service

    key, port = draw_key(), listener.getsockname()[1]
    service = Service(
        settings, Queue(queue_file()), drawers, Pictures(spool_dir(), history_file()), folder=plan.folder,
        keep_alive=plan.keep_alive, memory=plan.memory,
    )  # fmt: skip
    access = Access(owner_key=key, api_key=plan.api_key, loopback=is_loopback(plan.place.host))
    server = uvicorn.Server(uvicorn.Config(
        make_app(service, access, stop=lambda: setattr(server, "should_exit", True)), log_level="warning",
        access_log=False, timeout_graceful_shutdown=1, ws="none", timeout_keep_alive=30,
    ))  # fmt: skip
    near = {"0.0.0.0": DEFAULT_HOST, "::": "::1"}.get(plan.place.host, plan.place.host)  # every address is here too
    write_pid_file(file, Place(host=near, port=port, key=key))
    say(f"lens serves {Place(host=plan.place.host, port=port).url}, pictures go to {plan.folder}")
    watch = asyncio.create_task(_leave_when_idle(server, service, plan)) if plan.leave_when_idle else None
    await server.serve(sockets=[listener])
    if watch is not None:
        watch.cancel()


async def _leave_when_idle(server: uvicorn.Server, service: Service, plan: Plan) -> None:
    """End the server when nothing runs and nobody has wanted anything for as long as models are kept."""
    patience = plan.keep_alive
    while patience is not None:
        await asyncio.sleep(min(1.0, max(0.05, patience / 10)))
        if service.idle and time.monotonic() - service.used > max(patience, LINGER):
            server.should_exit = True
            return


def main(words: Sequence[str] | None = None) -> int:
    """A server in the background. Its words go to its log."""
    from backend.server.drawers import ProcessDrawer
    from backend.settings import load

    parser = argparse.ArgumentParser(prog="python -m backend.server.serve")
    parser.add_argument("--leave-when-idle", action="store_true", help="end when nobody has used it for long")
    given = parser.parse_args(words)
    logging.basicConfig(format="%(asctime)s %(message)s")
    os.chdir(state_dir())  # whoever started it may go away, with the folder it was in and the settings there
    try:
        settings = load()
        plan = make_plan(settings, leave_when_idle=given.leave_when_idle)
        serve(plan, settings, [ProcessDrawer()], say=_say)
    except LensError as error:
        _say(f"{error}" if error.hint is None else f"{error}; {error.hint}")
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


def _say(text: str) -> None:
    with suppress(OSError):
        sys.stderr.write(text + "\n")
        sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
