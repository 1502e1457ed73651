"""Schedule, guidance and samplers: pure functions over data. The model is any callable (x, t) -> v.

Convention: sigma = t in [0, 1], 1 is noise; x_t = (1 - t) x0 + t eps; the velocity is eps - x0.

Light ring: a record is written and read with the table of samplers, so torch comes with the first schedule.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from backend.types import Sampler

if TYPE_CHECKING:
    from torch import Tensor

Velocity = Callable[["Tensor", float], "Tensor"]


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
    import torch

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
    return combined * (wanted / got.clamp(min=1e-12)).where(got > 0, 1.0)


def euler(velocity: Velocity, x: Tensor, sigmas: Sequence[float]) -> Iterator[Tensor]:
    """Go straight along the velocity: first order. Yields x after every step."""
    for sigma, following in pairwise(sigmas):
        x = x + (following - sigma) * velocity(x, sigma).float()
        yield x


def dpmpp_2m(velocity: Velocity, x: Tensor, sigmas: Sequence[float]) -> Iterator[Tensor]:
    """Extrapolate x0 from the step before: DPM-Solver++(2M) (arXiv 2211.01095, algorithm 2). Yields x after every step.

    In lambda = log((1 - sigma) / sigma), with h the step to come and h' the one before, the data prediction
    x0 = x - sigma v is taken to move on as it did: x0 + h / (2 h') (x0 - x0'). For this path the solver's own update is
    then Euler's step along the velocity towards that x0. First order, so Euler's to the last bit: the first step; the
    second where sigma begins at 1, as h' is infinite; the last, to sigma = 0, where h is.
    """
    before, earlier = math.inf, None
    for sigma, following in pairwise(sigmas):
        v = velocity(x, sigma).float()
        x0 = x - sigma * v
        ahead = _log_ratio(following) - _log_ratio(sigma)
        weight = ahead / (2.0 * before) if math.isfinite(ahead) else 0.0
        if earlier is not None and weight:
            v = v - weight / sigma * (x0 - earlier)
        x = x + (following - sigma) * v
        before, earlier = ahead, x0
        yield x


def _log_ratio(sigma: float) -> float:
    """lambda, the log of signal to noise: -inf at 1, which is noise alone, +inf at 0."""
    if sigma >= 1.0:
        return -math.inf
    return math.log((1.0 - sigma) / sigma) if sigma > 0.0 else math.inf


@dataclass(frozen=True)
class Solver:
    """One row of the samplers."""

    name: str  # as a picture's record and other tools write it
    steps: Callable[[Velocity, Tensor, Sequence[float]], Iterator[Tensor]]  # yields x (float32) after every step


SAMPLERS = {
    Sampler.euler:    Solver("FlowMatchEuler", euler),
    Sampler.dpmpp_2m: Solver("DPM++ 2M", dpmpp_2m),
}  # fmt: skip


def denoise(
    velocity: Velocity,
    x: Tensor,
    sigmas: Sequence[float],
    on_step: Callable[[int, Tensor], None] | None = None,
    sampler: Sampler = Sampler.euler,
) -> Tensor:
    """x along `sigmas`, in float32. `on_step(i, x)` after step i (0-based) may raise to stop."""
    x = x.float()
    steps = SAMPLERS[sampler].steps(velocity, x, sigmas)
    for i, x in enumerate(steps):
        if on_step is not None:
            on_step(i, x)
    return x
