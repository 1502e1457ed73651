"""What becomes of a candidate: pure decisions over paired differences, the same for a search and for its simulation.

1. The gate, on the batch whose failures the writer was shown: a mean above 0. It costs nothing but pictures.
2. The race, on the validation split, block by block: a loser leaves, and so does one that can no longer gain enough.
   Nothing is ever promoted in a race.
3. The verdict, on the whole validation split: the exact test at the level of this candidate's number.
4. The confirmation, once, on the test split.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from train.search.rules import GateRules
from train.search.statistics import Hopeless, interval, level, sign_flip

Race = Literal["promoted", "not better", "loser", "hopeless"]


@dataclass(frozen=True, kw_only=True)
class Ruling:
    """What was decided about a candidate, with the numbers that decided it."""

    outcome: Race
    prompts: int  # that were looked at
    mean: float  # of the differences
    low: float  # 95 % interval of the mean
    high: float
    p: float  # of the exact test, one-sided
    alpha: float  # its level


def passes_batch(differences: Sequence[float]) -> bool:
    """Whether a candidate may go on from the batch."""
    return bool(differences) and sum(differences) > 0


def blocks(total: int, size: int) -> Iterator[tuple[int, int]]:
    """(first, end) of every block of validation prompts."""
    for first in range(0, total, size):
        yield first, min(total, first + size)


class Racing:
    """One candidate on its way through validation. `number`: the how-manieth validated candidate it is, from 1."""

    def __init__(self, rules: GateRules, number: int, total: int) -> None:
        self.rules, self.total, self.alpha = rules, total, level(number, rules.alpha)
        self._hopeless = Hopeless(rules.gain)
        self._differences: list[float] = []

    def add(self, differences: Sequence[float], *, prompts: int | None = None) -> Ruling | None:
        """A block's differences; None: the race goes on. `prompts`: of the block, those without a difference (a
        verdict is missing) among them; they count as looked at."""
        self._differences += differences
        self._hopeless.add(differences)
        self.total -= len(differences) if prompts is None else prompts
        rules = self.rules
        if self.total <= 0:
            found = sign_flip(self._differences)
            return self._ruling("promoted" if found <= self.alpha else "not better", found)
        if rules.hopeless and self._hopeless.wealth >= rules.hopeless:
            return self._ruling("hopeless", sign_flip(self._differences))
        if rules.losing and sum(self._differences) < 0 and sign_flip([-d for d in self._differences]) <= rules.losing:
            return self._ruling("loser", sign_flip(self._differences))
        return None

    def _ruling(self, outcome: Race, p: float) -> Ruling:
        d = self._differences
        low, high = interval(d)
        mean = sum(d) / len(d) if d else 0.0
        return Ruling(outcome=outcome, prompts=len(d), mean=mean, low=low, high=high, p=p, alpha=self.alpha)


@dataclass(frozen=True, kw_only=True)
class Confirmation:
    """The winner against the first prompt, on prompts that nothing was decided by."""

    prompts: int
    mean: float
    low: float  # 95 % interval
    high: float
    p: float  # two-sided
    confirmed: bool


def confirm(differences: Sequence[float], alpha: float = 0.05) -> Confirmation:
    """The one look at the test split: confirmed where the two-sided test and the interval agree on a gain."""
    low, high = interval(differences)
    mean = sum(differences) / len(differences) if differences else 0.0
    upwards, downwards = sign_flip(differences), sign_flip([-d for d in differences])
    p = min(1.0, 2 * min(upwards, downwards))
    return Confirmation(
        prompts=len(differences), mean=mean, low=low, high=high, p=p, confirmed=mean > 0 and p <= alpha and low > 0
    )
