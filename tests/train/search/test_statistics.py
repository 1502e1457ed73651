"""The statistics of a search against independent statements: all sign assignments written out, textbook tables, and
the guarantees by simulation."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest

from tests.train.search.fakes import beta_binomial
from train.search import gate
from train.search.rules import GateRules
from train.search.statistics import GRID, Hopeless, detectable, interval, level, sign_flip, spread_of, student_t


def flipped(differences: list[float]) -> float:
    """The definition: every assignment of signs, counted."""
    observed = sum(differences)
    sums = [
        sum(sign * d for sign, d in zip(signs, differences, strict=True))
        for signs in itertools.product((1, -1), repeat=len(differences))
    ]
    return sum(total >= observed - 1e-9 for total in sums) / len(sums)


@pytest.mark.parametrize("seed", range(6))
def test_the_sign_flip_test_counts_all_assignments(seed: int) -> None:
    rng = random.Random(seed)
    rational = [rng.randint(-22, 22) / 22 for _ in range(11)]
    on_the_grid = [round(rng.uniform(-1, 1) * GRID) / GRID for _ in range(11)]
    for differences in (rational, on_the_grid, [0.0, 0.5, -0.5, 1.0]):
        assert sign_flip(differences) == pytest.approx(flipped(differences), abs=1e-12)


def test_the_sign_flip_test_at_its_ends() -> None:
    assert sign_flip([]) == sign_flip([0.0] * 50) == 1.0
    assert sign_flip([0.1] * 20) == 2.0**-20
    assert sign_flip([-0.1] * 20) == 1.0
    with pytest.raises(ValueError, match="finite"):
        sign_flip([0.1, math.nan])


def test_scores_that_are_no_fractions_are_tested_on_a_coarser_grid() -> None:
    # With 400 of them the normal approximation is the independent statement: to .002 in the middle.
    d = np.random.default_rng(3).normal(0.01, 0.27, 400).clip(-1, 1)
    z = d.sum() / math.sqrt((d**2).sum())
    assert sign_flip(d.tolist()) == pytest.approx(0.5 * math.erfc(z / math.sqrt(2)), abs=0.004)


def test_levels_add_up_to_alpha() -> None:
    assert [level(k, 0.05) for k in (1, 2, 3)] == pytest.approx([0.025, 0.05 / 6, 0.05 / 12])
    assert sum(level(k, 0.05) for k in range(1, 2000)) == pytest.approx(0.05, rel=1e-3)
    with pytest.raises(ValueError, match="0-th"):
        level(0, 0.05)


def test_quantiles_and_intervals_are_those_of_the_tables() -> None:
    # Student's t, 97.5 %: any textbook.
    for freedom, value in ((10, 2.228), (30, 2.042), (127, 1.979), (255, 1.969)):
        assert student_t(0.975, freedom) == pytest.approx(value, abs=0.001)
    low, high = interval([0.1, 0.3, 0.2, 0.0, 0.4, 0.2, 0.2, 0.1, 0.3, 0.2, 0.2])
    # mean .2, standard deviation .10954, 11 values: .2 -+ 2.228 * .03303
    assert (low, high) == pytest.approx((0.12641, 0.27359), abs=2e-4)
    assert interval([0.3]) == (-1.0, 1.0)


def test_what_can_be_detected_is_detected_eight_times_of_ten() -> None:
    rng = np.random.default_rng(11)
    gain = detectable(0.27, 128, level(1, 0.05))
    assert gain == pytest.approx((1.95996 + 0.84162) * 0.27 / math.sqrt(128), rel=1e-4)
    found = [sign_flip((np.rint(rng.normal(gain, 0.27, 128) * 22) / 22).tolist()) <= 0.025 for _ in range(200)]
    assert 0.72 < sum(found) / 200 < 0.88
    assert detectable(0.27, 5, 0.025) == math.inf  # 2^-5 is .031


def test_the_spread_of_differences_comes_from_pictures_of_one_request() -> None:
    rng = np.random.default_rng(5)
    mean = rng.uniform(0.3, 0.9, 4000)
    one, other = (beta_binomial(rng, np.repeat(mean[:, None], 2, 1)) / 11 for _ in range(2))
    real = (one.mean(1) - other.mean(1)).std()  # between two prompts that are equally good
    assert spread_of(one.tolist(), seeds=2) == pytest.approx(real, rel=0.04)
    with pytest.raises(ValueError, match="two pictures"):
        spread_of([[0.5], [0.7]], seeds=1)


def test_the_e_process_seldom_stops_what_gains_enough_and_stops_what_does_not() -> None:
    rng = np.random.default_rng(2)

    def stopped(gain: float, prompts: int = 256) -> float:
        ended = 0
        for _ in range(200):
            process = Hopeless(0.05)
            ended += any(process.add([d]) >= 20 for d in rng.normal(gain, 0.27, prompts).clip(-1, 1).tolist())
        return ended / 200

    assert stopped(0.05) <= 0.05  # Ville: at most 1/20, looking after every request
    assert stopped(-0.05) > 0.8


def test_the_e_process_is_a_martingale_at_the_edge_of_its_claim() -> None:
    # Differences of which nothing but the mean is known: two points far apart, exactly averaged over all paths.
    process_end = 0.0
    for path in itertools.product((-0.95, 1.0), repeat=9):  # mean .025
        process = Hopeless(0.025)
        process_end += process.add(list(path)) / 2**9
    assert process_end == pytest.approx(1.0, abs=1e-9)


# --------------------------------------------------------------------------------------------------------------- gates


def test_a_race_promotes_only_at_its_end_and_only_at_its_level() -> None:
    clear = [0.3] * 64
    racing = gate.Racing(GateRules(block=32), number=3, total=64)
    assert racing.add(clear[:32]) is None  # p is 2^-32 by now, and nothing is promoted
    ruling = racing.add(clear[32:])
    assert ruling is not None and (ruling.outcome, ruling.prompts) == ("promoted", 64)
    assert ruling.alpha == pytest.approx(0.05 / 12) and ruling.mean == pytest.approx(0.3)
    # One-sided p .0139 of 7 ups in 7 + small noise: enough for the first candidate (.025), not for the second (.0083).
    few = [0.2, 0.2, 0.2, 0.2, 0.2, 0.2]
    for number, outcome in ((1, "promoted"), (2, "not better")):
        (ruling,) = (gate.Racing(GateRules(), number=number, total=6).add(few),)
        assert ruling is not None and ruling.outcome == outcome and ruling.p == 2.0**-6


def test_losers_and_hopeless_candidates_leave_before_the_end() -> None:
    racing = gate.Racing(GateRules(block=8), number=1, total=256)
    ruling = racing.add([-0.2] * 8)
    assert ruling is not None and (ruling.outcome, ruling.prompts) == ("loser", 8)
    racing = gate.Racing(GateRules(block=32, losing=0, gain=0.1), number=1, total=256)
    rulings = [racing.add([0.01, -0.01] * 16) for _ in range(7)]
    assert [r.outcome for r in rulings if r is not None][:1] == ["hopeless"]
    never = gate.Racing(GateRules(losing=0, hopeless=0), number=1, total=256)
    assert never.add([-0.2] * 128) is None


def test_requests_without_a_verdict_count_as_looked_at() -> None:
    racing = gate.Racing(GateRules(), number=1, total=64)
    assert racing.add([0.2] * 30, prompts=32) is None
    ruling = racing.add([], prompts=32)
    assert ruling is not None and (ruling.outcome, ruling.prompts) == ("promoted", 30)


def test_the_batch_and_the_confirmation() -> None:
    assert gate.passes_batch([0.1, -0.05]) and not gate.passes_batch([0.1, -0.1]) and not gate.passes_batch([])
    assert list(gate.blocks(70, 32)) == [(0, 32), (32, 64), (64, 70)]
    found = gate.confirm([0.2, 0.1] * 20)
    assert found.confirmed and found.low > 0 and found.p == pytest.approx(2 * 2.0**-40)
    assert not gate.confirm([-0.2, -0.1] * 20).confirmed  # clearly worse is not confirmed
    assert not gate.confirm([0.2, -0.2] * 20).confirmed
    assert not gate.confirm([]).confirmed
