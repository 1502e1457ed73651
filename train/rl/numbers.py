"""What an epoch and an evaluation say of themselves: numbers by name, for the log. Pure functions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from train.losses import rewards
from train.rl.rollout import PromptGroup
from train.rl.update import StepTaken


def of_steps(steps: Sequence[StepTaken], old_decay: float, taken: int) -> dict[str, float]:
    """Means over an epoch's pairs. Without a pair there is no loss, and nothing was learned."""
    pairs = sum(step.pairs for step in steps)

    def mean(name: str, of: Sequence[StepTaken]) -> float:
        total = sum(step.pairs for step in of)
        return sum(getattr(step, name) * step.pairs for step in of) / total if total else 0.0

    off_policy = [step for step in steps if not step.same]
    return {
        "loss": mean("policy", steps),
        "kl": mean("kl", steps),
        "deviation": mean("deviation", off_policy),  # of the steps in which the two may differ
        "on_policy_steps": float(len(steps) - len(off_policy)),
        "norm_ratio": mean("norm_ratio", steps),
        "norm_excess": mean("hinge", steps),
        "grad_norm": mean("grad_norm", steps),
        "pairs": float(pairs),
        "old_decay": old_decay,
        "gradient_steps": float(taken),
    }


def of_rewards(
    groups: Sequence[PromptGroup],
    kinds: Sequence[Sequence[str]],
    verdicts: Sequence[Sequence[rewards.Verdict]],
    given: Sequence[Sequence[float | None]],
    spread: rewards.Spread,
) -> dict[str, float]:
    """Rewards of an epoch by category and by kind of rubric. `kinds`: of the answers to each group's question."""
    each = [verdict for row in verdicts for verdict in row]
    by_category: dict[str, list[float]] = defaultdict(list)
    for group, row in zip(groups, given, strict=True):
        by_category[group.prompt.category] += [value for value in row if value is not None]
    by_guidance: dict[float, list[float]] = defaultdict(list)
    for group, row in zip(groups, given, strict=True):
        by_guidance[group.guidance] += [value for value in row if value is not None]
    several = {f"reward_at_{g:g}": sum(row) / len(row) for g, row in sorted(by_guidance.items()) if row}
    means = {name: sum(row) / len(row) for name, row in sorted(by_category.items()) if row}
    return {
        "reward": spread.mean,
        **(several if len(by_guidance) > 1 else {}),
        "reward_std": spread.std,
        "reward_within": spread.within,
        "flat_groups": float(spread.flat),
        "short_groups": float(spread.short),
        "missing": float(spread.missing),
        "clipped": spread.clipped,
        **{f"missing_{why}": float(count) for why, count in sorted(rewards.tally(each).missing.items())},
        **by_kind(kinds, verdicts),
        **{f"category_{name.replace(' ', '_')}": value for name, value in means.items()},
    }


def by_kind(kinds: Sequence[Sequence[str]], verdicts: Sequence[Sequence[rewards.Verdict]]) -> dict[str, float]:
    """Mean answer to each kind of rubric."""
    asked = [names for names, row in zip(kinds, verdicts, strict=True) for _ in row]
    found = rewards.means_by_kind([verdict for row in verdicts for verdict in row], asked)
    return {f"rubric_{name.replace(' ', '_')}": value for name, value in found.items()}


def spread(x0_KNC: Tensor) -> float:
    """Mean distance between two of a prompt's latents: root mean square over their elements. K is at least 2."""
    flat = x0_KNC.flatten(1).double()
    return float(torch.pdist(flat).mean()) / flat.shape[1] ** 0.5


def look(picture: Image.Image) -> tuple[float, float]:
    """(sharpness, saturation): mean step of the brightness between neighbours, mean of max - min of a pixel's colours;
    white is 1."""
    pixels = np.asarray(picture.convert("RGB"), dtype=np.float64) / 255
    grey = pixels.mean(2)
    steps = np.abs(np.diff(grey, axis=0)).mean() + np.abs(np.diff(grey, axis=1)).mean()
    return float(steps) / 2, float((pixels.max(2) - pixels.min(2)).mean())
