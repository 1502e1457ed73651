"""Intervals for shares of right answers, and for the difference of two shares over the same questions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

_Z = 1.959963984540054  # the normal distribution's 97.5 % point


def wilson(right: int, total: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share (E. B. Wilson, 1927): honest for few trials and shares near 0 or 1.

    Returns (0, 1), that is no knowledge, for no trials. Raises ValueError unless 0 <= right <= total.
    """
    if not 0 <= right <= total:
        raise ValueError(f"{right} right of {total} is impossible")
    if total == 0:
        return 0.0, 1.0
    p, z2 = right / total, _Z * _Z
    centre = (p + z2 / (2 * total)) / (1 + z2 / total)
    half = _Z / (1 + z2 / total) * math.sqrt(p * (1 - p) / total + z2 / (4 * total * total))
    return max(0.0, centre - half), min(1.0, centre + half)


@dataclass
class Pairs:
    """The same questions answered twice, before and after a change."""

    won: int = 0  # wrong before, right after
    lost: int = 0  # right before, wrong after
    total: int = 0

    def add(self, before: bool, after: bool) -> None:
        self.won += after and not before
        self.lost += before and not after
        self.total += 1

    @property
    def difference(self) -> float:
        """Share right after less share right before; nan where there were none."""
        return (self.won - self.lost) / self.total if self.total else math.nan

    @property
    def variance(self) -> float:
        """Of the difference, with half an answer added to each of the four outcomes: see `interval`."""
        won, lost, total = self.won + 0.5, self.lost + 0.5, self.total + 2
        return (won + lost - (won - lost) ** 2 / total) / total**2

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the difference (A. Agresti and Y. Min, 2005: half an answer added to each outcome), which
        has a width even where no answer changed. (-1, 1), that is no knowledge, for no pairs."""
        if not self.total:
            return -1.0, 1.0
        centre = (self.won - self.lost) / (self.total + 2)
        half = _Z * math.sqrt(self.variance)
        return max(-1.0, centre - half), min(1.0, centre + half)

    @property
    def p(self) -> float:
        """Two-sided p-value of McNemar's exact test: how likely so uneven a split is if nothing had changed."""
        changed = self.won + self.lost
        tail = sum(math.comb(changed, k) for k in range(min(self.won, self.lost) + 1))
        return min(1.0, 2 * tail / 2**changed)

    def __add__(self, other: Pairs) -> Pairs:
        return Pairs(self.won + other.won, self.lost + other.lost, self.total + other.total)


def mean_difference(kinds: Sequence[Pairs]) -> tuple[float, tuple[float, float]]:
    """(mean of the kinds' differences, its 95 % interval). Raises ValueError where a kind has no pairs."""
    if not kinds or not all(pairs.total for pairs in kinds):
        raise ValueError("a mean of kinds needs pairs in every kind")
    mean = sum(pairs.difference for pairs in kinds) / len(kinds)
    half = _Z * math.sqrt(sum(pairs.variance for pairs in kinds)) / len(kinds)
    return mean, (max(-1.0, mean - half), min(1.0, mean + half))


@dataclass
class Tally:
    """How many answers were right."""

    right: int = 0
    total: int = 0

    def add(self, right: bool) -> None:
        self.right += right
        self.total += 1

    @property
    def rate(self) -> float:
        """Share of right answers; nan where there were none."""
        return self.right / self.total if self.total else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval."""
        return wilson(self.right, self.total)

    def __add__(self, other: Tally) -> Tally:
        return Tally(self.right + other.right, self.total + other.total)

    def row(self, name: str) -> str:
        """`name  0.985 [0.971, 0.992]  591/600`."""
        if not self.total:
            return f"{name:<16}   –"
        low, high = self.interval
        return f"{name:<16} {self.rate:.3f}  [{low:.3f}, {high:.3f}]  {self.right}/{self.total}"
