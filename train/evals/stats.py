"""Intervals for shares of right answers, and for the difference of two shares over the same questions.

Answers may come in groups, such as several pictures of one prompt. Those of a group are more alike than others, so that
they tell less than as many independent ones: less by the design effect, by which `AnswerTally` and `Pairs` divide.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

_Z = 1.959963984540054  # the normal distribution's 97.5 % point


def wilson(right: float, total: float) -> tuple[float, float]:
    """Wilson's 95 % interval of a share (E. B. Wilson, 1927): honest for few trials and shares near 0 or 1.

    Numbers need not be whole: `total` may be that of as many independent trials as grouped ones are worth. Returns
    (0, 1), that is no knowledge, for no trials. Raises ValueError unless 0 <= right <= total.
    """
    if not 0 <= right <= total:
        raise ValueError(f"{right} right of {total} is impossible")
    if total == 0:
        return 0.0, 1.0
    p, z2 = right / total, _Z * _Z
    centre = (p + z2 / (2 * total)) / (1 + z2 / total)
    half = _Z / (1 + z2 / total) * math.sqrt(p * (1 - p) / total + z2 / (4 * total * total))
    return max(0.0, centre - half), min(1.0, centre + half)


def design_effect(groups: Sequence[Sequence[float]]) -> float:
    """How many grouped answers tell as much as one independent one: the variance of the mean between groups over the
    one of independent answers (L. Kish, 1965), at least 1.

    1 where every group has one answer. Where all answers are equal, or there is one group only, nothing shows how alike
    a group is: taken as wholly so.
    """
    total = sum(map(len, groups))
    if total == len(groups):
        return 1.0
    mean = sum(map(sum, groups)) / total
    plain = sum((answer - mean) ** 2 for group in groups for answer in group)
    if len(groups) == 1 or plain == 0:
        return total / len(groups)
    between = sum(sum(answer - mean for answer in group) ** 2 for group in groups)
    return max(1.0, between / plain * len(groups) / (len(groups) - 1))


@dataclass(frozen=True)
class Pairs:
    """Counts what became of questions that were answered twice, before and after a change."""

    won: int = 0  # wrong before, right after
    lost: int = 0  # right before, wrong after
    total: int = 0
    design: float = 1.0  # the differences' design effect
    groups: tuple[int, int] | None = None  # how many won and lost on balance; None: every pair is its own group

    @classmethod
    def of(cls, groups: Sequence[Sequence[tuple[bool, bool]]]) -> Pairs:
        """From groups of (before, after)."""
        changes = [[after - before for before, after in group] for group in groups]
        flat = [change for group in changes for change in group]
        balance = [sum(group) for group in changes]
        signs = sum(b > 0 for b in balance), sum(b < 0 for b in balance)
        return cls(
            won=flat.count(1),
            lost=flat.count(-1),
            total=len(flat),
            design=design_effect(changes),
            groups=None if len(flat) == len(groups) else signs,
        )

    @property
    def difference(self) -> float:
        """Share right after less share right before; nan where there were none."""
        return (self.won - self.lost) / self.total if self.total else math.nan

    @property
    def variance(self) -> float:
        """Variance of the difference, with half an answer added to each of the four outcomes: see `interval`."""
        won, lost, total = (n / self.design for n in (self.won, self.lost, self.total))
        won, lost, total = won + 0.5, lost + 0.5, total + 2
        return (won + lost - (won - lost) ** 2 / total) / total**2

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the difference (A. Agresti and Y. Min, 2005: half an answer added to each outcome), which
        has a width even where no answer changed. (-1, 1), that is no knowledge, for no pairs."""
        if not self.total:
            return -1.0, 1.0
        centre = (self.won - self.lost) / (self.total + 2 * self.design)
        half = _Z * math.sqrt(self.variance)
        return max(-1.0, centre - half), min(1.0, centre + half)

    @property
    def p(self) -> float:
        """Two-sided p-value of McNemar's exact test: how likely so uneven a split is if nothing had changed. Of groups
        that won or lost on balance, the sign test, which is the same where a group is one pair."""
        won, lost = self.groups or (self.won, self.lost)
        tail = sum(math.comb(won + lost, k) for k in range(min(won, lost) + 1))
        return min(1.0, 2 * tail / 2 ** (won + lost))

    def row(self, name: str) -> str:
        """`name  +0.120 [+0.010, +0.230]  +9 -3`."""
        low, high = self.interval
        return f"{name:<16} {self.difference:+.3f}  [{low:+.3f}, {high:+.3f}]  +{self.won} -{self.lost}"


def mean_difference(kinds: Sequence[Pairs]) -> tuple[float, tuple[float, float]]:
    """(mean of the kinds' differences, its 95 % interval). Raises ValueError where a kind has no pairs."""
    if not kinds or not all(pairs.total for pairs in kinds):
        raise ValueError("a mean of kinds needs pairs in every kind")
    mean = sum(pairs.difference for pairs in kinds) / len(kinds)
    half = _Z * math.sqrt(sum(pairs.variance for pairs in kinds)) / len(kinds)
    return mean, (max(-1.0, mean - half), min(1.0, mean + half))


@dataclass
class AnswerTally:
    """How many answers were right."""

    right: int = 0
    total: int = 0
    design: float = 1.0  # the answers' design effect

    @classmethod
    def of(cls, groups: Sequence[Sequence[bool]]) -> AnswerTally:
        """From groups of answers."""
        return cls(sum(map(sum, groups)), sum(map(len, groups)), design_effect(groups))

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
        return wilson(self.right / self.design, self.total / self.design)

    def __add__(self, other: AnswerTally) -> AnswerTally:
        """Add tallies of ungrouped answers; raises ValueError for others, whose groups are no longer known."""
        if self.design != 1 or other.design != 1:
            raise ValueError("tallies of grouped answers cannot be added: make one of all groups")
        return AnswerTally(self.right + other.right, self.total + other.total)

    def row(self, name: str) -> str:
        """`name  0.985 [0.971, 0.992]  591/600`."""
        if not self.total:
            return f"{name:<16}   –"
        low, high = self.interval
        return f"{name:<16} {self.rate:.3f}  [{low:.3f}, {high:.3f}]  {self.right}/{self.total}"
