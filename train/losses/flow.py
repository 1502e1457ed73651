"""Flow matching: times, path, target and loss. Pure functions (Lens paper, section 2.3)."""

from __future__ import annotations

import torch
from torch import Tensor


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
