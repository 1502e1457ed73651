"""Verdicts, rewards and advantages: every way in which a judge can fail, with the outcome that is promised for it.

Why it can be trusted: the advantages are compared with numpy's means and deviations of lists written by hand, from
which the missing pictures were taken out by hand.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from train.losses.rewards import (
    Missing,
    RewardRule,
    Verdict,
    advantages,
    answer,
    means_by_kind,
    read_verdict,
    reward,
    tally,
)

PAPER = RewardRule()


@pytest.mark.parametrize(
    ("value", "read"),
    [
        (True, 1.0), (False, 0.0), (1, 1.0), (0, 0.0), (0.25, 0.25), ("yes", 1.0), (" Yes ", 1.0), ("NO", 0.0),
        ("fail", 0.0), ("maybe", None), ("", None), (2, None), (-1, None), (math.nan, None), (None, None), ([], None),
    ],
)  # fmt: skip
def test_answers(value: object, read: float | None) -> None:
    """Booleans, probabilities and a few words; anything else is no answer, not a no."""
    assert answer(value) == read


def test_reward_is_the_mean_of_all_rubrics() -> None:
    """Ten of the prompt's own and the overall one weigh the same: 12 levels."""
    for right in range(11):
        verdict = read_verdict([True] * right + [False] * (10 - right), True, 10)
        assert reward(verdict, PAPER) == pytest.approx((right + 1) / 11)
    assert reward(read_verdict([True] * 10, False, 10), RewardRule(overall_weight=10)) == pytest.approx(0.5)
    assert reward(read_verdict([True, False], None, 2), RewardRule(overall_weight=0)) == pytest.approx(0.5)


def test_all_hold() -> None:
    """Half for the mean, half for everything; a gap is not everything, nor is an even chance."""
    rule = RewardRule(overall_weight=0, all_hold=0.5)
    assert reward(read_verdict([1, 1, 0, 1], None, 4), rule) == pytest.approx(0.375)
    assert reward(read_verdict([1, 1, 1, 1], None, 4), rule) == pytest.approx(1)
    assert reward(read_verdict([1, 1, 1, "maybe"], None, 4), rule) == pytest.approx(0.5)
    assert reward(read_verdict([1, 1, 1, 0.5], None, 4), rule) == pytest.approx(0.4375)


def test_a_missing_answer_is_not_a_no() -> None:
    """Left out of the mean while half of the weight is answered; then the whole reward is missing, never zero."""
    assert reward(read_verdict([True, "maybe", True, False], True, 4), PAPER) == pytest.approx(3 / 4)
    assert reward(read_verdict([True, None, None, None], True, 4), PAPER) is None
    assert reward(read_verdict([None] * 4, None, 4), PAPER) is None
    assert reward(read_verdict([True] * 4, None, 4), RewardRule(least_answered=1.0)) is None


@pytest.mark.parametrize("missing", list(Missing))
def test_a_failed_call_is_missing(missing: Missing) -> None:
    assert reward(Verdict(missing=missing), PAPER) is None


def test_wrong_number_of_verdicts() -> None:
    """Nine or eleven answers to ten rubrics: which belongs to which cannot be known."""
    for count in (0, 9, 11):
        verdict = read_verdict([True] * count, True, 10)
        assert verdict.missing is Missing.COUNT and reward(verdict, PAPER) is None


def test_tally() -> None:
    """Refusals are counted, but are no sign of a judge that is down."""
    good, gap = read_verdict([True], True, 1), read_verdict([None], True, 1)
    failed = [Verdict(missing=why) for why in (Missing.REFUSED, Missing.REFUSED, Missing.TIMEOUT, Missing.BUSY)]
    found = tally([good, gap, *failed, good, good])
    assert (found.asked, found.partial, found.failing) == (8, 1, 0.25)
    assert found.missing == {Missing.REFUSED: 2, Missing.TIMEOUT: 1, Missing.BUSY: 1}
    assert tally([]).failing == 0


def test_means_by_kind() -> None:
    verdicts = [read_verdict([1, 0], 1, 2), read_verdict([1, None], 0, 2), Verdict(missing=Missing.BUSY)]
    kinds = [("count", "text"), ("count", "color"), ("count", "text")]
    assert means_by_kind(verdicts, kinds) == {"count": 1.0, "text": 0.0, "overall": 0.5}


def test_advantages() -> None:
    """Mean of the group, deviation of the epoch: two groups of unlike spread share one scale."""
    R = [[0.1, 0.2, 0.3, 0.6], [0.9, 1.0, 0.9, 1.0]]
    got = advantages(torch.tensor(R), torch.zeros(2, 4, dtype=torch.bool))
    std = float(np.std(np.array(R)))
    for row, rewards in zip(got.A_GK.tolist(), R, strict=True):
        assert row == pytest.approx([(r - np.mean(rewards)) / (std + 1e-4) for r in rewards], abs=1e-6)
        assert sum(row) == pytest.approx(0, abs=1e-6)
    assert got.spread.std == pytest.approx(std) and got.spread.mean == pytest.approx(0.625)
    assert got.spread.within == pytest.approx((np.std(R[0]) + np.std(R[1])) / 2)
    assert got.A_GK.dtype == torch.float32 and bool(got.counted_GK.all()) and not bool(got.flat_G.any())


def test_missing_rewards() -> None:
    """What stands in a missing place changes nothing: no mean, no deviation; its advantage is 0 and the rest sums to 0.

    A zero in its place, the common flaw, would raise its neighbours.
    """
    missing = torch.zeros(2, 4, dtype=torch.bool)
    missing[0, 3] = True
    known = [[0.1, 0.2, 0.3], [0.9, 1.0, 0.9, 1.0]]
    std = float(np.std(np.concatenate([np.array(rewards) for rewards in known])))
    for stands in (0.0, -1000.0, math.nan, math.inf):
        got = advantages(torch.tensor([[0.1, 0.2, 0.3, stands], known[1]]), missing)
        assert got.A_GK[0].tolist() == pytest.approx([-0.1 / (std + 1e-4), 0, 0.1 / (std + 1e-4), 0], abs=1e-6)
        assert got.spread.missing == 1 and got.spread.short == 0
        assert torch.equal(got.counted_GK, ~missing)
    as_zero = advantages(torch.tensor([[0.1, 0.2, 0.3, 0.0], known[1]]), torch.zeros_like(missing))
    assert float(as_zero.A_GK[0, 0]) > float(got.A_GK[0, 0])


def test_short_group() -> None:
    """A group of which most is missing is left out whole, of the deviation too."""
    missing = torch.tensor([[False, True, True, True], [False] * 4, [True] * 4])
    R = torch.tensor([[1.0, 0, 0, 0], [0.2, 0.4, 0.6, 0.8], [0.5] * 4])
    got = advantages(R, missing)
    assert not bool(got.A_GK[0].any()) and not bool(got.A_GK[2].any())
    assert not bool(got.counted_GK[0].any()) and bool(got.counted_GK[1].all())
    assert (got.spread.short, got.spread.missing) == (2, 7)
    assert got.spread.std == pytest.approx(float(np.std([0.2, 0.4, 0.6, 0.8])))


def test_nothing_known() -> None:
    got = advantages(torch.full((2, 3), math.nan), torch.ones(2, 3, dtype=torch.bool))
    assert not bool(got.A_GK.any()) and not bool(got.counted_GK.any()) and not bool(got.flat_G.any())
    assert math.isnan(got.spread.mean) and got.spread.short == 2


def test_group_without_spread() -> None:
    """Known, counted in the mean and the deviation, advantage exactly 0, flagged; a group of one is flat too."""
    R = torch.tensor([[1 / 11] * 3, [0.0, 1.0, 0.5]])
    got = advantages(R, torch.zeros(2, 3, dtype=torch.bool))
    assert got.A_GK[0].tolist() == [0, 0, 0] and got.flat_G.tolist() == [True, False] and got.spread.flat == 1
    assert got.spread.std == pytest.approx(float(np.std(R.numpy())), rel=1e-6)
    alone = advantages(torch.tensor([[0.3]]), torch.tensor([[False]]))
    assert alone.A_GK.tolist() == [[0]] and alone.flat_G.tolist() == [True]


def test_floor_and_clip() -> None:
    """A nearly perfect policy: the floor keeps one judge's slip from standing out; the clip holds what does."""
    R = torch.ones(1, 24)
    R[0, 0] = 10 / 11
    missing = torch.zeros(1, 24, dtype=torch.bool)
    assert float(advantages(R, missing, clip=4.0).A_GK[0, 0]) == -4.0
    assert advantages(R, missing, clip=4.0).spread.clipped == pytest.approx(1 / 24)
    floored = advantages(R, missing, floor=0.1)
    assert float(floored.A_GK[0, 0]) == pytest.approx((10 / 11 - float(R.mean())) / 0.1, rel=1e-5)
    assert floored.spread.std < 0.1 and floored.spread.clipped == 0


def test_a_reward_that_is_no_number() -> None:
    with pytest.raises(ValueError, match="not a finite number"):
        advantages(torch.tensor([[0.0, math.nan]]), torch.zeros(1, 2, dtype=torch.bool))
