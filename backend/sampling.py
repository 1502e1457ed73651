"""Schedule, Euler steps and guidance: pure functions over data. The model is any callable (x, t) -> v.

Convention: sigma = t in [0, 1], 1 is noise; x_t = (1 - t) x0 + t eps; the velocity is eps - x0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

Velocity = Callable[[Tensor, float], Tensor]


def empirical_mu(tokens: int, steps: int) -> float:
    """Shift of the schedule for `tokens` image tokens and `steps` steps (FLUX.2's published empirical formula).

    Above 4300 tokens a line in the tokens; below, linear in the steps between two such lines at 10 and 200 steps.
    """
    at_200 = 0.00016927 * tokens + 0.45666666
    if tokens > 4300:
        return at_200
    at_10 = 8.73809524e-05 * tokens + 1.89833333
    slope = (at_200 - at_10) / 190.0
    return at_200 + slope * (steps - 200.0)


def schedule(tokens: int, steps: int) -> tuple[float, ...]:
    """steps + 1 sigmas from 1 to 0: linspace(1, 1/steps) shifted by e^mu / (e^mu + 1/sigma - 1), then 0."""
    if steps < 1:
        raise ValueError(f"a schedule needs at least one step, not {steps}")
    shift = math.exp(empirical_mu(tokens, steps))
    # float32, as the reference's grid; then exact arithmetic in Python floats.
    base = torch.linspace(1.0, 1.0 / steps, steps, dtype=torch.float32).tolist()
    # In brackets, so that the first sigma is 1 to the last bit.
    return (*(shift / (shift + (1.0 / sigma - 1.0)) for sigma in base), 0.0)


def guide(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance, rescaled per token to the norm of the conditional velocity; float32.

    comb = u + scale (c - u); comb * |c| / |comb| over the channels (last axis).
    """
    c, u = conditional.float(), unconditional.float()
    combined = u + scale * (c - u)
    wanted, got = c.norm(dim=-1, keepdim=True), combined.norm(dim=-1, keepdim=True)
    factor = torch.where(got > 0, wanted / got.clamp(min=1e-12), torch.ones_like(got))
    return combined * factor


def denoise(
    velocity: Velocity,
    x: Tensor,
    sigmas: Sequence[float],
    on_step: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Euler steps along `sigmas`; x is kept in float32. `on_step(i, x)` after step i (0-based) may raise to stop."""
    x = x.float()
    for i, (sigma, following) in enumerate(pairwise(sigmas)):
        x = x + (following - sigma) * velocity(x, sigma).float()
        if on_step is not None:
            on_step(i, x)
    return x
