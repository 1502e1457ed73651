"""What a search will cost and what it can find, said before anything is spent; and the noise of this very setup."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from backend.errors import UsageError
from train.search.config import SearchConfig
from train.search.evaluator import Evaluator, Sample
from train.search.statistics import detectable, level, spread_of

# A vision model with eleven rubrics whose answers are alike within a picture (correlation .35): simulated.
ASSUMED_PICTURE = 0.28  # standard deviation between pictures of one request
LATE = 5  # the candidate whose level is told beside the first one's
COARSE = 0.1  # a search that only finds larger gains than this is called exploratory


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Pictures of a search, counted; rewrites and the writer's calls come on top."""

    baselines: int
    gate: int  # of one candidate
    validation: int  # of one candidate that is not dropped before
    confirmation: int
    candidates: int

    @property
    def least(self) -> int:
        """What a search must have to validate one candidate and confirm it."""
        return self.baselines + 2 * self.gate + self.validation + self.confirmation

    @property
    def usual(self) -> int:
        """With half of the candidates passing the gate, and all of those validated to the end."""
        half = math.ceil(self.candidates / 2)
        return self.baselines + self.candidates * 2 * self.gate + half * self.validation + self.confirmation

    def data(self) -> dict[str, Any]:
        return {
            "baselines": self.baselines, "gate": self.gate, "validation": self.validation,
            "confirmation": self.confirmation, "least": self.least, "usual": self.usual,
        }  # fmt: skip


def costs(config: SearchConfig) -> Costs:
    sizes = config.sizes
    return Costs(
        baselines=2 * sizes.validation * sizes.seeds, gate=sizes.batch * sizes.seeds,
        validation=sizes.validation * sizes.seeds, confirmation=2 * sizes.test * sizes.seeds,
        candidates=config.limits.candidates,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Power:
    """What a search of a size can detect."""

    spread: float  # standard deviation of a difference between two equally good prompts, a request
    measured: bool  # on this setup, or assumed
    first: float  # the smallest gain that the first validated candidate is promoted for in 8 of 10 searches
    late: float  # of the LATE-th
    test: float  # that the confirmation shows

    def lines(self) -> list[str]:
        source = "measured here" if self.measured else "assumed: no pilot"
        return [
            f"noise       standard deviation {self.spread:.3f} of a request's difference ({source})",
            f"detectable  a gain of {_points(self.first)} by the first validated candidate, {_points(self.late)} "
            f"by the {LATE}th (8 times of 10); the test split shows {_points(self.test)}; smaller true gains will "
            "mostly not be found",
        ]

    def data(self) -> dict[str, Any]:
        def plain(number: float) -> float | None:
            return number if math.isfinite(number) else None

        return {
            "spread": self.spread, "measured": self.measured, "first": plain(self.first), "late": plain(self.late),
            "test": plain(self.test),
        }  # fmt: skip


def _points(gain: float) -> str:
    return f"{gain:.3f}" if math.isfinite(gain) else "none at all"


def power_of(config: SearchConfig, spread: float, *, measured: bool, validated_before: int = 0) -> Power:
    """From the spread of a difference, a request."""
    sizes, alpha = config.sizes, config.rules.alpha

    def at(number: int) -> float:
        return detectable(spread, sizes.validation, level(validated_before + number, alpha))

    return Power(
        spread=spread, measured=measured, first=at(1), late=at(LATE), test=detectable(spread, sizes.test, 0.025)
    )  # fmt: skip


def assumed_power(config: SearchConfig, validated_before: int = 0) -> Power:
    """Before a picture is drawn."""
    spread = math.sqrt(2 / config.sizes.seeds) * ASSUMED_PICTURE
    return power_of(config, spread, measured=False, validated_before=validated_before)


def check_size(config: SearchConfig, validated_before: int = 0) -> list[str]:
    """Warnings about a search that can hardly prove anything. Raises UsageError for one that cannot, and for a budget
    that does not reach the first verdict."""
    sizes, limits, needs = config.sizes, config.limits, costs(config)
    last = validated_before + limits.candidates
    if 2.0**-sizes.validation > level(last, config.rules.alpha):
        least = math.ceil(-math.log2(level(last, config.rules.alpha)))
        raise UsageError(
            f"{sizes.validation} validation requests cannot prove anything: even a gain in every one of them is no "
            f"evidence for the {last}th candidate",
            hint=f"at least --validation {least}; 256 is the default",
        )
    if 2.0 ** (1 - sizes.test) > 0.05:
        raise UsageError(f"{sizes.test} test requests cannot confirm anything", hint="at least --test 6; 256 is usual")
    if limits.pictures is not None and limits.pictures < needs.least:
        raise UsageError(
            f"a budget of {limits.pictures:,} pictures ends before the first candidate is judged: {needs.baselines:,} "
            f"for the first prompt and none, {needs.validation + 2 * needs.gate:,} for a candidate, "
            f"{needs.confirmation:,} for the confirmation",
            hint=f"--budget pictures={needs.least} or more; or smaller splits, which detect less",
        )
    power = assumed_power(config, validated_before)
    warnings: list[str] = []
    if power.first > COARSE:
        warnings.append(
            f"this search is exploratory: it finds gains above about {power.first:.2f} only; system prompts usually "
            "differ by .02 to .09"
        )
    return warnings


@dataclass(frozen=True, kw_only=True)
class Noise:
    """What a pilot measured."""

    requests: int
    seeds: int
    score: float  # mean of the first prompt
    spread: float  # of a difference, a request
    seconds: float  # a picture, with its share of the rewriting and its verdict
    refused: int
    unusable: int

    def lines(self) -> list[str]:
        lines = [f"pilot       {self.requests} requests x {self.seeds} pictures: score {self.score:.3f}"]
        if self.refused or self.unusable:
            lines.append(f"            {self.refused} pictures refused, {self.unusable} without a usable rewrite")
        lines.append(f"speed       {self.seconds:.2f} s a picture, all in all")
        return lines


def pilot(evaluator: Evaluator, score: list[list[Sample]], seconds: float, drawn: int) -> Noise:
    """From the first prompt's samples on the first validation requests, which the search will need anyway.

    `seconds`, `drawn`: what they took, and how many pictures that were. Raises UsageError for one seed a request.
    """
    sizes = evaluator.folder.config.sizes
    rows = [[s.score for s in row if s.score is not None] for row in score]
    flat = [value for row in rows for value in row]
    if sizes.seeds >= 2:
        spread = spread_of(rows, sizes.seeds)
    else:  # one picture a request: pictures of different requests vary more than those of one
        mean = sum(flat) / len(flat)
        spread = math.sqrt(2 * sum((value - mean) ** 2 for value in flat) / max(1, len(flat) - 1))
    samples = [sample for row in score for sample in row]
    return Noise(
        requests=len(score), seeds=sizes.seeds, score=sum(flat) / len(flat) if flat else 0.0, spread=spread,
        seconds=seconds / max(1, drawn), refused=sum(s.status == "refused" for s in samples),
        unusable=sum(s.status == "unusable" for s in samples),
    )  # fmt: skip
