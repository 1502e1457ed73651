"""Exponential moving average of weights, with a warm-up so that early averages forget the start quickly."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class EMA:
    """Float32 average of a model's parameters; decay after n updates is min(decay, (1 + n) / (10 + n)).

    `own` False: `model` is a second network that holds the average itself, and is shown as it is.
    """

    def __init__(self, model: nn.Module, decay: float, *, own: bool = True) -> None:
        self.decay, self.updates = decay, 0
        self.shadow: dict[str, Tensor] = {
            n: p.detach().float().clone() if own else p.detach() for n, p in model.named_parameters()
        }

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, p in model.named_parameters():
            self.shadow[name].lerp_(p.detach().float(), 1 - decay)

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Give `model` the averaged weights."""
        for name, p in model.named_parameters():
            p.copy_(self.shadow[name])
