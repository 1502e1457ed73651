"""Jobs over HTTP: one server, one worker with the fake engine, asked by our own client and by nobody's.

Why it can be trusted: files are read back from the disk and compared with what the client was told; how a job has to
end is written down here for each wish, and what a stranger may not do is tried with plain sockets and `http.client`.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

import prompts
from backend import presets
from backend.errors import LensError, RefusedError, UntrustedError, UsageError
from backend.inputs.files import load_pixels
from backend.picture.history import History
from backend.picture.images import pixel_sha256, read_metadata
from backend.picture.outputs import OutputPlan
from backend.reasoner.refine import make_plan
from backend.server.client import Client
from backend.server.feed import Feed
from backend.server.jobs import Job, JobState, UnknownJobError
from backend.server.place import Place
from backend.server.queue import Queue
from backend.types import ImageFormat, ReasonerMode
from backend.wish import Wish
from tests.backend.scripted_endpoint import completion, decision
from tests.backend.server.conftest import Running

SMALL: dict[str, Any] = {"size": "176x176", "steps": 2}


def plan_in(folder: Path, **more: Any) -> OutputPlan:
    return OutputPlan(template=str(folder / "{slug}-{seed}"), suffix=".png", format=ImageFormat.png, **more)


def end_of(client: Client, job: Job) -> tuple[Job, list[dict[str, Any]]]:
    events = list(client.events(job.id))
    return client.job(job.id), events


def wait_for(client: Client, job: Job, state: JobState) -> None:
    until = time.monotonic() + 20
    while client.job(job.id).state is not state:
        assert time.monotonic() < until
        time.sleep(0.01)


# ---------------------------------------------------------------------------------------------------------------- jobs


def test_a_job_from_its_wish_to_its_files(server: Running, tmp_path: Path) -> None:
    wish = Wish(prompt="a red [fish]", num=3, seeds=("7",), **SMALL)
    job = server.client.submit(wish, plan_in(tmp_path), parent_id="p", relation="variation")
    assert job.total == 3 and not job.state.ended
    ended, events = end_of(server.client, job)
    assert (ended.state, ended.made, ended.failures, ended.error) == (JobState.done, 3, 0, None)
    saved = [event for event in events if event["event"] == "picture_saved"]
    assert [event["seed"] for event in saved] == [7, 8, 9] and [event["index"] for event in saved] == [0, 1, 2]
    for event in saved:
        path = Path(event["path"])
        record = read_metadata(path).record
        assert record is not None and record["id"] == event["id"] and record["seed"] == event["seed"]
        assert pixel_sha256(load_pixels(path)) == event["pixel_sha256"] == record["pixel_sha256"]
    assert sorted(tmp_path.iterdir()) == sorted(Path(event["path"]) for event in saved)  # once, and nothing else
    with History(server.home / "data/history.db") as history:
        entries = [history.find(event["id"]) for event in saved]
    assert {(entry.parent, entry.relation) for entry in entries} == {("p", "variation")}
    numbers = [event["number"] for event in events]
    assert numbers == sorted(set(numbers)) and {event["job"] for event in events} == {job.id}


def test_a_client_that_comes_back_hears_the_rest(server: Running, tmp_path: Path) -> None:
    job = server.client.submit(Wish(prompt="fish", num=2, seeds=("1",), **SMALL), plan_in(tmp_path))
    _, events = end_of(server.client, job)
    lasting = [event for event in events if event["event"] in ("picture_saved", "job_changed")]
    middle = lasting[2]["number"]
    again = [
        event for event in server.client.events(job.id, middle) if event["event"] in ("picture_saved", "job_changed")
    ]
    assert again == [event for event in lasting if event["number"] > middle]


def test_pictures_without_a_name_are_fetched(server: Running) -> None:
    job = server.guest.submit(Wish(prompt="fish", seeds=("1",), format=ImageFormat.webp, **SMALL), None)
    _, events = end_of(server.guest, job)
    (saved,) = [event for event in events if event["event"] == "picture_saved"]
    assert saved["path"] is None and server.guest.picture(job.id, 0)[8:12] == b"WEBP"
    with pytest.raises(UnknownJobError):
        server.guest.picture(job.id, 1)


def test_sent_twice_it_is_one_job(server: Running) -> None:
    body = {"id": "ab" * 8, "wish": {"prompt": "fish", "seeds": [1], **SMALL}}
    first, second = (server.guest._ask("POST", "/v1/jobs", body) for _ in range(2))  # pyright: ignore[reportPrivateUsage]
    assert first["created"] == second["created"]
    assert [job.id for job in server.guest.jobs()].count("ab" * 8) == 1


@pytest.mark.parametrize(
    ("prompt", "state", "made", "failures", "code"),
    [("oom", JobState.failed, 0, 0, "out_of_memory"), ("broken", JobState.failed, 0, 0, "failure"),
     ("nan", JobState.done, 1, 1, None)],
)  # fmt: skip
def test_a_bad_job_hurts_no_other(
    server: Running, prompt: str, state: JobState, made: int, failures: int, code: str | None
) -> None:
    bad = server.guest.submit(Wish(prompt=prompt, num=2, seeds=("1",), **SMALL), None)
    good = server.guest.submit(Wish(prompt="fish", seeds=("1",), **SMALL), None)
    ended, _ = end_of(server.guest, bad)
    assert (ended.state, ended.made, ended.failures) == (state, made, failures)
    assert (ended.error or {}).get("code") == code
    assert end_of(server.guest, good)[0].state is JobState.done


def test_cancel_move_and_the_order(server: Running) -> None:
    slow = server.guest.submit(Wish(prompt="slow", num=50, seeds=("1",), **SMALL), None)
    wait_for(server.guest, slow, JobState.running)
    others = [server.guest.submit(Wish(prompt=f"fish {k}", seeds=("1",), **SMALL), None) for k in range(3)]
    assert [job.position for job in others] == [0, 1, 2]
    assert server.guest.move(others[2].id, 0).position == 0
    waiting = [job.id for job in server.guest.jobs() if job.state is JobState.queued]
    assert waiting == [others[2].id, others[0].id, others[1].id]
    assert server.guest.cancel(others[0].id).state is JobState.cancelled
    server.guest.cancel(slow.id)
    ended, _ = end_of(server.guest, slow)
    assert ended.state is JobState.cancelled and ended.made < 50
    assert all(end_of(server.guest, job)[0].state is JobState.done for job in (others[2], others[1]))
    assert server.guest.cancel(slow.id).state is JobState.cancelled  # again: as it is
    with pytest.raises(UsageError, match="does not wait"):
        server.guest.move(slow.id, 0)


def test_a_worker_that_is_killed_and_one_that_does_not_listen(server: Running, tmp_path: Path) -> None:
    """Its job goes on with another one, at the picture it was at; a second cancel takes effect at once."""
    import os
    import signal

    job = server.client.submit(Wish(prompt="slow", num=6, seeds=("1",), **SMALL), plan_in(tmp_path))
    for event in server.client.events(job.id):
        if event["event"] == "picture_saved":
            break
    os.kill(server.client.status()["drawers"][0]["pid"], signal.SIGKILL)
    ended, events = end_of(server.client, job)
    assert (ended.state, ended.made) == (JobState.done, 6) and len(list(tmp_path.iterdir())) == 6
    assert any("killed by signal 9" in event.get("text", "") for event in events)
    deaf = server.client.submit(Wish(prompt="hang", num=500, seeds=("1",), **SMALL), None)
    wait_for(server.client, deaf, JobState.running)
    server.client.cancel(deaf.id)
    server.client.cancel(deaf.id)
    assert end_of(server.client, deaf)[0].state is JobState.cancelled


def test_the_server_answers_while_it_draws(server: Running) -> None:
    job = server.client.submit(Wish(prompt="slow", num=50, seeds=("1",), **SMALL), None)
    wait_for(server.client, job, JobState.running)
    status = server.client.status()
    assert status["running"] == 1 and status["drawers"][0]["job"] == job.id
    server.client.cancel(job.id)
    end_of(server.client, job)


def test_an_endpoint_rewrites_while_the_model_draws(server: Running) -> None:
    """A rewrite waits for no job; a refusal comes as its error."""
    plan = asdict(make_plan(server.settings.reasoner, presets.get("nano"), "nano", mode=ReasonerMode.api, files=None))
    rule = prompts.rule_names()[0]
    refusal = {"decision": "refuse", "prompt": None, "rule": rule}
    server.endpoint.answers[:] = [decision("a cat by the sea"), completion(json.dumps(refusal))]
    job = server.client.submit(Wish(prompt="slow", num=99, seeds=("1",), **SMALL), None)
    wait_for(server.client, job, JobState.running)
    told = server.client.refine("a cat", plan)
    assert (told["prompt"], told["original"], told["expander"]["kind"]) == ("a cat by the sea", "a cat", "api")
    with pytest.raises(RefusedError) as caught:
        server.client.refine("a dog", plan)
    assert caught.value.rule == rule and server.client.job(job.id).state is JobState.running
    server.client.cancel(job.id)
    assert end_of(server.client, job)[0].state is JobState.cancelled


# ------------------------------------------------------------------------------------------------------------ strangers


@pytest.mark.parametrize(
    ("wish", "output", "code"),
    [
        ({"prompt": ""}, None, "usage"), ({"prompt": "a" * 5000}, None, "usage"), ({"prompt": "a\x00"}, None, "usage"),
        ({}, None, "usage"), ({"prompt": "a", "num": 10_001}, None, "usage"),
        ({"prompt": "a", "num": 101}, None, "usage"),
        ({"prompt": "a", "size": "16x16"}, None, "usage"), ({"prompt": "a", "size": "99999x99999"}, None, "usage"),
        ({"prompt": "a", "steps": 0}, None, "usage"), ({"prompt": "a", "guidance": -1}, None, "usage"),
        ({"prompt": "a", "model": "dall-e-3"}, None, "model_not_found"),
        ({"prompt": "a", "model": "/etc"}, None, "model_not_found"),
        ({"prompt": "a", "loras": ["/etc/passwd"]}, None, "usage"), ({"prompt": "a", "loras": ["../x"]}, None, "usage"),
        ({"prompt": "a", "init": "/etc/passwd"}, None, "usage"), ({"prompt": "a", "mask": "m.png"}, None, "usage"),
        ({"prompt": "a", "system_prompt": "/etc/passwd"}, None, "usage"),
        ({"prompt": "a", "output": "x"}, None, "usage"),
        ({"prompt": "a"}, "/tmp/x.png", "untrusted"), ({"prompt": "a"}, "../x.png", "untrusted"),
        ({"prompt": "a"}, "a/../../x.png", "untrusted"), ({"prompt": "a"}, "~/x.png", "untrusted"),
        ({"prompt": "a"}, "x.exe", "usage"), ({"prompt": "a"}, "{seed.__class__}", "usage"),
        ({"prompt": "a"}, 3, "usage"),
        ({"prompt": "a"}, {"template": "/tmp/x", "suffix": ".png", "format": "png"}, "usage"), ([], None, "usage"),
        ({"promt": "a"}, None, "usage"),
    ],
)  # fmt: skip
def test_what_a_stranger_may_not_ask(server: Running, wish: object, output: object, code: str) -> None:
    before = len(server.guest.jobs())
    with pytest.raises(LensError) as caught:
        server.guest._ask("POST", "/v1/jobs", {"wish": wish, "output": output})  # pyright: ignore[reportPrivateUsage]
    assert caught.value.code == code and len(server.guest.jobs()) == before


def test_a_stranger_s_file_stays_below_the_folder(server: Running) -> None:
    (server.folder / "link").symlink_to("/tmp")
    with pytest.raises(UntrustedError):
        server.guest._ask("POST", "/v1/jobs", {"wish": {"prompt": "a"}, "output": "link/x.png"})  # pyright: ignore[reportPrivateUsage]
    body = {"wish": {"prompt": "fish", "seeds": [1], **SMALL}, "output": "sub/{slug}.png"}
    job = server.guest._job(server.guest._ask("POST", "/v1/jobs", body))  # pyright: ignore[reportPrivateUsage]
    assert end_of(server.guest, job)[0].state is JobState.done and (server.folder / "sub/fish.png").is_file()
    with pytest.raises(UsageError):
        server.guest.stop()


def ask(
    server: Running, method: str, path: str, body: bytes | None = None, **headers: str
) -> tuple[int, dict[str, Any]]:
    place = server.client.place
    connection = http.client.HTTPConnection(place.host, place.port, timeout=20)
    connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    assert "access-control-allow-origin" not in {name.lower() for name, _ in answer.getheaders()}
    return answer.status, json.loads(text)


def test_pages_of_other_origins_and_names(server: Running) -> None:
    own = f"127.0.0.1:{server.client.place.port}"
    assert ask(server, "GET", "/v1/models")[0] == 200
    assert ask(server, "GET", "/v1/models", Origin=f"http://{own}")[0] == 200
    assert ask(server, "GET", "/v1/models", Host="localhost:1")[0] == 200
    port = own.split(":")[1]
    for headers in (
        {"Host": "evil.example"}, {"Host": f"evil.example:{port}"}, {"Origin": "https://evil.example"},
        {"Origin": "null"}, {"Origin": "http://localhost:3000"}, {"Sec_Fetch_Site": "cross-site"},
    ):  # fmt: skip
        status, body = ask(server, "GET", "/v1/models", None, **headers)
        assert (status, body["error"]["code"]) == (403, "forbidden"), headers
    preflight = ask(server, "OPTIONS", "/v1/jobs", Origin="https://evil.example", Access_Control_Request_Method="POST")
    assert preflight[0] == 403


def test_bodies_that_are_none_or_too_long(server: Running) -> None:
    for body in (b"", b"{", b"[]", b'{"wish": 3}', b"\xff\xfe", b'{"wish": {"prompt": NaN}}', b"[" * 100_000):
        status, told = ask(server, "POST", "/v1/jobs", body, Content_Type="application/json")
        assert status == 400 and told["error"]["message"], body[:20]
    status, told = ask(server, "POST", "/v1/jobs", b"{}", Content_Type="application/x-www-form-urlencoded")  # curl's
    assert status == 400 and "'Content-Type: application/json'" in told["error"]["hint"], told
    status, told = ask(server, "POST", "/v1/jobs", b"x" * (2 << 20), Content_Type="application/json")
    assert status == 413 and told["error"]["code"] == "too_large"
    place = server.client.place
    with socket.create_connection((place.host, place.port), timeout=20) as bare:  # says 50 MB, and sends none of it
        bare.sendall(b"POST /v1/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 50000000\r\n\r\n")
        assert b" 413 " in bare.recv(1000)
    with socket.create_connection((place.host, place.port), timeout=20) as bare:  # says nothing, and sends 2 MB
        bare.sendall(b"POST /v1/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n"
                     b"Content-Type: application/json\r\n\r\n200000\r\n" + b"x" * 0x200000 + b"\r\n")  # fmt: skip
        assert b" 413 " in bare.recv(1000)


def test_a_client_that_goes_away_leaves_its_job(server: Running, tmp_path: Path) -> None:
    job = server.client.submit(Wish(prompt="slow", num=2, seeds=("1",), **SMALL), plan_in(tmp_path))
    events = server.client.events(job.id)
    next(events)
    events.close()
    threading.Thread(target=lambda: next(server.client.events(job.id), None), daemon=True).start()
    assert end_of(server.client, job)[0].state is JobState.done and len(list(tmp_path.iterdir())) == 2


def test_who_leaves_takes_nobody_s_events_along(tmp_path: Path) -> None:
    async def listen() -> dict[str, Any] | None:
        with Queue(tmp_path / "queue.db") as queue:
            feed = Feed(queue)
            feed.tell("ab", {"event": "first"})
            stays, leaves = feed.follow("ab", 0), feed.follow("ab", 0)
            for listener in (stays, leaves):
                await anext(listener)
            await leaves.aclose()
            feed.tell("ab", {"event": "second"})
            return await asyncio.wait_for(anext(stays), 20)

    heard = asyncio.run(listen())
    assert heard is not None and heard["event"] == "second"


def test_who_is_nobody_s_server(server: Running) -> None:
    place = server.client.place
    assert server.client.is_ours()
    assert not Client(Place(host=place.host, port=place.port, key="0" * 32)).is_ours()
    assert not Client(Place(host=place.host, port=1, key=place.key), timeout=2).is_ours()
