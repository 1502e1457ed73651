"""Flow matching: times, path, target and loss. Pure functions (Lens paper, section 2.3).

    x_t = (1 - t) x0 + t eps,   v = eps - x0,   L = E || v_theta(x_t, c, t) - v ||^2

which the paper calls "the flow-matching MSE objective" and does not number; t = sigmoid(z), z ~ N(mu(n), 1).

Legend: B pictures, N image tokens, C packed channels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F


def training_mu(tokens: int) -> float:
    """Mean of the logit of t for pictures of `tokens` tokens: 1.0 at 256 up to 1.3 at 4096, linear beyond."""
    return 1.0 + 0.3 * (tokens - 256) / (4096 - 256)


def sample_times(count: int, mu: float, generator: torch.Generator, std: float = 1.0) -> Tensor:
    """(count,) t = sigmoid(z), z ~ N(mu, std^2): a positive mu favours noise (t = 1)."""
    return torch.sigmoid(mu + std * torch.randn(count, generator=generator))


def interpolate(x0: Tensor, eps: Tensor, t_B: Tensor) -> Tensor:
    """x_t = (1 - t) x0 + t eps."""
    t = t_B.view(-1, *[1] * (x0.dim() - 1))
    return (1 - t) * x0 + t * eps


def velocity_target(x0: Tensor, eps: Tensor) -> Tensor:
    """v = eps - x0."""
    return eps - x0


def losses(
    velocity: Callable[[Tensor, Tensor], Tensor],
    x0_BNC: Tensor,
    eps_BNC: Tensor,
    t_B: Tensor,
    channel_weights_C: Tensor | None = None,
) -> Tensor:
    """(B,) mean squared error of each picture's velocity, in float32. `velocity(x_t, t)` is the network's answer.

    `channel_weights_C`: of mean 1, of the squared errors; None: every channel the same, as in the paper.
    """
    v = velocity(interpolate(x0_BNC, eps_BNC, t_B), t_B)
    errors = F.mse_loss(v.float(), velocity_target(x0_BNC, eps_BNC), reduction="none")
    return (errors if channel_weights_C is None else errors * channel_weights_C).mean((1, 2))
