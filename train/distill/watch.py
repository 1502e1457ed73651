"""Monitors of collapse: what the student draws of held-out prompts, held against the teacher's pictures of the same.

Public runs of distribution matching collapse early, within 400 to 1,000 student steps, into dark, grey or
over-saturated pictures, while every loss still looks well. So the pictures themselves are measured, in latents, and the
rules below say what collapsed.

Legend: P prompts, K pictures of each, N image tokens, C packed channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from train.distill.config import Collapse


@dataclass(frozen=True)
class Rule:
    """One way to collapse: a number that must stay within limits."""

    number: str
    limits: Callable[[Collapse], tuple[float, float]]
    low: str  # what a number below the limits means
    high: str


RULES = (
    Rule("spread", lambda c: c.spread, "the pictures went flat and grey", "the pictures are over-saturated"),
    Rule("shift", lambda c: (0.0, c.shift), "", "the pictures went dark, bright or tinted as a whole"),
    Rule("saturation", lambda c: (0.0, c.saturation), "", "the pictures burn out: latents run to their extremes"),
    Rule("norm", lambda c: c.norm, "the pictures lost their contents", "the latents grow without bound"),
    Rule("diversity", lambda c: (c.diversity, math.inf), "all pictures of a prompt became one", ""),
    Rule("fake_ratio", lambda c: (0.0, c.fake_loss), "", "the fake model does not follow the student any more"),
)


def compared(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> dict[str, float]:
    """Numbers of the student's latents beside the teacher's: a (K, N, C) of each prompt, from the same noise.

    spread, norm, diversity: ratios to the teacher's. shift: root mean square over channels of the difference of their
    means, in standard deviations of the teacher's channels. saturation: share of elements beyond what 99.9 % of the
    teacher's stay within. distance: mean squared difference to the teacher's picture from the same noise.
    """
    ours, theirs = (torch.cat([x.flatten(0, 1).double().cpu() for x in rows]) for rows in (student, teacher))
    std = theirs.std(0).clamp(min=1e-6)
    limit = float(theirs.abs().flatten().kthvalue(max(1, int(0.999 * theirs.numel())))[0])
    pairs = zip(student, teacher, strict=True)
    numbers = {
        "x0_mean": float(ours.mean()),
        "x0_std": float(ours.std()),
        "spread": float((ours.std(0) / std).mean()),
        "shift": float(((ours.mean(0) - theirs.mean(0)) / std).square().mean().sqrt()),
        "saturation": float((ours.abs() > limit).double().mean()),
        "norm": float(ours.norm() / theirs.norm().clamp(min=1e-12)),
        "distance": sum(float((a.cpu().double() - b.cpu().double()).square().mean()) for a, b in pairs) / len(student),
    }
    if all(len(rows) > 1 for rows in student):
        numbers["diversity"] = apart(student) / max(apart(teacher), 1e-12)
    return numbers


def apart(rows: Sequence[Tensor]) -> float:
    """Mean over prompts of the mean distance of two pictures: root mean square over their elements."""
    each: list[float] = []
    for x0_KNC in rows:
        flat = x0_KNC.cpu().flatten(1).double()
        each.append(float(torch.pdist(flat).mean()) / flat.shape[1] ** 0.5)
    return sum(each) / len(each)


def collapsed(numbers: Mapping[str, float], limits: Collapse) -> str | None:
    """What collapsed, with the numbers, for a person; None: nothing."""
    found: list[str] = []
    for rule in RULES:
        value = numbers.get(rule.number)
        if value is None:
            continue
        low, high = rule.limits(limits)
        if math.isnan(value) or value < low or value > high:
            meant = rule.low if value < low else rule.high
            allowed = f"at least {low:g}" if high == math.inf else f"{low:g} to {high:g}"
            found.append(f"{meant} ({rule.number} {value:.3g}, {allowed} is usual)")
    return "; ".join(found) or None
