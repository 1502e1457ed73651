"""Intervals for shares of right answers."""

from __future__ import annotations

import math
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
