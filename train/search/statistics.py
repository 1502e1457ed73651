"""The statistics that a search stands on: an exact test, levels that add up to one, intervals, and an e-process.

A *difference* is what one prompt scores with the candidate less what it scores with the prompt in force, each the mean
over the same seeds. Prompts are independent; pictures of one prompt are not, so a difference a prompt is the unit.
Scores lie in [0, 1], differences in [-1, 1].

Heavy ring: numpy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

GRID = 27_720  # differences are counted in 1/GRID: every fraction with a denominator up to 12 is whole there
_SUMS = 100_000  # different sums that are told apart: differences to about .001 with 256 prompts


def sign_flip(differences: Sequence[float]) -> float:
    """The one-sided p-value of the exact sign-flip test: how often a mean is at least this high when every
    difference is as likely to have the other sign (R. A. Fisher, 1935).

    Exact for the differences rounded to 1/GRID: rounding keeps a difference and its opposite opposite, so that the
    test holds its level whatever the scores are. All 2^n assignments are counted at once, as a distribution of sums.
    1 without a difference other than 0. Raises ValueError for a difference that is not finite.
    """
    d = np.asarray(differences, dtype=np.float64)
    if not np.isfinite(d).all():
        raise ValueError("a difference is not a finite number")
    whole = np.rint(d * GRID).astype(np.int64)
    sizes = np.abs(whole[whole != 0])
    if not len(sizes):
        return 1.0
    unit = int(np.gcd.reduce(sizes))
    while (
        int(sizes.sum()) // unit > _SUMS
    ):  # scores that are no simple fractions: a coarser grid, which holds its level too
        unit *= 2
    sizes = np.rint(np.abs(whole) / unit).astype(np.int64)
    observed = int((np.sign(whole) * sizes).sum())
    total = int(sizes.sum())
    chance = np.zeros(total + 1)  # of the sum of those with a plus
    chance[0], reach = 1.0, 0
    for size in sizes[sizes != 0]:
        step = int(size)
        chance[step : reach + step + 1] += chance[: reach + 1].copy()
        reach += step
        chance[: reach + 1] *= 0.5
    # The sum of signed sizes is twice the plus part less the total.
    least = (observed + total + 1) // 2
    return float(min(1.0, chance[least:].sum()))


def level(number: int, alpha: float) -> float:
    """The level at which the `number`-th validated candidate (from 1) is tested: alpha / (k (k + 1)).

    These add up to alpha over any number of candidates, so alpha bounds the chance that a search promotes any candidate
    that is no better. Raises ValueError for a number below 1.
    """
    if number < 1:
        raise ValueError(f"there is no {number}-th candidate")
    return alpha / (number * (number + 1))


def interval(differences: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """The interval of the mean difference by Student's t; (-1, 1), that is no knowledge, for fewer than two."""
    n = len(differences)
    if n < 2:
        return -1.0, 1.0
    d = np.asarray(differences, dtype=np.float64)
    half = student_t(1 - (1 - confidence) / 2, n - 1) * float(d.std(ddof=1)) / math.sqrt(n)
    mean = float(d.mean())
    return max(-1.0, mean - half), min(1.0, mean + half)


def student_t(probability: float, freedom: int) -> float:
    """A quantile of Student's t by its expansion around the normal one (A. Hald, 1952); to .001 from 10 degrees on."""
    z, v = NormalDist().inv_cdf(probability), freedom
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / v ** (power + 1) for power, term in enumerate(terms))


def detectable(spread: float, prompts: int, alpha: float, power: float = 0.8) -> float:
    """The smallest true gain that a test at level `alpha` (one-sided) finds with probability `power`.

    `spread`: standard deviation of the differences. Infinite where not even a gain in every prompt would be
    significant: the smallest p-value of `prompts` signs is 2^-prompts.
    """
    if prompts < 1 or 2.0**-prompts > alpha:
        return math.inf
    normal = NormalDist()
    return (normal.inv_cdf(1 - alpha) + normal.inv_cdf(power)) * spread / math.sqrt(prompts)


def spread_of(scores: Sequence[Sequence[float]], seeds: int) -> float:
    """The standard deviation that differences of two equally good prompts will have, from one prompt's own scores.

    `scores`: of each request its pictures from different seeds, two or more; `seeds`: that a difference will average
    over. At best: two system prompts that do well on different requests add to it. Raises ValueError for no request
    with two scores.
    """
    within = [float(np.var(row, ddof=1)) for row in scores if len(row) >= 2]
    if not within:
        raise ValueError("no request has two pictures")
    return math.sqrt(2 * float(np.mean(within)) / seeds)


class Hopeless:
    """An e-process against "the candidate gains at least `gain`": betting on differences as they come.

    `wealth` starts at 1, and where the claim is true it reaches w with a probability of at most 1/w, whenever one looks
    (J. Ville, 1939; I. Waudby-Smith and A. Ramdas, 2023). So a candidate may be dropped at any block; the process says
    nothing in its favour, ever.
    """

    def __init__(self, gain: float) -> None:
        self.gain, self.wealth = gain, 1.0
        self._count, self._sum, self._squares = 0, 0.0, 0.0  # of what was seen

    def add(self, differences: Sequence[float]) -> float:
        """The wealth after these as well. A stake depends on what came before it alone."""
        for difference in differences:
            # The shortfall lies in [gain - 1, gain + 1] and has a mean of at most 0 under the claim.
            shortfall = self.gain - difference
            self.wealth *= 1 + self._stake() * shortfall
            self._count, self._sum = self._count + 1, self._sum + shortfall
            self._squares += shortfall * shortfall
        return self.wealth

    def _stake(self) -> float:
        # As if a mean of 0 had been seen once, and widely spread: small stakes at first.
        n = self._count
        mean = self._sum / (n + 1)
        spread = (0.25 + self._squares - 2 * mean * self._sum + n * mean * mean) / (n + 1)
        return min(max(0.0, mean / (spread + mean * mean)), 0.5 / (1 - self.gain))
