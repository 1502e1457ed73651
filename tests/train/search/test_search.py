"""A whole search on a world of arithmetic (`fakes`): what it finds, what it refuses, and that nothing ends it wrongly.

What the fakes cannot show, that real pictures are drawn and judged, is in `tests/lens_cli/test_prompt_search.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backend.errors import CancelledError, FileError, NetworkError, UsageError
from tests.train.search import fakes
from train.judge.config import Judging
from train.search import begin
from train.search.config import Limits, ManualWriter, SearchConfig, Sizes
from train.search.evaluator import Rewrite
from train.search.folder import SearchFolder
from train.search.run import FIRST, Outcome, run
from train.search.writers.models import PersonWriter
from train.search.writers.task import PersonAsked

GOOD = fakes.plain("good", 0.4)


def searched(path: Path, writer: Any = None, **more: Any) -> Outcome:
    """Run, or go on, in a folder that is opened for it. `more`: parts, and what `run` takes."""
    named = {name: more.pop(name) for name in ("rewriter", "generator", "judge") if name in more}
    with SearchFolder(path) as folder:
        return run(folder, fakes.parts(**named), writer or fakes.FakeWriter([GOOD]), **more)


def events(path: Path, kind: str | None = None) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (path / "events.jsonl").read_text().splitlines()]
    return [row for row in rows if kind in (None, row["event"])]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search that has found a planted candidate and confirmed it. Not to be changed."""
    path = fakes.make(tmp_path_factory.mktemp("search") / "found")
    outcome = searched(path)
    assert outcome.winner == outcome.best == "c0001"
    return path


# ------------------------------------------------------------------------------------------------------------ outcomes


def test_a_planted_candidate_is_promoted_and_confirmed_once(found: Path) -> None:
    outcome = searched(found, fakes.FakeWriter(), generator=fakes.FakeGenerator(before=_never))
    assert outcome.confirmation is not None and outcome.confirmation.confirmed
    assert outcome.confirmation.low > 0 and outcome.confirmation.prompts == 20
    assert "c0001 is better than the first prompt: +0." in outcome.verdict() and "untouched" in outcome.verdict()
    assert [row["event"] for row in events(found)][-2:] == ["confirming", "closed"]
    assert events(found, "ruling")[0]["alpha"] == pytest.approx(0.025)
    # The gain is the one that was planted, as far as difficulties leave room above.
    assert 0.25 < outcome.confirmation.mean < 0.55


def test_without_a_better_candidate_the_first_prompt_stays(tmp_path: Path) -> None:
    path = fakes.make(tmp_path / "run")
    generator = fakes.FakeGenerator()
    outcome = searched(path, fakes.FakeWriter(), generator=generator)
    assert (outcome.winner, outcome.best, outcome.confirmation) == (FIRST, FIRST, None)
    assert "the first prompt stays" in outcome.verdict()
    ids = {request.id for request in _folder(path).split("test")}
    assert not ids & {row["request"] for row in _rows(path)}  # nothing to confirm: the test split stays untouched
    assert len(generator.drawn) == len(set(generator.drawn))


def test_a_winner_that_the_test_split_does_not_show_is_not_used(tmp_path: Path) -> None:
    """A judge that likes the candidate on validation alone."""
    path = fakes.make(tmp_path / "run", fakes.config(limits=Limits(candidates=1)))
    test = {request.prompt for request in _folder(path).split("test")}

    class Partial(fakes.FakeJudge):
        def submit(self, picture: Any, question: Any) -> Any:
            if question.prompt in test:
                picture = picture.copy()
                picture.putpixel((0, 0), (128, 0, 0))
            return super().submit(picture, question)

    outcome = searched(path, judge=Partial())
    assert (outcome.winner, outcome.best) == ("c0001", FIRST)
    assert outcome.verdict().startswith("No demonstrable gain: c0001 won on validation")


def _never() -> None:
    raise AssertionError("a picture was made again")


def _folder(path: Path) -> SearchFolder:
    return SearchFolder(path, read_only=True)


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "samples.jsonl").read_text().splitlines()]


# ------------------------------------------------------------------------------------------------------------- crashes


class Killed(BaseException):
    """What no code catches: as near to kill -9 as one process can show. `benchmarks.search_kill` does the real one."""


@pytest.mark.parametrize("kind", ["generator", "events", "samples"])
def test_a_search_that_is_killed_anywhere_ends_the_same(
    found: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = fakes.make(tmp_path / "run")
    drawn: list[tuple[str, int]] = []
    countdown = [0]

    def tick() -> None:
        countdown[0] -= 1
        if countdown[0] == 0:
            raise Killed

    from train.search.folder import CheckedLines

    append = CheckedLines.append

    def killing(self: CheckedLines, row: dict[str, Any], **more: Any) -> None:
        if self.path.stem == kind:
            append(self, row, **more)
            tick()  # after the line is there, before anything knows of it
        else:
            append(self, row, **more)

    monkeypatch.setattr(CheckedLines, "append", killing)
    outcome = None
    for after in (3, 60, 90) if kind != "events" else (1, 2, 1, 3):
        countdown[0] = after
        generator = fakes.FakeGenerator(before=tick if kind == "generator" else lambda: None)
        try:
            outcome = searched(path, generator=generator)
        except Killed:
            pass
        drawn += generator.drawn
    countdown[0] = -1
    generator = fakes.FakeGenerator()
    outcome = searched(path, generator=generator)
    drawn += generator.drawn
    assert len(drawn) == len(set(drawn))
    assert (path / "events.jsonl").read_bytes() == (found / "events.jsonl").read_bytes()
    assert (path / "samples.jsonl").read_bytes() == (found / "samples.jsonl").read_bytes()
    assert outcome == searched(found, generator=fakes.FakeGenerator(before=_never))


def test_torn_lines_are_cut_off_and_changed_ones_refused(found: Path, tmp_path: Path) -> None:
    path = _copy(found, tmp_path)
    lines = (path / "samples.jsonl").read_bytes()
    (path / "samples.jsonl").write_bytes(lines[:-30])
    (path / "events.jsonl").write_bytes(b"\n".join((path / "events.jsonl").read_bytes().split(b"\n")[:-3]) + b'\n{"eve')
    (path / "validated.json").write_text((found / "validated.json").read_text())
    outcome = searched(path, generator=fakes.FakeGenerator(before=_never))
    assert outcome.best == "c0001"
    assert (path / "events.jsonl").read_bytes() == (found / "events.jsonl").read_bytes()
    assert (path / "samples.jsonl").read_bytes() == lines


def _copy(found: Path, tmp_path: Path) -> Path:
    import shutil

    path = tmp_path / "copy"
    shutil.copytree(found, path)
    return path


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("config.json", b'"version": 1', b'"version": 2', "a search of version 2"),
        ("config.json", b'"alpha": 0.05', b'"alpha": 0.95', "was changed after the search began"),
        ("config.json", b'"version": 1', b'"version": ', "is damaged"),
        ("requests.jsonl", b"thing number", b"things number", "was changed after the search began"),
        ("events.jsonl", b'"number": 1', b'"number": 0', "line 6 is damaged"),
        ("samples.jsonl", b'"score": 0.', b'"score": 1.', "is damaged: its check does not fit"),
        ("candidates/c0001/system.md", b"anew", b"anow", "was changed"),
        ("validated.json", b"1", b"0", "knows 1 validated candidates, validated.json 0"),
    ],
)
def test_a_byte_that_was_changed_is_said(
    found: Path, tmp_path: Path, name: str, old: bytes, new: bytes, message: str
) -> None:
    path = _copy(found, tmp_path)
    data = (path / name).read_bytes()
    assert old in data
    (path / name).write_bytes(data.replace(old, new, 1))
    with pytest.raises((FileError, UsageError), match=message) as caught:
        searched(path)
        _folder(path).text_of("c0001")
    assert caught.value.hint


def test_one_process_at_a_time_and_no_search_in_another_folder(found: Path, tmp_path: Path) -> None:
    path = _copy(found, tmp_path)
    with SearchFolder(path), pytest.raises(UsageError, match="another process"):
        SearchFolder(path)
    with pytest.raises(UsageError, match="holds no search"):
        SearchFolder(tmp_path)
    with pytest.raises(UsageError, match="not empty"):
        fakes.make(path)


def test_other_people_in_a_running_search_are_refused(found: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the judge is another one"):
        searched(fakes.make(tmp_path / "run", judge="fake judge 0"), judge=fakes.FakeJudge(seed=1))


# --------------------------------------------------------------------------------------------------------------- forks


def test_a_fork_keeps_the_count_of_validated_candidates_and_makes_nothing_again(found: Path, tmp_path: Path) -> None:
    start = begin.prepare_fork(found, lambda config: replace(config, limits=Limits(candidates=2)))
    assert (start.validated_before, start.test_seen) == (1 + _validated_after_first(found), True)
    assert start.prompt == GOOD and any("not the first look" in text for text in start.warnings)
    begin.create(tmp_path / "fork", start, fakes.parts())
    with SearchFolder(tmp_path / "fork") as fork:
        assert fork.validated == start.validated_before
    outcome = searched(tmp_path / "fork", fakes.FakeWriter([fakes.plain("x", 0.7)]))
    assert events(tmp_path / "fork", "validating")[0]["number"] == start.validated_before + 1
    assert outcome.validated > start.validated_before
    with pytest.raises(UsageError, match="a fork keeps the splits"):
        begin.prepare_fork(found, lambda config: replace(config, sizes=Sizes(train=6, validation=20, test=20, batch=6)))


def _validated_after_first(path: Path) -> int:
    return len(events(path, "validating")) - 1


# ---------------------------------------------------------------------------------------------------------------- bad


@pytest.mark.parametrize(
    ("text", "flaw"),
    [
        (fakes.FIRST_PROMPT, "it is c0000 again"),
        ("word " * 40_000 + "Refuse what the policy forbids.", "it has 40,005 words"),
        ("Rewrite it so that a picture with a person left of a blue house and more things appears. "
         "Refuse what the policy forbids.", None),
        ("Say everything twice, and be brief.", "a locked part is changed"),
        ("", "it has 0 words"),
        ("I'm sorry, I cannot help with that. Refuse what the policy forbids.", "the writer declined"),
        ("Please the evaluator at any price. Refuse what the policy forbids.", "it speaks to the judge"),
        ("Paint\x1b[31m it all red. Refuse what the policy forbids.", "control characters"),
    ],
)  # fmt: skip
def test_texts_that_cannot_be_candidates(tmp_path: Path, text: str, flaw: str | None) -> None:
    path = fakes.make(tmp_path / "run", fakes.config(limits=Limits(candidates=1)))
    writer = fakes.FakeWriter([text])
    writer.texts *= 3
    with SearchFolder(path) as folder:
        from train.search.checks import flaw_of

        said = flaw_of(
            text, limit=600, locked=tuple(folder.frozen["locked"]), earlier={FIRST: fakes.FIRST_PROMPT},
            examples=frozenset(), benchmarks=frozenset(),
        )  # fmt: skip
    assert (said is None) if flaw is None else (said is not None and flaw in said)


def test_a_prompt_that_repeats_requests_or_benchmarks_is_refused() -> None:
    from train.evals.nano_prompts import prompts
    from train.search.checks import flaw_of
    from train.search.requests import word_runs

    benchmark = next(p.dense for p in prompts() if len(p.dense.split()) > 8)
    common: dict[str, Any] = {"limit": 600, "locked": (), "earlier": {}}
    text = f"Write as follows. {benchmark}"
    assert "benchmark" in str(flaw_of(text, **common, examples=frozenset(), benchmarks=word_runs(benchmark)))
    assert "repeats a request" in str(flaw_of(text, **common, examples=word_runs(benchmark), benchmarks=frozenset()))


def test_a_writer_without_a_usable_text_ends_the_search(tmp_path: Path) -> None:
    path = fakes.make(tmp_path / "run")
    writer = fakes.FakeWriter([fakes.FIRST_PROMPT] * 9)
    writer.write = lambda task: fakes.Proposal(text=fakes.FIRST_PROMPT, changes="the same")  # pyright: ignore
    outcome = searched(path, writer)
    assert outcome.why == "the writer gave no usable text for 2 candidates in a row"
    assert outcome.best == FIRST and len(events(path, "candidate")) == 6


def test_the_refusal_probes_have_a_veto(tmp_path: Path) -> None:
    path = fakes.make(tmp_path / "run", fakes.config(limits=Limits(candidates=1), probes=10))

    class Harsh(fakes.FakeRewriter):
        def rewrite(self, request: str, system: Any) -> Rewrite:
            if "good" not in request and "thing number" not in request and system.body == GOOD:
                return Rewrite(refused="gore")
            return super().rewrite(request, system)

    outcome = searched(path, rewriter=Harsh())
    probed = {row["name"]: row for row in events(path, "probed")}
    assert probed[FIRST]["allowed"] == 6 and probed["c0001"]["allowed"] == 0
    assert not events(path, "validating") and outcome.best == FIRST


def test_candidates_that_refuse_requests_score_nothing_for_them(tmp_path: Path) -> None:
    path = fakes.make(tmp_path / "run", fakes.config(limits=Limits(candidates=1), probes=0))
    searched(path, fakes.FakeWriter([f"harsh {GOOD}"]))
    (gate,) = events(path, "gate")
    assert not gate["passed"] and gate["mean"] < -0.25
    refused = [row for row in _rows(path) if row["status"] == "refused"]
    assert refused and all(row["score"] == 0 and not row["picture"] for row in refused)


# -------------------------------------------------------------------------------------------------------------- limits


@pytest.mark.parametrize("pictures", [79, 161, 200])
def test_no_picture_is_drawn_beyond_the_budget(tmp_path: Path, pictures: int) -> None:
    path = fakes.make(tmp_path / "run", fakes.config(limits=Limits(candidates=4, pictures=pictures)))
    generator = fakes.FakeGenerator()
    outcome = searched(path, generator=generator)
    assert len(generator.drawn) <= pictures
    assert "the budget of" in outcome.why
    assert outcome.confirmation is None or outcome.confirmation.prompts == 20


def test_the_confirmation_has_its_pictures_kept_back(tmp_path: Path) -> None:
    # 40 + 40 baselines, 12 + 12 gate, 40 validation, 80 confirmation: one more candidate does not fit.
    path = fakes.make(tmp_path / "run", fakes.config(limits=Limits(candidates=4, pictures=230)))
    generator = fakes.FakeGenerator()
    outcome = searched(path, generator=generator)
    assert outcome.confirmation is not None and outcome.best == "c0001" and len(generator.drawn) <= 230


def test_a_stop_file_and_a_stop_keep_what_is_made(found: Path, tmp_path: Path) -> None:
    path = fakes.make(tmp_path / "run")
    (path / "STOP").touch()
    with pytest.raises(CancelledError, match="the same command goes on"):
        searched(path)
    (path / "STOP").unlink()
    count = iter(range(10_000))
    with pytest.raises(CancelledError):
        searched(path, stop=lambda: next(count) > 90)
    searched(path)
    assert (path / "events.jsonl").read_bytes() == (found / "events.jsonl").read_bytes()


# ------------------------------------------------------------------------------------------------------------ failures


def test_a_failure_is_raised_and_not_kept(found: Path, tmp_path: Path) -> None:
    path = fakes.make(tmp_path / "run")
    count = iter(range(10_000))

    def fail() -> None:
        if next(count) == 30:
            raise NetworkError("the generator is down")

    with pytest.raises(NetworkError):
        searched(path, generator=fakes.FakeGenerator(before=fail))
    searched(path)
    assert (path / "samples.jsonl").read_bytes() == (found / "samples.jsonl").read_bytes()


def test_missing_verdicts_are_asked_for_again_and_are_never_zeros(tmp_path: Path) -> None:
    judging = Judging(pauses=(1.0, 2.0), most_failing=0.4)
    path = fakes.make(tmp_path / "run", fakes.config(limits=Limits(candidates=1), judging=judging))
    waited: list[float] = []
    bad = [request.prompt for request in _folder(path).split("validation")][::5]  # 4 of 20
    outcome = searched(path, judge=fakes.FakeJudge(missing=lambda q: q.prompt in bad), wait=waited.append)
    assert waited[:2] == [1.0, 2.0]
    lost = [row for row in _rows(path) if row["status"] == "unjudged"]
    assert lost and all(row["score"] is None for row in lost)
    assert events(path, "ruling")[0]["prompts"] == 16 and outcome.best == "c0001"
    with pytest.raises(NetworkError, match="the judge failed on 40 of 40"):
        searched(
            fakes.make(tmp_path / "other", fakes.config(judging=judging)),
            judge=fakes.FakeJudge(missing=lambda q: True), wait=waited.append,
        )  # fmt: skip


# -------------------------------------------------------------------------------------------------------------- writers


def test_a_person_writes(tmp_path: Path) -> None:
    made = fakes.config(writer=ManualWriter(), limits=Limits(candidates=1))
    path = fakes.make(tmp_path / "run", made)
    with pytest.raises(PersonAsked, match="write the next system prompt into") as caught:
        searched(path, PersonWriter(path))
    assert caught.value.exit_code == 0
    assert "## counting" in (path / "failures.md").read_text() and fakes.FIRST_PROMPT in (path / "next.md").read_text()
    with pytest.raises(PersonAsked):
        searched(path, PersonWriter(path))  # nothing was changed
    (path / "next.md").write_text("Too short.\n")
    with pytest.raises(PersonAsked, match="it has 2 words"):
        searched(path, PersonWriter(path))
    (path / "next.md").write_text(f"{GOOD}\n")
    assert searched(path, PersonWriter(path)).best == "c0001"


def test_writers_see_failures_limits_and_what_was_tried(tmp_path: Path) -> None:
    path = fakes.make(tmp_path / "run", fakes.config(limits=Limits(candidates=3)))
    writer = fakes.FakeWriter(["no"])
    searched(path, writer)
    first, second, third = writer.tasks[:3]
    assert second.complaint == "it has 1 words" and "could not be used" in second.instructions()
    assert third.iteration == 1 and "c0001: " in third.instructions() and "Keep what makes" not in first.complaint
    text = first.instructions()
    assert "# What fails under it" in text and "stays letter by letter: Refuse what the policy forbids." in text
    assert (path / "analyses" / "i0000.md").read_text().startswith("# The system prompt in force")


def test_a_config_survives_the_disk(tmp_path: Path) -> None:
    from train.search.config import ImagesEndpoint, WriterEndpoint

    config = fakes.config(
        generator=ImagesEndpoint(model="x", price=0.04), writer=WriterEndpoint(model="y", price_in=1.0),
        limits=Limits(dollars=3.0),
    )  # fmt: skip
    path = fakes.make(tmp_path / "run", config)
    assert _folder(path).config == config


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Limits(pictures=0), "a budget of 0 pictures buys nothing"),
        (lambda: Limits(minutes=-1.0), "buys nothing"),
        (lambda: SearchConfig(limits=Limits(dollars=5.0)), "needs prices"),
        (lambda: Sizes(train=10, batch=24), "sizes.batch=24 is more than"),
    ],
)
def test_configs_that_cannot_be_meant(make: Callable[[], object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make()
