"""A server that is killed in the middle, a second one, stale files; and `lens gen` with and without a server.

Why it can be trusted: real processes and SIGKILL; the files on the disk are counted and their pixels compared with
those of a run in one process.
"""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from backend.errors import BusyError, FileError, LensError, UsageError
from backend.inputs.files import load_pixels
from backend.paths import queue_file, server_file
from backend.picture.history import History
from backend.picture.images import pixel_sha256
from backend.picture.outputs import OutputPlan
from backend.server.client import Client, find_server
from backend.server.jobs import JobState
from backend.server.pictures import Pictures
from backend.server.place import Place, read_pid_file, write_pid_file
from backend.server.queue import Kept, Queue
from backend.server.serve import make_plan, parse_time, serve
from backend.settings import Settings
from backend.types import ImageFormat
from backend.wish import Wish
from tests.backend.server.conftest import FAKE_WORKER, serving
from tests.lens_cli.cli import Run, environment, lens, lens_inside

SERVER = """
import sys
from backend.server.drawers import ProcessDrawer
from backend.server.serve import make_plan, serve
from backend.settings import Settings
serve(make_plan(Settings(), host="127.0.0.1:0"), Settings(), [ProcessDrawer(sys.argv[1:])], say=print)
"""


def start() -> tuple[subprocess.Popen[bytes], Client]:
    """A server of this home as a process of its own."""
    child = subprocess.Popen([sys.executable, "-c", SERVER, *FAKE_WORKER], env=environment())
    until = time.monotonic() + 30
    while (place := read_pid_file(server_file())) is None or place.pid != child.pid or not Client(place).is_ours():
        assert time.monotonic() < until and child.poll() is None
        time.sleep(0.02)
    return child, Client(place)


def test_killed_in_the_middle_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LENS_HOME", str(tmp_path / "home"))
    child, client = start()
    wish = Wish(prompt="slow", num=5, seeds=("1",), steps=2, size="176x176")
    plan = OutputPlan(template=str(tmp_path / "out/{seed}"), suffix=".png", format=ImageFormat.png)
    job, waiting = client.submit(wish, plan), client.submit(Wish(prompt="fish", steps=2, size="176x176"), None)
    for event in client.events(job.id):
        if event["event"] == "picture_saved" and event["index"] == 1:
            break
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert find_server(Settings()) is None  # the file is stale, and nobody is there
    with serving(make_plan(Settings(), host="127.0.0.1:0"), Settings()) as client:
        events = list(client.events(job.id))
        assert client.job(job.id).state is JobState.done
        list(client.events(waiting.id))
        assert client.job(waiting.id).state is JobState.done
        saved = {event["seed"]: event for event in events if event["event"] == "picture_saved"}
        files = sorted((tmp_path / "out").iterdir())
        assert [file.name for file in files] == [f"{seed}.png" for seed in range(1, 6)]  # each once
        for file in files:
            assert pixel_sha256(load_pixels(file)) == saved[int(file.stem)]["pixel_sha256"]
        with History(tmp_path / "home/data/history.db") as history:
            assert len(history) == 5
        monkeypatch.chdir(tmp_path)
        look_at_commands(client, inside := partial(lens_inside, monkeypatch, capfd))
    assert inside("ps").code == 3


def look_at_commands(client: Client, inside: Callable[..., Run]) -> None:
    """`lens gen` draws with the server as it would by itself: names, record, pixels. `ps`, `serve`, `stop` see it."""
    words = ("gen", "a [red] fish", "-s", "3", "-n", "2", "--steps", "2", "--size", "176x176", "--json")
    there, here = lens(*words, "-o", "there/").json["data"], inside(*words, "-o", "here/", "--local").json["data"]
    rows = [[(row["seed"], row["pixel_sha256"]) for row in run["images"]] for run in (there, here)]
    assert rows[0] == rows[1] and len(rows[0]) == 2 and there["request"] == here["request"]
    assert there["again"].replace("there", "here") == here["again"]
    assert [row["path"].replace("there", "here") for row in there["images"]] == [row["path"] for row in here["images"]]
    names = [sorted(file.name for file in Path(folder).iterdir()) for folder in ("there", "here")]
    assert names[0] == names[1]
    assert any(job.prompt == "a [red] fish" for job in client.jobs())
    failed = inside("gen", "oom", "--steps", "2", "--size", "176x176")
    assert failed.code == 6 and "not enough memory" in failed.err
    shown = inside("ps", "--json").json["data"]
    assert shown["url"] == client.place.url and len(shown["jobs"]) == 4
    second = inside("serve", "--port", "0")
    assert second.code == 3 and "runs already" in second.err
    assert inside("stop").code == 0


def test_a_picture_that_was_written_just_before_the_kill_is_found(tmp_path: Path) -> None:
    pictures = Pictures(tmp_path / "spool", tmp_path / "history.db")
    (tmp_path / "a.png").write_bytes(b"of somebody else")
    path = pictures.write(tmp_path / "a.png", b"ours")
    assert path.name == "a-1.png"
    digest = hashlib.sha256(b"ours").hexdigest()
    kept = Kept(place=0, sha256=digest, wished=tmp_path / "a.png", path=None, event={})
    assert pictures.find_written(kept) == path
    path.unlink()
    assert pictures.find_written(kept) is None


def test_queues_of_the_future_and_torn(tmp_path: Path) -> None:
    import sqlite3

    path = tmp_path / "queue.db"
    with Queue(path) as queue, Queue(path):  # two at once: the layout is raised once
        queue.add("ab", {}, {}, prompt="a", model="nano", total=1)
        numbers = [queue.next_number() for _ in range(3)]
    with Queue(path) as again:
        assert again.next_number() > numbers[-1] and again.row("ab").job.state is JobState.queued
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(FileError, match="newer lens"):
        Queue(path)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(FileError, match=r"damaged|newer"):
        Queue(path)


def test_addresses_keys_and_times(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="other machines"):
        make_plan(Settings(), host="0.0.0.0")
    with pytest.raises(UsageError, match="key"):
        make_plan(Settings(), host="0.0.0.0", api_key="short")
    assert make_plan(Settings(), host="0.0.0.0", api_key="long enough").place.port == 5367
    assert [parse_time(text) for text in ("5m", "90", "1.5h", "0", "-1")] == [300, 90, 5400, 0, None]
    for wrong in ("", "5x", "-5", "nan", "1e9"):
        with pytest.raises(UsageError):
            parse_time(wrong)


def test_a_port_that_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    monkeypatch.setenv("LENS_HOME", str(tmp_path))
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(BusyError, match="cannot listen"):
            serve(make_plan(Settings(), host="127.0.0.1", port=port), Settings(), [], say=print)
        # Somebody else on the port that a stale file names is told nothing.
        write_pid_file(server_file(), Place(host="127.0.0.1", port=port, key="0" * 32))
        client = Client(read_pid_file(server_file()) or pytest.fail("no place"), timeout=0.2)
        with pytest.raises(LensError):
            client.status()
    assert find_server(Settings()) is None and not queue_file().exists()


def test_two_people_on_one_machine_each_have_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a command starts on its own finds another port where the usual one is taken, unless one was named."""
    import socket

    monkeypatch.setenv("LENS_HOME", str(tmp_path))
    monkeypatch.setattr("backend.server.serve.LINGER", 0.1)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        plan = make_plan(Settings(), leave_when_idle=True, keep_alive="0.1")
        heard: list[str] = []
        serve(replace(plan, place=replace(plan.place, port=port)), Settings(), [], say=heard.append)
        assert heard[0].startswith("lens serves http://127.0.0.1:") and f":{port}," not in heard[0]
        named = Settings(host=f"127.0.0.1:{port}")
        with pytest.raises(BusyError, match="cannot listen"):
            serve(make_plan(named, leave_when_idle=True), named, [], say=print)
