"""From a judge's verdicts to rewards, from rewards to advantages. Pure functions.

Lens paper, section 2.4: ten rubrics of the prompt's own and one for every picture, judged in one call. How the answers
become a number is not printed; the default is the mean of yes and no (RubricRL, arXiv 2511.20651). Advantages are
DiffusionNFT's: the reward less the mean of its group, over the standard deviation of the whole epoch.

What a judge did not say is missing, never zero: a made-up zero pushes the policy away from fine pictures. A picture
without a reward is in no mean, its advantage is 0, and it is counted by reason.

Legend: G groups (prompts), K pictures of a group.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor


class Missing(StrEnum):
    """Why a picture has no verdict."""

    REFUSED = "refused"  # the judge's content policy: it goes with the prompt, not with the judge's health
    UNREADABLE = "unreadable"  # an answer that is no verdict: prose, broken JSON
    COUNT = "count"  # more or fewer verdicts than rubrics
    TIMEOUT = "timeout"
    BUSY = "busy"  # still 429 after the last try
    UNREACHABLE = "unreachable"  # a connection or a server that fails


ANSWERS: Mapping[str, float] = {
    "yes": 1.0, "true": 1.0, "pass": 1.0, "1": 1.0,
    "no": 0.0, "false": 0.0, "fail": 0.0, "0": 0.0,
}  # fmt: skip


def answer(value: object) -> float | None:
    """Read one answer: a boolean, a probability of yes, or a word of `ANSWERS`; None for everything else ("maybe")."""
    if isinstance(value, bool | int | float):
        return float(value) if 0 <= value <= 1 else None
    return ANSWERS.get(value.strip().lower()) if isinstance(value, str) else None


@dataclass(frozen=True)
class Verdict:
    """What the judge said about one picture; with `missing`, that it said nothing."""

    answers: tuple[float | None, ...] = ()  # a rubric each: 1 it holds, 0 it does not, between: P(yes); None: no answer
    overall: float | None = None  # the same of the rubric that every picture has
    missing: Missing | None = None


def read_verdict(answers: Sequence[object], overall: object, rubrics: int) -> Verdict:
    """Read a judge's answers to `rubrics` rubrics and to the overall one; the wrong number is a missing verdict."""
    if len(answers) != rubrics:
        return Verdict(missing=Missing.COUNT)
    return Verdict(tuple(answer(value) for value in answers), answer(overall))


@dataclass(frozen=True, kw_only=True)
class RewardRule:
    """How a verdict becomes a number between 0 and 1."""

    overall_weight: float = 1.0  # the overall rubric counts as so many of the prompt's own
    all_hold: float = 0.0  # share of the reward that is given only where everything holds; the rest is the mean
    least_answered: float = 0.5  # share of the weight that must have an answer; below it the reward is missing


def reward(verdict: Verdict, rule: RewardRule) -> float | None:
    """Return the reward of a picture between 0 and 1, or None where it is missing.

    A rubric without an answer is left out of the mean. Everything holds where every rubric, none left out, is more
    likely to hold than not: a picture with a gap does not get `all_hold`.
    """
    weighted = [(value, 1.0) for value in verdict.answers]
    if rule.overall_weight:
        weighted.append((verdict.overall, rule.overall_weight))
    answered = [(value, weight) for value, weight in weighted if value is not None]
    weight = sum(weight for _, weight in answered)
    if verdict.missing or not weight or weight < rule.least_answered * sum(weight for _, weight in weighted):
        return None
    mean = sum(value * weight for value, weight in answered) / weight
    holds = len(answered) == len(weighted) and all(value > 0.5 for value, _ in answered)
    return (1 - rule.all_hold) * mean + rule.all_hold * holds


@dataclass(frozen=True)
class Tally:
    """How many verdicts were asked for, and why which of them are missing."""

    asked: int
    missing: Mapping[Missing, int]
    partial: int  # verdicts in which one of the prompt's own rubrics has no answer

    @property
    def failing(self) -> float:
        """Share of calls that failed by the judge's fault: all but refusals. Above a limit the run pauses."""
        return sum(n for why, n in self.missing.items() if why is not Missing.REFUSED) / max(self.asked, 1)


def tally(verdicts: Iterable[Verdict]) -> Tally:
    """Count the verdicts of an epoch, or of a while, by what became of them."""
    verdicts = list(verdicts)
    missing = Counter(verdict.missing for verdict in verdicts if verdict.missing)
    partial = sum(None in verdict.answers for verdict in verdicts)
    return Tally(len(verdicts), dict(missing), partial)


def means_by_kind(verdicts: Iterable[Verdict], kinds: Iterable[Sequence[str]]) -> dict[str, float]:
    """Mean answer for each kind of rubric, `kinds` naming those of a verdict's prompt in order; "overall" is one more.

    Missing answers are in no mean. For the log.
    """
    found: dict[str, list[float]] = defaultdict(list)
    for verdict, names in zip(verdicts, kinds, strict=True):
        if verdict.missing:
            continue
        for name, value in zip((*names, "overall"), (*verdict.answers, verdict.overall), strict=True):
            if value is not None:
                found[name].append(value)
    return {name: sum(values) / len(values) for name, values in sorted(found.items())}


@dataclass(frozen=True)
class Spread:
    """How the rewards of an epoch lie: for the log, and the best sign of a policy that has nothing left to learn."""

    mean: float  # of all rewards that count; nan without one
    std: float  # of all of them, before the floor
    within: float  # mean standard deviation inside a group
    flat: int  # groups whose pictures all have the same reward
    short: int  # groups with too few rewards, which do not count
    missing: int  # pictures without a reward
    clipped: float  # share of the counted pictures whose advantage was cut


@dataclass(frozen=True)
class Advantages:
    """Advantages of an epoch and which of its pictures are worth a training pass."""

    A_GK: Tensor  # float32, in standard deviations, within +-clip; 0 where nothing is known
    counted_GK: Tensor  # bool: has a reward and is in a group that counts
    flat_G: Tensor  # bool: a group without spread, whose pictures have advantage 0 and teach only the KL
    spread: Spread


def advantages(
    R_GK: Tensor, missing_GK: Tensor, *, floor: float = 0.0, clip: float = 5.0, least_valid: float = 0.5
) -> Advantages:
    """A = clip( (R - mean of its group) / max(std of the epoch + 1e-4, floor), +-clip ).

    `R_GK` may hold anything where `missing_GK` (bool) is set: those are in no mean and get 0. A group in which fewer
    than `least_valid` of the pictures have a reward is left out whole. The standard deviation is one number for all
    groups (numpy's, by count, not count - 1), over every reward that counts and not over the groups' residuals, as in
    DiffusionNFT's code; `floor` keeps a nearly perfect policy from reading the judge's noise. All ranks' groups must be
    in `R_GK`. ValueError for a reward that is not finite.
    """
    known = ~missing_GK
    if not torch.isfinite(R_GK[known]).all():
        raise ValueError("a reward is not a finite number")
    enough_G = (known.sum(1) >= least_valid * known.shape[1]) & known.any(1)
    counted = known & enough_G[:, None]
    R = torch.where(counted, R_GK.double(), 0.0)
    of_group = counted.sum(1, keepdim=True).clamp(min=1)
    residual = torch.where(counted, R - R.sum(1, keepdim=True) / of_group, 0.0)
    rewards = R[counted]
    std = float(rewards.std(correction=0)) if len(rewards) else 0.0
    scaled = residual / max(std + 1e-4, floor)
    within_G = (residual.square().sum(1) / of_group[:, 0]).sqrt()
    flat_G = enough_G & (residual.abs().amax(1) < 1e-9)
    spread = Spread(
        mean=float(rewards.mean()),
        std=std,
        within=float(within_G[enough_G].mean()),
        flat=int(flat_G.sum()),
        short=int((~enough_G).sum()),
        missing=int(missing_GK.sum()),
        clipped=float((scaled[counted].abs() > clip).double().mean()),
    )
    return Advantages(scaled.clamp(-clip, clip).float(), counted, flat_G, spread)
