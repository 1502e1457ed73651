"""Rubrics that cannot teach are found in a pilot whose verdicts are made up so that the answer is known."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from backend.errors import FileError, UsageError
from train.rl.prompts.grammar import global_rubric
from train.rl.prompts.pilot import PilotOutcome, Thresholds, Verdict, judge_rubrics, read_verdicts, without_dropped
from train.rl.prompts.prompt_set import Prompt, PromptSet, Rubric

NAMES = ("always", "never", "good", "fair", "contrary", "moody", "silent", "rare")


def one(name: str, *rubrics: str) -> Prompt:
    return Prompt(
        id=name,
        prompt="a fox on a hill",
        category="animal",
        item="fox",
        rubrics=(*(Rubric(kind="item", text=text) for text in rubrics), global_rubric()),
    )


def pilot(pictures: int = 48) -> list[Verdict]:
    """Pictures have a quality in [0, 1]; good ones pass "good" and "fair" more often and "contrary" less often."""
    chance = random.Random(1)
    found: list[Verdict] = []
    for number in range(pictures):
        quality = number / (pictures - 1)

        def say(rubric: str, passed: bool | None, picture: str = f"p{number}") -> None:
            found.append(Verdict(prompt="fox", picture=picture, rubric=rubric, passed=passed))

        say("always", True)
        say("never", False)
        for rubric in ("good", "fair"):
            say(rubric, chance.random() < quality)
        say("contrary", chance.random() > quality)
        for _ in range(2):
            say("moody", chance.random() < 0.5)
        say("silent", True if number < 12 else None)
        if number < 4:
            say("rare", True)
        say(global_rubric().text, True)
    return found


def outcomes(thresholds: Thresholds | None = None) -> dict[str, PilotOutcome]:
    found = judge_rubrics(PromptSet((one("fox", *NAMES),)), pilot(), thresholds)
    assert [outcome.rubric.text for outcome in found] == [*NAMES, global_rubric().text]
    return {outcome.rubric.text: outcome for outcome in found}


def test_each_kind_of_useless_rubric_is_dropped_and_said() -> None:
    found = outcomes()
    said = {name: found[name].why for name in NAMES}
    assert said["good"] is said["fair"] is said["rare"] is None
    assert said["always"] == "always true: 100% of 48 pictures" and said["never"] == "never true: 0% of 48 pictures"
    assert said["contrary"] is not None and "goes against the other rubrics" in said["contrary"]
    assert said["moody"] is not None and "changes its mind" in said["moody"]
    assert said["silent"] == "75% of its verdicts are missing"
    assert found["rare"].remark == "only 4 pictures have a verdict"
    link, against = found["good"].link, found["contrary"].link
    assert link is not None and against is not None and link > 0 > against
    assert found["always"].link is None  # it never differs


def test_the_global_rubric_is_told_and_stays() -> None:
    found = outcomes()[global_rubric().text]
    assert found.why is None and found.remark == "always true: 100% of 48 pictures"


def test_every_threshold_is_one_that_matters() -> None:
    assert outcomes(Thresholds(always=1.01))["always"].why is None
    assert outcomes(Thresholds(never=-0.01))["never"].why is None
    assert outcomes(Thresholds(most_flips=1.0))["moody"].why is None
    assert outcomes(Thresholds(most_missing=0.8))["silent"].why == "always true: 100% of 12 pictures"
    assert outcomes(Thresholds(least_link=-0.9))["contrary"].why is None
    assert outcomes(Thresholds(certainty=100.0))["contrary"].why is None
    assert outcomes(Thresholds(least_pictures=4))["rare"].why == "always true: 100% of 4 pictures"
    assert outcomes(Thresholds(least_pictures=49))["always"].why is None


def test_a_missing_verdict_is_neither_yes_nor_no() -> None:
    prompts = PromptSet((one("fox", "half"),))
    said = [
        Verdict(prompt="fox", picture=f"p{n}", rubric="half", passed=n % 2 == 0 if n < 10 else None) for n in range(15)
    ]
    (outcome, _) = judge_rubrics(prompts, said)
    assert (outcome.pictures, outcome.passed, outcome.missing) == (10, 0.5, pytest.approx(1 / 3))
    assert outcome.why is None


def test_independent_rubrics_are_kept() -> None:
    """A rubric about another thing than the rest has no link to it, and is none the worse for that."""
    chance = random.Random(4)
    names = [f"r{n}" for n in range(20)]
    said = [
        Verdict(prompt="fox", picture=f"p{n}", rubric=name, passed=chance.random() < 0.5)
        for n in range(24)
        for name in names
    ]
    dropped = [o for o in judge_rubrics(PromptSet((one("fox", *names),)), said) if o.why is not None]
    assert len(dropped) <= 3  # one in twenty goes against the others by chance; five would be one in a thousand


def test_the_set_without_what_was_dropped() -> None:
    prompts = PromptSet((one("fox", *NAMES), one("owl", "always", "never"), one("hen", "good")))
    verdicts = pilot() + [
        Verdict(prompt="owl", picture=f"p{n}", rubric=name, passed=name == "always")
        for n in range(9)
        for name in NAMES[:2]
    ]
    found = judge_rubrics(prompts, verdicts)
    assert {outcome.prompt for outcome in found} == {"fox", "owl"}  # nothing is said of what was not drawn
    left, bare = without_dropped(prompts, found)
    assert bare == ["owl"] and [prompt.id for prompt in left.prompts] == ["fox", "hen"]
    assert [r.text for r in left.prompts[0].rubrics] == ["good", "fair", "rare", global_rubric().text]
    assert left.prompts[1] == prompts.prompts[2]


def test_verdicts_of_another_set_are_refused() -> None:
    prompts = PromptSet((one("fox", "good"),))
    for prompt, rubric, what in (("owl", "good", "no such prompt"), ("fox", "bad", "no such rubric 'bad'")):
        with pytest.raises(UsageError, match=what):
            judge_rubrics(prompts, [Verdict(prompt=prompt, picture="p", rubric=rubric, passed=True)])


def test_verdicts_are_read_with_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.jsonl"
    good = '{"prompt": "fox", "picture": "p", "rubric": "good", "passed": null}'
    path.write_text(f"{good}\n\n{good.replace('null', 'true')}\n", "utf-8")
    assert [verdict.passed for verdict in read_verdicts(path)] == [None, True]
    for bad, what in (
        ("{", "no JSON"), ("[]", "has the keys"), (good.replace("null", '"maybe"'), "passed is 'maybe'"),
        (good.replace("null", "1"), "passed is 1"), (good.replace('"p"', "3"), "picture is 3"),
        (good.replace('"picture": "p", ', ""), "has the keys"),
    ):  # fmt: skip
        path.write_text(f"{good}\n{bad}\n", "utf-8")
        with pytest.raises(FileError) as caught:
            read_verdicts(path)
        assert str(caught.value).startswith(f"{path}, line 2: ") and what in str(caught.value)
    with pytest.raises(FileError, match="cannot read"):
        read_verdicts(tmp_path / "missing")
