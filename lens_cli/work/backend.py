"""Who draws for a command: a server that keeps its model in memory, where there is one, or this process."""

from __future__ import annotations

from backend.errors import LensError, NetworkError
from backend.server.client import Client, find_server, start_server
from backend.server.remote import Draws, RemoteSession
from backend.session import Session
from backend.settings import Settings
from lens_cli.terminal.console import Talk


def open_session(settings: Settings, talk: Talk) -> Draws:
    """A session of a server that runs, of one that is started now where `keep_alive` is set, or of this process.

    Raises NetworkError where a server was named by --host and does not answer.
    """
    client = None if settings.local else _find(settings, talk)
    if client is None:
        return Session(settings)
    talk.detail(f"drawn by the server at {client.place.url}")
    return RemoteSession(settings, client)


def _find(settings: Settings, talk: Talk) -> Client | None:
    client = find_server(settings)
    if client is None and settings.origins.get("host") == "--host":
        raise NetworkError(f"no server answers at {settings.host}", hint="start one: lens serve; or leave --host out")
    if client is None and settings.keep_alive is not None and settings.keep_alive.strip() != "0":
        talk.say(f"starting a server that keeps the model in memory for {settings.keep_alive}: lens ps, lens stop")
        try:
            client = start_server(settings)
        except LensError as error:
            talk.warn(f"{error}; drawn in this process")
    return client
