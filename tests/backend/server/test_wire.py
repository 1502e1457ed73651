"""Events, wishes and jobs go through JSON and come back as they were; the file that says where a server is.

Why it can be trusted: what comes back is compared with the object that went in, through real JSON, and every event of
`backend.events` has to be in the table (one that is new and has no JSON fails here).
"""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any, get_args

import pytest
from PIL import Image

from backend import events
from backend.errors import FileError, OutOfMemoryError, RefusedError, UntrustedError, UsageError
from backend.events import (
    DrawingStarted,
    Generation,
    Noticed,
    PhaseDone,
    PhaseStarted,
    PictureFailed,
    PictureSaved,
    PlanMade,
    PreviewMade,
    PromptRefused,
    PromptRewritten,
    Severity,
    StepDone,
)
from backend.picture.images import save_image
from backend.server.jobs import Job, JobState, error_data, error_from, job_from
from backend.server.place import Place, draw_key, is_loopback, parse_host, proof, read_pid_file, write_pid_file
from backend.server.wire import ToldPlan, event_data, event_from, saved_from, wish_data, wish_from
from backend.types import DType, Expander, GenerationRequest, ImageFormat, InputPicture, LoraUse, ModelIdentity, Phase
from backend.wish import ROWS, Wish

REQUEST = GenerationRequest(
    prompt="a [red] fish", model="nano", seeds=(1, 2), width=64, height=32, steps=2, guidance=3.5,
    loras=(LoraUse(path="/l/a.safetensors", sha256="0" * 64, scale=0.5),), dtype=DType.float32,
)  # fmt: skip
EXPANDER = Expander(
    kind="local",
    model="nano",
    system_prompt="nano",
    instructions_sha256="1" * 64,
    effort="low",
    temperature=None,
    seed=3,
)
PLAIN = [
    PhaseStarted(phase=Phase.denoise, total=4, image=1),
    StepDone(phase=Phase.denoise, step=1, total=4, image=0, seconds=0.25),
    PhaseDone(phase=Phase.decode, seconds=1.0, peak_bytes=7),
    Noticed(text="[/] é", severity=Severity.note),
    PromptRewritten(prompt="b", original="a", expander=EXPANDER, cached=True),
    PromptRefused(rule="r", original="a", expander=EXPANDER, cached=False),
    DrawingStarted(request=REQUEST),
]


def through_json(data: object) -> Any:
    return json.loads(json.dumps(data, allow_nan=False))


@pytest.mark.parametrize("event", PLAIN, ids=lambda event: type(event).__name__)
def test_an_event_comes_back(event: events.Event) -> None:
    assert event_from(through_json(event_data(event))) == event


def test_a_preview_a_plan_and_a_failure_come_back() -> None:
    made = PreviewMade(image=0, step=1, total=4, picture=Image.new("RGB", (4, 2), (9, 8, 7)))
    back = event_from(through_json(event_data(made)))
    assert isinstance(back, PreviewMade) and back.picture.tobytes() == made.picture.tobytes()
    plan: Any = ToldPlan("cpu · 3 MB", {"profile": "cpu"})
    told = event_from(through_json(event_data(PlanMade(plan=plan, reason="why"))))
    assert isinstance(told, PlanMade) and (told.plan.line(), told.plan.data()) == (plan.line(), plan.data())
    failed = event_from(through_json(event_data(PictureFailed(index=1, seed=2, error=OutOfMemoryError("x", hint="y")))))
    assert isinstance(failed, PictureFailed) and isinstance(failed.error, OutOfMemoryError) and failed.error.hint == "y"


def test_every_event_is_known() -> None:
    known = {type(event) for event in PLAIN} | {PreviewMade, PlanMade, PictureFailed, PictureSaved}
    drawing = get_args(events.Drawing)
    assert known == {*drawing, *get_args(events.Event)}


def test_a_saved_picture_comes_back(tmp_path: Path) -> None:
    """All that a command prints of a picture, and its pixels."""
    image = Image.frombytes("RGB", (4, 2), bytes(range(24)))
    made = Generation(
        image=image, request=REQUEST, index=1, seed=2, sigmas=(1.0, 0.0), timings={"denoise": 0.5}, dtype="float32",
        device="cpu", model=ModelIdentity(name="nano", sha256={"vae": "2" * 64}), template_date="2026-05-26",
        versions={"torch": "0"},
    )  # fmt: skip
    path, record = save_image(made, tmp_path / "a.png", format=ImageFormat.png)
    saved = PictureSaved(generation=made, record=record, path=path)
    back = saved_from(through_json(event_data(saved)), REQUEST, path, None)
    assert (back.row(), back.record) == (saved.row(), saved.record)
    assert back.generation.image.tobytes() == image.tobytes() and back.generation.model == made.model
    with pytest.raises(UntrustedError):
        saved_from({"record": {}}, REQUEST, path, None)


def test_a_wish_comes_back() -> None:
    wish = Wish(
        prompt="a", seeds=("1", "5..9"), loras=REQUEST.loras, expander=EXPANDER, dtype=DType.bfloat16, wildcards=False,
        init=InputPicture(path="/a.png", sha256="0" * 64), mask="m.png",
    )  # fmt: skip
    assert wish_from(through_json(wish_data(wish))) == wish
    assert wish_from({"prompt": "a", "seeds": 3, "steps": None}) == Wish(prompt="a", seeds=("3",))


@pytest.mark.parametrize(
    "data",
    [3, [], {"promt": "a"}, {"steps": "8"}, {"steps": True}, {"loras": [3]}, {"expander": 1}, {"seeds": [[1]]},
     {"dtype": "float16"}, {"init": 3}, {"init": {"path": "a"}}],
)  # fmt: skip
def test_a_wish_that_is_none(data: object) -> None:
    with pytest.raises(UsageError):
        wish_from(data)


def test_a_job_and_an_error_come_back() -> None:
    job = Job(
        id="ab", state=JobState.failed, prompt="a", model="nano", total=2, created=1.5, wish={"prompt": "a"},
        error=error_data(FileError("no", hint="yes")),
    )  # fmt: skip
    assert job_from(through_json(job.data()), "x") == job
    error = error_from(job.error)
    assert type(error) is FileError and (str(error), error.hint) == ("no", "yes")
    assert type(error_from({"code": "refused", "message": "m"})) is RefusedError
    for data in (None, {}, {**job.data(), "state": "lost"}, {**job.data(), "wish": 3}, {**job.data(), "total": "2"}):
        with pytest.raises(UntrustedError):
            job_from(data, "x")


def test_the_pid_file(tmp_path: Path) -> None:
    path, place = tmp_path / "state/server.pid", Place(host="127.0.0.1", port=5367, key=draw_key())
    write_pid_file(path, place)
    write_pid_file(path, place)  # over an old one
    found = read_pid_file(path)
    assert found is not None and (found.host, found.port, found.key) == (place.host, place.port, place.key)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert proof(place.key or "", "n") == proof(found.key or "", "n") != proof("other", "n")
    for torn in (b"", b"12", b"12\n127.0.0.1 x\nk", b"12\n127.0.0.1 99999\n" + b"k" * 32, b"\xff\n\n"):
        path.write_bytes(torn)
        assert read_pid_file(path) is None, torn


def test_addresses() -> None:
    assert parse_host("box", "x").url == "http://box:5367"
    assert parse_host("[::1]:80", "x").url == "http://[::1]:80"
    assert parse_host("https://box", "x").url == "https://box:443"
    assert [is_loopback(host) for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost", "box", "0.0.0.0")] == [
        True, True, True, True, False, False
    ]  # fmt: skip
    for wrong in ("", "box:x", "ftp://box", "box/path", "u:p@box", "box:99999", "bö"):
        with pytest.raises(UsageError):
            parse_host(wrong, "x")


def test_the_table_of_wishes_has_a_json_form_for_every_row() -> None:
    """A row of a kind that JSON cannot carry would be found out by the first person who sends it."""
    samples = {str: "text", int: 3, float: 2.5, bool: True}
    for row in ROWS.values():
        kind = row.kind
        if kind in samples:
            assert wish_from({row.name: samples[kind]}).given()[row.name] == samples[kind]
