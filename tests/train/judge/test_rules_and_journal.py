"""The rules as a judge, held to the verifier itself; and the journal, which must replay without a judge."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from concurrent.futures import Future
from pathlib import Path

import pytest
from PIL import Image

from backend.errors import FileError, UsageError
from train.evals.nano_prompts import made_prompts
from train.evals.verifier.verify import expectation_of, verify
from train.judge.journal import VerdictJournal
from train.judge.judge import Question
from train.judge.rules import RuleJudge
from train.losses.rewards import Missing, Verdict
from train.world.drawing import render

MADE = next(made for made in made_prompts() if made.prompt.kind == "two_object")
QUESTION = Question(prompt="x", rubrics=("a", "b"), kinds=("item", "item"), expectation=expectation_of(MADE.scene))


@pytest.mark.parametrize("workers", [0, 1])
def test_the_rules_answer_as_the_verifier_does(workers: int) -> None:
    """A terminal sends Ctrl-C to the workers as well: what is under way is judged to its end all the same."""
    judge = RuleJudge(workers)
    try:
        for picture in (render(MADE.scene, 256, 256), Image.new("RGB", (64, 64), "white")):
            expected = tuple(float(item.holds) for item in verify(picture, expectation_of(MADE.scene)).items)
            assert judge.submit(picture, QUESTION).result() == Verdict(expected)
            for worker in multiprocessing.active_children():
                os.kill(worker.pid or 0, signal.SIGINT)
    finally:
        judge.close()


def test_the_rules_refuse_what_they_do_not_know() -> None:
    with pytest.raises(UsageError, match="none of Lens-Nano's world"):
        RuleJudge(0).submit(Image.new("RGB", (8, 8)), Question(prompt="a fox", rubrics=("?",), kinds=("item",)))


class Counting:
    """A judge that says what it is told to, and counts."""

    def __init__(self, *verdicts: Verdict, identity: str = "counting") -> None:
        self.verdicts, self.asked, self.identity = list(verdicts), 0, identity

    def kinds(self, question: Question) -> tuple[str, ...]:
        return question.kinds

    def submit(self, picture: Image.Image, question: Question) -> Future[Verdict]:
        self.asked += 1
        future: Future[Verdict] = Future()
        future.set_result(self.verdicts.pop(0))
        return future

    def close(self) -> None:
        pass


RED, BLUE = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
GOOD, GONE = Verdict((1.0, None), 0.25), Verdict(missing=Missing.BUSY)


def test_a_journal_replays_what_was_said_and_asks_again_what_is_missing_until_settled(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.jsonl"
    first = VerdictJournal(path, Counting(GOOD, GONE))
    assert [first.ask(p, QUESTION, "here").verdict.result() for p in (RED, BLUE)] == [GOOD, GONE]
    assert json.loads(path.read_text())["about"] == "here"

    judge = Counting(GONE)
    second = VerdictJournal(path, judge)
    asked = [second.ask(p, QUESTION) for p in (RED, BLUE)]
    assert [one.verdict.result() for one in asked] == [GOOD, GONE] and judge.asked == 1
    second.settle(asked)

    replayed = VerdictJournal(path, Counting())  # which would fail if it were asked
    assert [replayed.ask(p, QUESTION).verdict.result() for p in (RED, BLUE)] == [GOOD, GONE]
    other = Counting(GOOD, identity="another")  # another judge's answers are its own
    assert VerdictJournal(path, other).ask(RED, QUESTION).verdict.result() == GOOD and other.asked == 1


def test_a_torn_line_is_forgotten_and_the_next_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.jsonl"
    VerdictJournal(path, Counting(GOOD)).ask(RED, QUESTION).verdict.result()
    path.write_bytes(path.read_bytes()[:-20])
    judge = Counting(GOOD)
    assert VerdictJournal(path, judge).ask(RED, QUESTION).verdict.result() == GOOD and judge.asked == 1
    assert VerdictJournal(path, Counting()).ask(RED, QUESTION).verdict.result() == GOOD


def test_what_cannot_be_read_or_written_reaches_who_asks(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="cannot be read"):
        VerdictJournal(tmp_path, Counting(GOOD))  # a folder
    journal = VerdictJournal(tmp_path / "later" / "verdicts.jsonl", Counting(GOOD))
    (tmp_path / "later").write_text("a file where the folder would be")
    with pytest.raises(FileError):
        journal.ask(RED, QUESTION).verdict.result()
