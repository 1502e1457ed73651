"""Flow matching: times, path, target and loss. Pure functions (Lens paper, section 2.3)."""

from __future__ import annotations

import torch
from torch import Tensor

from backend.params import DiTParams
from train.run.distributed import like


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


def init_weights(model: torch.nn.Module, params: DiTParams, generator: torch.Generator) -> None:
    """Xavier-uniform matrices, zero biases; zero modulation and output, so that every block starts as the identity.

    The paper does not state its initialisation; this is DiT's (arXiv 2212.09748, adaLN-Zero). A sharded matrix is drawn
    whole, so that the weights do not depend on the number of ranks.
    """
    for name, p in model.named_parameters():
        if "norm" in name and p.dim() == 1 and not name.startswith("norm_out"):
            p.data.fill_(1.0)
        elif p.dim() < 2 or "_mod." in name or name.startswith(("norm_out", "proj_out")):
            p.data.zero_()
        else:
            bound = (6.0 / (p.shape[0] + p.shape[1])) ** 0.5
            whole = torch.empty(p.shape, device="cpu").uniform_(-bound, bound, generator=generator)
            p.data.copy_(like(whole, p.data))
