"""A server of these tests: the real one in a thread, on a free port, with the fake engine in its worker."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from backend.errors import NetworkError
from backend.paths import server_file
from backend.server.client import Client
from backend.server.drawers import ProcessDrawer
from backend.server.place import Place, read_pid_file
from backend.server.serve import Plan, serve
from backend.settings import ReasonerSettings, Settings
from backend.types import ReasonerMode
from tests.backend.scripted_endpoint import Endpoint, decision

FAKE_WORKER = (sys.executable, str(Path(__file__).with_name("fake_worker.py")))


@dataclass(frozen=True)
class Running:
    client: Client  # its owner
    guest: Client  # anybody else
    folder: Path  # of pictures
    home: Path
    settings: Settings  # the server's
    endpoint: Endpoint  # of a reasoner, which no job asks by itself

    @property
    def url(self) -> str:
        return self.client.place.url


@contextmanager
def serving(plan: Plan, settings: Settings) -> Generator[Client]:
    """A server in a thread of this process; its owner's client. It has ended at the end."""
    file, said = server_file(), list[str]()
    thread = threading.Thread(
        target=serve, args=(plan, settings, [ProcessDrawer(FAKE_WORKER)]), kwargs={"say": said.append}, daemon=True
    )
    thread.start()
    until = time.monotonic() + 60
    while (place := read_pid_file(file)) is None or place.pid != os.getpid() or not Client(place).is_ours():
        assert time.monotonic() < until and thread.is_alive(), said
        time.sleep(0.02)
    try:
        yield Client(place)
    finally:
        with suppress(NetworkError):  # it was stopped already
            Client(place).stop()
        thread.join(timeout=20)
    assert not thread.is_alive() and not file.exists()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Generator[Running]:
    home, folder = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("pictures")
    with Endpoint(decision("unset")) as endpoint, pytest.MonkeyPatch.context() as patch:
        patch.setenv("LENS_HOME", str(home))
        settings = Settings(reasoner=ReasonerSettings(mode=ReasonerMode.off, base_url=endpoint.url, model="m"))
        plan = Plan(place=Place(host="127.0.0.1", port=0), api_key=None, keep_alive=300, folder=folder)
        with serving(plan, settings) as client:
            patch.undo()
            guest = Client(Place(host=client.place.host, port=client.place.port))
            yield Running(client, guest, folder, home, settings, endpoint)
