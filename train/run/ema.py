"""Exponential moving average of weights, with a warm-up so that early averages forget the start quickly."""

from __future__ import annotations

import contextlib
from collections.abc import Generator

import torch
from torch import Tensor, nn


class EMA:
    """Float32 average of what is trained of a model; decay after n updates is min(decay, (1 + n) / (10 + n)).

    `own` False: `model` is a second network that holds the average itself, and is shown as it is.
    """

    def __init__(self, model: nn.Module, decay: float, *, own: bool = True) -> None:
        self.decay, self.updates = decay, 0
        self.shadow: dict[str, Tensor] = {
            n: p.detach().float().clone() if own else p.detach()
            for n, p in model.named_parameters()
            if p.requires_grad or not own
        }

    @torch.no_grad()
    def begin(self, model: nn.Module) -> None:
        """Take the weights as they are for the first average."""
        for name, p in model.named_parameters():
            if name in self.shadow:
                self.shadow[name].copy_(p.detach())

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, p in model.named_parameters():
            if name in self.shadow:
                self.shadow[name].lerp_(p.detach().float(), 1 - decay)

    @contextlib.contextmanager
    def shown(self, model: nn.Module) -> Generator[None]:
        """`model`, the one that is trained, has the averaged weights meanwhile. Nothing is copied."""
        self._exchange(model)
        try:
            yield
        finally:
            self._exchange(model)

    def _exchange(self, model: nn.Module) -> None:
        for name, p in model.named_parameters():
            if name in self.shadow:
                p.data, self.shadow[name] = self.shadow[name], p.data
