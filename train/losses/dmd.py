"""Distribution matching distillation, decoupled. Pure functions.

Lens paper, Appendix D, "Distillation Details"; it numbers no equation, the numbers are ours. x = x_theta is the
student's clean picture, x_s = (1 - s) x + s eps its noised form at level s, x^ = x_s - s v what a velocity makes of it:

    (1) grad L_DMD = E[ (s_fake - s_real) dx / dtheta ], the difference of two scores
    (2) g_DM = x^_fake - x^_real                     = s (v_real - v_fake)             with text, no guidance
    (3) g_CA = -(guidance - 1) (x^_real - x^_none)   = s (guidance - 1) (v_real - v_none)
    (4) L_DM, L_CA = 1/2 mean (x - stop[ x - g / N ])^2
    (5) L_theta = 0.1 (L_DM + L_CA) + 0.001 L_G                                        L_G: train/losses/critic.py
    (6) L_fake = mean (v_fake(x_s, s) - (eps - x))^2
    (7) fake <- (1 - ida) fake + ida student, after each update of the student

(2) + (3) at one level is DMD's gradient with a guided teacher; apart, each has a noise level of its own (decoupled DMD,
arXiv 2511.22677). **The mean in (4) is over the elements of a picture**, as in DMD2's and SenseFlow's code: with a sum
the adversarial term of (5) would weigh 5e5 times less at 1024 x 1024. N is not printed: see `NORMALISERS`.

Names: `guidance` is the scale in CA (5.0), `ida` the share of (7) (0.03); r1_step and r1_weight belong to the critic.

Legend: B pictures, N image tokens, C packed channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from train.losses.sums import column, near, picture_mean, precise, rms


@torch.no_grad()
def matching_gradient(v_real_BNC: Tensor, v_fake_BNC: Tensor, sigma_B: Tensor) -> Tensor:
    """(B, N, C) g_DM of (2), to be descended on x. Both velocities with text, at the same x_s, unguided."""
    return column(sigma_B, v_real_BNC) * (precise(v_real_BNC) - precise(v_fake_BNC))


@torch.no_grad()
def augmentation_gradient(v_real_BNC: Tensor, v_none_BNC: Tensor, sigma_B: Tensor, guidance: float) -> Tensor:
    """(B, N, C) g_CA of (3), to be descended on x: 0 at guidance 1.

    `v_none_BNC` is the teacher's velocity without any text token, as inference has it, not of an encoded "". The plain
    difference: inference's rescaling to the norm of `v_real` is no part of the distilled gradient.
    """
    return column(sigma_B, v_real_BNC) * (guidance - 1) * (precise(v_real_BNC) - precise(v_none_BNC))


@dataclass(frozen=True)
class Normaliser:
    """N = max(mean |x - x^_real| + more, least), a number per picture."""

    least: float
    more: float


NORMALISERS: dict[str, Normaliser | None] = {
    # byliutao/cdm, for flow models and decoupled terms: near sigma = 0 x^ = x, and N must not go to 0 with it.
    "clamped": Normaliser(least=0.1, more=0.0),
    "plain": Normaliser(least=0.0, more=1e-6),  # DMD2 and NVIDIA's FastGen
    "none": None,  # N = 1: decoupled DMD's pseudo-code, where the step size absorbs it
}


@torch.no_grad()
def normaliser(kind: str, x_BNC: Tensor, x_real_BNC: Tensor) -> Tensor:
    """(B,) N of (4): `kind` of `NORMALISERS`, `x_real_BNC` the teacher's x^ with text at the term's own level."""
    rule = NORMALISERS[kind]
    if rule is None:
        return x_BNC.new_ones(len(x_BNC), dtype=precise(x_BNC).dtype)
    return (picture_mean((precise(x_BNC) - precise(x_real_BNC)).abs()) + rule.more).clamp(min=rule.least)


def proxy_losses(x_BNC: Tensor, gradient_BNC: Tensor, normaliser_B: Tensor) -> Tensor:
    """(B,) loss (4), in float32: its gradient on x is g / (N elements of a picture), both held fixed."""
    x = precise(x_BNC)
    target = (x - gradient_BNC / column(normaliser_B, x)).detach()
    return 0.5 * picture_mean((x - target).square())


def fake_losses(v_fake_BNC: Tensor, x_BNC: Tensor, eps_BNC: Tensor) -> Tensor:
    """(B,) loss (6), in float32, of the fake model's velocity at x_s; the student's `x_BNC` gets no gradient."""
    return picture_mean((precise(v_fake_BNC) - (precise(eps_BNC) - precise(x_BNC)).detach()).square())


def ida(fake: Sequence[Tensor], student: Sequence[Tensor], share: float) -> None:
    """Implicit distribution alignment (7), in place on the fake model's weights (SenseFlow, arXiv 2506.00523).

    Keep both in float32: of weights in bfloat16 3 % of a step of 5e-7 rounds to nothing. Optimiser state is untouched.
    """
    near(fake, student, share)


@dataclass(frozen=True, kw_only=True)
class Levels:
    """Where a term's noise levels lie: uniform in [low, high) before the shift, below the student's step if asked.

    The ends are cut before the shift and not after it: a clamp afterwards would pile 17 % of the levels of 1024 x 1024
    up at 0.98.
    """

    low: float = 0.02
    high: float = 0.98
    below_step: bool = False  # only cleaner than the level from which the student just took its step


# Decoupled DMD's hybrid, the best of its four (HPSv2.1 32.29, against 31.69 with CA over the whole range).
LEVELS = {
    "augmentation": Levels(below_step=True),
    "matching": Levels(),
    "fake": Levels(),
    "critic": Levels(),
}


def shift(u_B: Tensor, mu: float) -> Tensor:
    """Shift levels in [0, 1] towards noise as the schedule does: e^mu u / (e^mu u + 1 - u); exactly 0 at 0, 1 at 1."""
    moved = math.exp(mu) * u_B
    return moved / (moved + (1 - u_B))


def noise_levels(levels: Levels, uniform_B: Tensor, mu: float, step_level: float = 1.0) -> Tensor:
    """(B,) sigma of a term from `uniform_B` in [0, 1).

    `mu` is the schedule's at this shape and number of steps, `step_level` = 1 - k / steps the unshifted level from
    which the student took its step k. Decoupled DMD's author for flow models: uniform before the shift, with the
    unshifted level as the bound, then one shift for CA, DM and fake alike (Tongyi-MAI/Z-Image, issues 56 and 78).
    """
    high = min(levels.high, step_level) if levels.below_step else levels.high
    if not 0 <= levels.low < high <= 1:
        raise ValueError(f"there is no level between {levels.low} and {high}")
    return shift(levels.low + (high - levels.low) * uniform_B, mu)


@torch.no_grad()
def relative_gap(v_real_BNC: Tensor, v_fake_BNC: Tensor) -> Tensor:
    """(B,) |v_real - v_fake| / |v_real|, for the log: where it grows the fake model no longer follows the student."""
    real = precise(v_real_BNC)
    return rms(real - precise(v_fake_BNC)) / rms(real)
