"""A session driven by a fake engine: what is rewritten, drawn, saved and told, and who gives memory back.

Why it can be trusted: the fake's pixels depend on the request alone (`tests/fake_engine.py`), files are read back from
the disk, and the reasoner is a script. That the real engine keeps the fake's promises is tested in `test_pipeline`.
"""

from __future__ import annotations

import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backend import presets
from backend.errors import (
    CancelledError,
    FileError,
    LensError,
    ModelMissingError,
    NumericsError,
    OutOfMemoryError,
    RefusedError,
)
from backend.events import (
    DrawingStarted,
    Event,
    Generation,
    Noticed,
    PhaseStarted,
    PictureFailed,
    PictureSaved,
    PlanMade,
    PromptRefused,
    PromptRewritten,
    Severity,
)
from backend.paths import history_file
from backend.picture.history import History
from backend.picture.images import pixel_sha256, read_metadata
from backend.picture.outputs import OutputPlan, plan_output
from backend.reasoner import refine as reasoner
from backend.reasoner.answers import Draft
from backend.reasoner.refine import RewritePlan, Task, make_plan
from backend.requests import ResolvedRequest
from backend.session import Session
from backend.settings import ReasonerSettings, Settings
from backend.types import GenerationRequest, ImageFormat, ReasonerMode
from tests.fake_engine import Engine, FakeFiles


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LENS_HOME", str(tmp_path / "home"))


def wish(prompt: str = "a fish", **change: Any) -> ResolvedRequest:
    preset = presets.get("nano")
    files: Any = FakeFiles(name="nano", preset=preset, text_encoder=(Path("x.gguf"),), notes=("a sentence",))
    request = GenerationRequest(prompt=prompt, model="nano", seeds=(4, 5, 6), width=32, height=16, steps=2, guidance=1)
    return ResolvedRequest(request=replace(request, **change), preset=preset, files=files)


def output(where: str = "p/") -> OutputPlan:
    return plan_output(
        where, format=None, quality=None, metadata=True, default_folder=None, default_template="{slug}-{seed}",
        default_format=ImageFormat.png,
    )  # fmt: skip


def session_with(engine: Any) -> Session:
    """`engine`: a stand-in, of no type that the real one has."""
    return Session(Settings(), engine=engine)


def short(events: list[Event]) -> list[str]:
    kept = [event for event in events if not isinstance(event, PlanMade | Noticed)]
    return [event.phase if isinstance(event, PhaseStarted) else type(event).__name__ for event in kept]


def test_every_picture_is_saved_before_the_next_is_drawn() -> None:
    events: list[Event] = []
    with session_with(Engine()) as session:
        outcome = session.run(wish(), output(), parent_id="ab", on_event=events.append)
    one = ["denoise", "StepDone", "StepDone", "PhaseDone", "decode", "PhaseDone", "PictureSaved"]
    front = [name for phase in ("load encoder", "encode", "load transformer") for name in (phase, "PhaseDone")]
    assert short(events) == ["DrawingStarted", *front, *one, *one, *one]
    assert outcome.error() is None and [saved.generation.seed for saved in outcome.pictures] == [4, 5, 6]
    for saved in outcome.pictures:
        assert (
            saved.path is not None and saved.data is None and saved.path.name == f"a-fish-{saved.generation.seed}.png"
        )
        record = read_metadata(saved.path).record
        assert record is not None and record == saved.record and record["parent_id"] == "ab"
        assert record["pixel_sha256"] == pixel_sha256(saved.generation.image) == saved.row()["pixel_sha256"]
    notes = [event for event in events if isinstance(event, Noticed)]
    assert notes == [Noticed(text="a sentence", severity=Severity.note)]


def test_one_bad_picture_does_not_end_the_batch() -> None:
    events: list[Event] = []
    session = session_with(Engine())
    outcome = session.run(wish("nan fish", seeds=(3, 4, 5)), output(), on_event=events.append)
    assert [saved.generation.index for saved in outcome.pictures] == [1]
    assert [(failed.index, failed.seed) for failed in outcome.failures] == [(0, 3), (2, 5)]
    assert [event for event in events if isinstance(event, PictureFailed)] == outcome.failures
    error = outcome.error()
    assert (
        error is not None and error.exit_code == 8 and "2 of 3 pictures failed: the latent is not finite" in str(error)
    )
    assert outcome.data()["failed"][1] == {
        "index": 2, "seed": 5, "code": "non_finite", "message": "the latent is not finite"
    }  # fmt: skip


def test_what_the_next_picture_would_meet_too_ends_the_run() -> None:
    session = session_with(Engine())
    outcome = session.run(wish("oom fish"), output(), on_event=lambda event: None)
    assert isinstance(outcome.error(), OutOfMemoryError) and not list(Path().glob("p/*"))


@pytest.mark.parametrize(("after", "finished"), [("encode", 0), ("StepDone", 0), ("PictureSaved", 1)])
def test_stop_ends_it_at_the_next_good_moment(after: str, finished: int) -> None:
    """Between phases, between steps and between pictures; what is finished stays."""
    events: list[Event] = []
    session = session_with(Engine())
    outcome = session.run(wish(), output(), on_event=events.append, stop=lambda: after in short(events))
    assert isinstance(outcome.stopped, CancelledError)
    assert str(outcome.error()) == f"stopped: {finished} of 3 pictures finished"
    assert len(list(Path().glob("p/*"))) == finished == len(outcome.pictures)


def test_without_a_file_the_listener_writes_the_picture(tmp_path: Path) -> None:
    """And one that could not be written is none."""
    given: list[PictureSaved] = []

    def write(event: Event) -> None:
        if isinstance(event, PictureSaved):
            given.append(event)

    session = session_with(Engine())
    one = wish(seeds=(4,))
    plan = output("-")
    assert session.run(one, plan, on_event=write).error() is None
    (tmp_path / "a.png").write_bytes(given[0].data or b"")
    assert read_metadata(tmp_path / "a.png").record == given[0].record

    def full(event: Event) -> None:
        if isinstance(event, PictureSaved):
            raise LensError("no space left")

    outcome = session.run(one, plan, on_event=full)
    assert outcome.pictures == [] and "no space left" in str(outcome.error())


def test_a_model_that_is_not_here_leaves_no_folder_and_asks_nobody() -> None:
    missing = replace(wish(), files=None, missing=ModelMissingError("not here"))
    session = session_with(Engine())
    for rewrite in (None, plan_of()):
        with pytest.raises(ModelMissingError):
            session.run(missing, output("new/"), rewrite=rewrite, on_event=lambda event: None)
    assert list(Path().iterdir()) == []


# ------------------------------------------------------------------------------------------------------------- reasoner


def plan_of() -> RewritePlan:
    settings = ReasonerSettings(mode=ReasonerMode.local)
    return make_plan(settings, presets.get("nano"), "nano", files=None)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the local speaker was asked; it refuses what is gory and opens the model for everything."""
    seen: list[str] = []

    class Speaker(reasoner.LocalSpeaker):
        identity = "a script"  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]

        def ask(self, task: Task) -> Draft:
            self.open_model()
            seen.append(task.request)
            if "gore" in task.request:
                return Draft(decision="refuse", prompt="", rule="gore")
            return Draft(decision="rewrite", prompt=f"{task.request} in red", rule=None, notes=("odd",))

    monkeypatch.setattr(reasoner, "LocalSpeaker", Speaker)
    return seen


class Owner(Engine):
    """Notes what becomes of the language model that it opens."""

    def __init__(self, *, stores: object = None) -> None:
        super().__init__(stores=stores)
        self.seen: list[str] = []

    def language_model(self, gguf: Path, context: int) -> None:
        self.seen.append(f"{gguf} {context}")


def test_a_rewrite_is_drawn_told_and_known_the_next_time(asked: list[str]) -> None:
    engine, events = Owner(), list[Event]()
    session = session_with(engine)
    requests: list[GenerationRequest] = []
    for _ in range(2):
        outcome = session.run(wish(), output(), rewrite=plan_of(), on_event=events.append)
        requests.append(outcome.resolved.request)
    assert (requests[0].prompt, requests[0].original_prompt) == ("a fish in red", "a fish")
    assert requests[0].expander is not None and requests[0].expander.kind == "local"
    first, second = [event for event in events if isinstance(event, PromptRewritten)]
    assert (first.cached, second.cached) == (False, True) and first.prompt == "a fish in red"
    assert [event.request for event in events if isinstance(event, DrawingStarted)] == requests == [requests[0]] * 2
    assert asked == ["a fish"] and engine.seen == ["x.gguf 8192"]
    assert Noticed(text="note: odd", severity=Severity.detail) in events


def test_a_refusal_is_told_and_nothing_is_drawn(asked: list[str]) -> None:
    events: list[Event] = []
    session = session_with(Owner())
    with pytest.raises(RefusedError) as raised:
        session.run(wish("gore"), output(), rewrite=plan_of(), on_event=events.append)
    assert raised.value.rule == "gore"
    assert [event.rule for event in events if isinstance(event, PromptRefused)] == ["gore"]
    assert not any(isinstance(event, DrawingStarted) for event in events) and not Path("p").exists()


def test_stop_ends_a_rewrite(asked: list[str]) -> None:
    session = session_with(Owner())
    with pytest.raises(CancelledError):
        session.run(wish(), output(), rewrite=plan_of(), on_event=lambda event: None, stop=lambda: True)


# --------------------------------------------------------------------------------------------------------------- memory


def test_who_makes_the_engine_unloads_it(monkeypatch: pytest.MonkeyPatch, asked: list[str]) -> None:
    """Ours is made at the first need, serves every request and is unloaded once; a caller's is left to the caller."""
    made: list[Owner] = []

    class Ours(Owner):
        def __init__(self, *, stores: object = None) -> None:
            super().__init__(stores=stores)
            made.append(self)

    module: Any = types.ModuleType("backend.engine")
    module.Engine = Ours
    monkeypatch.setitem(sys.modules, "backend.engine", module)
    with Session(Settings()) as session:
        assert made == []
        for _ in range(2):
            session.run(wish(), output(), rewrite=plan_of(), on_event=lambda event: None)
        assert made[0].unloaded == 0
    session.close()
    assert len(made) == 1 and made[0].unloaded == 1 and made[0].stores is not None
    given = Owner()
    with session_with(given) as session:
        list(session.draw(wish(), on_event=lambda event: None))
    assert given.unloaded == 0 and len(made) == 1


def test_pictures_without_saving() -> None:
    session = session_with(Engine())
    made = list(session.draw(wish("nan fish"), on_event=lambda event: None))
    assert [type(picture) for picture in made] == [Generation, PictureFailed, Generation]
    assert isinstance(made[1], PictureFailed) and isinstance(made[1].error, NumericsError)
    assert list(Path().iterdir()) == []


# -------------------------------------------------------------------------------------------------------------- history


def entered() -> list[Any]:
    with History(history_file()) as history:
        return history.search()


def test_every_saved_picture_enters_the_history() -> None:
    with session_with(Engine()) as session:
        first = session.run(wish(), output(), on_event=lambda event: None).pictures
        parent = first[0].record["id"]
        session.run(wish("a cat", seeds=(9,)), output(), parent_id=parent, on_event=lambda event: None)
        session.run(wish("unseen"), replace(output(), history=False), on_event=lambda event: None)
    found = entered()
    assert [entry.seed for entry in found] == [9, 6, 5, 4]
    assert (found[0].parent, found[0].relation) == (parent, "rerun") and found[1].relation is None
    assert [entry.path for entry in reversed(found[1:])] == [(saved.path or Path()).absolute() for saved in first]
    assert all(entry.path is not None and entry.path.is_file() for entry in found)


def test_a_picture_that_cannot_be_told_is_in_the_history_nevertheless() -> None:
    """As with a stdout that is full: the file is there, the listener raises."""

    def listen(event: Event) -> None:
        if isinstance(event, PictureSaved):
            raise FileError("cannot write to stdout")

    with session_with(Engine()) as session:
        outcome = session.run(wish(), output(), on_event=listen)
        assert isinstance(outcome.stopped, FileError) and len(outcome.pictures) == 1
        unwritten = session.run(wish("unseen"), output("-"), on_event=listen)  # nobody has this one
    assert unwritten.pictures == [] and [entry.seed for entry in entered()] == [4]


def test_a_history_that_cannot_be_written_costs_one_warning_and_no_picture() -> None:
    history_file().parent.mkdir(parents=True)
    history_file().write_bytes(b"no database" * 100)
    events: list[Event] = []
    with session_with(Engine()) as session:
        outcome = session.run(wish(), output(), on_event=events.append)
    assert outcome.error() is None and len(list(Path("p").iterdir())) == 3
    warned = [e.text for e in events if isinstance(e, Noticed) and e.severity is Severity.warning]
    assert len(warned) == 1 and "not in the history" in warned[0] and "damaged" in warned[0]
