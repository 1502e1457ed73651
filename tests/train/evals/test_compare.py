"""Paired differences, and what a reasoner's refusals and failures cost.

The interval is judged by its exact coverage, summed over all outcomes, which does not use its formula.
"""

from __future__ import annotations

import math
import random

import pytest
from PIL import Image

from backend.errors import NetworkError, RefusedError, ReplyError
from tests.train.results import result
from train.evals import nano
from train.evals.nano import NO_REWRITE, REFUSED, EvalComparison, EvalReport, evaluate
from train.evals.nano_prompts import prompts
from train.evals.stats import AnswerTally, Pairs, design_effect, mean_difference, wilson
from train.evals.verifier.verify import Verdict


def blank(prompt: str, seed: int) -> Image.Image:
    return Image.new("RGB", (64, 64), (206, 228, 248))


@pytest.mark.parametrize(
    ("win", "lose", "total", "floor"),
    # Few pairs that all change one way are where it covers least: 0.914.
    [(0.2, 0.1, 30, 0.94), (0.05, 0.05, 50, 0.94), (0.5, 0.05, 20, 0.94), (0.3, 0.1, 100, 0.94), (0.0, 0.1, 40, 0.91)],
)
def test_the_interval_covers_the_truth(win: float, lose: float, total: int, floor: float) -> None:
    covered = 0.0
    for won in range(total + 1):
        for lost in range(total + 1 - won):
            same = total - won - lost
            ways = math.comb(total, won) * math.comb(total - won, lost)
            chance = ways * win**won * lose**lost * (1 - win - lose) ** same
            low, high = Pairs(won, lost, total).interval
            covered += chance * (low <= win - lose <= high)
    assert floor <= covered <= 1.0


def test_pairs_count_what_changed() -> None:
    answers = ((False, True), (False, True), (True, False), (True, True), (False, False))
    pairs = Pairs.of([[answer] for answer in answers])
    assert pairs == Pairs(2, 1, 5) and pairs.difference == pytest.approx(0.2)
    low, high = Pairs(0, 0, 50).interval
    assert low == -high and 0 < high < 0.06  # nothing changed: still no certainty
    assert Pairs().interval == (-1.0, 1.0) and math.isnan(Pairs().difference)


def test_mcnemar_is_the_binomial_tail() -> None:
    assert Pairs(5, 0, 9).p == pytest.approx(2 / 32)
    assert Pairs(8, 2, 9).p == pytest.approx(2 * (1 + 10 + 45) / 1024)
    assert Pairs(3, 3, 9).p == Pairs(0, 0, 9).p == 1.0


def test_answers_of_one_prompt_tell_less_than_independent_ones() -> None:
    """Against what must hold: copies of every answer say nothing new, and independent answers lose nothing."""
    once = [[True]] * 30 + [[False]] * 20
    four_times = [group * 4 for group in once]
    assert design_effect(once) == 1.0
    assert design_effect(four_times) == pytest.approx(4 * 50 / 49)  # less the degree of freedom that the mean takes
    assert AnswerTally.of(four_times).interval == pytest.approx(wilson(30 * 49 / 50, 49))
    assert design_effect([[True] * 4] * 9) == 4 and design_effect([[True, False, True]]) == 3  # nothing to tell from
    rng = random.Random(0)
    mixed = [[rng.random() < 0.6 for _ in range(4)] for _ in range(2000)]
    assert design_effect(mixed) < 1.1

    won, lost, same = [(False, True)], [(True, False)], [(True, True)]
    groups = [won] * 9 + [lost] * 2 + [same] * 39
    single, tripled = Pairs.of(groups), Pairs.of([group * 3 for group in groups])
    assert tripled.difference == single.difference and tripled.p == single.p  # and not that of 27 against 6
    assert tripled.interval == pytest.approx(single.interval, abs=2e-3)
    assert Pairs.of([won + won + lost, lost + same + same, won + lost + same]).groups == (1, 1)
    with pytest.raises(ValueError, match="grouped"):
        sum([AnswerTally.of(four_times)], AnswerTally())


@pytest.mark.parametrize("spread", [0.0, 0.2, 0.45])
def test_the_interval_of_grouped_answers_covers_the_truth(spread: float) -> None:
    """40 prompts of 5 pictures whose own rates lie `spread` about 0.5: simulated, which needs no formula."""
    rng, covered = random.Random(1), 0
    for _ in range(400):
        rates = [0.5 + rng.choice((-spread, spread)) for _ in range(40)]
        low, high = AnswerTally.of([[rng.random() < rate for _ in range(5)] for rate in rates]).interval
        covered += low <= 0.5 <= high
    assert covered / 400 > 0.92


def test_the_mean_of_kinds_weighs_every_kind_alike() -> None:
    mean, (low, high) = mean_difference([Pairs(10, 0, 10), Pairs(0, 0, 90)])
    assert mean == 0.5 and low < mean < high
    with pytest.raises(ValueError):
        mean_difference([Pairs(1, 0, 2), Pairs()])


def test_a_comparison_pairs_pictures_by_prompt_and_seed() -> None:
    before = EvalReport(results=[result("text", n, n < 2) for n in range(6)] + [result("counting", 0, True)])
    after = EvalReport(results=[result("text", n, n > 0) for n in (5, 4, 3, 2, 1, 0)])
    found = EvalComparison.of(before, after)
    assert found.kinds == {"text": Pairs(4, 1, 6)} and found.micro.total == 6
    assert found.overall[0] == found.data()["overall"] == pytest.approx(0.5)
    assert "+4 -1 of 6" in found.table()[-1]
    with pytest.raises(ValueError, match="no picture in common"):
        EvalComparison.of(before, EvalReport())
    with pytest.raises(ValueError, match="from the seeds 0 and 1"):
        EvalComparison.of(before, EvalReport(results=[result("text", 0, True, seed=1)]))


def test_refusals_and_lost_rewrites_are_wrong_and_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nano, "verify", lambda picture, expectation: Verdict(items=(), found=()))
    some = prompts(limit=3)
    asked: list[str] = []
    saved: list[tuple[str, bool]] = []

    def rewrite(request: str) -> str:
        asked.append(request)
        if len(asked) == 1:
            raise RefusedError("no", rule="gore")
        if len(asked) == 2:
            raise ReplyError("empty")
        return request

    report = evaluate(
        blank, some, images_per_prompt=2, rewrite=rewrite, on_result=lambda r, p: saved.append((r.unmade, p is None))
    )
    assert len(asked) == 3  # one rewrite serves all pictures of a prompt
    assert saved == [(REFUSED, True)] * 2 + [(NO_REWRITE, True)] * 2 + [("", False)] * 2
    assert [r.right for r in report.results] == [False] * 4 + [True] * 2
    assert report.unmade == {REFUSED: 2, NO_REWRITE: 2} and report.micro.total == 6
    assert report.table()[-1] == "counted as wrong: 2 refused, 2 no rewrite"
    assert [r.reason for r in report.results[:3:2]] == ["refused: no", "no rewrite: empty"]


def test_an_endpoint_that_is_down_ends_the_evaluation() -> None:
    def rewrite(request: str) -> str:
        raise NetworkError("down")

    with pytest.raises(NetworkError):
        evaluate(blank, prompts(limit=1), rewrite=rewrite)
