"""Three policies in one network: current, old and reference are views of one backbone with LoRA factors.

The network as it stands is the current policy. `old` has other factors for a while, `reference` has none; nothing is
copied. Neither may be entered between a forward pass of the current policy and its backward pass.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Generator

import torch
from torch import Tensor, nn

from train.lora.adapters import adapters
from train.losses import nft


class Views:
    """A network with adapters, and the old policy's factors beside it."""

    def __init__(self, network: nn.Module) -> None:
        """The old policy begins as the current one."""
        named = dict(adapters(network))
        self._adapters = list(named.values())
        self._current = {
            f"{name}.{role}": factor
            for name, adapter in named.items()
            for role, factor in (("down_RI", adapter.down_RI), ("up_OR", adapter.up_OR))
        }
        self._old = {name: factor.detach().clone() for name, factor in self._current.items()}

    @contextlib.contextmanager
    def old(self) -> Generator[None]:
        """The network is the old policy meanwhile, without gradients."""
        self._exchange()
        try:
            with torch.no_grad():
                yield
        finally:
            self._exchange()

    @contextlib.contextmanager
    def reference(self) -> Generator[None]:
        """The network is as it was before the training meanwhile, without gradients."""
        for adapter in self._adapters:
            adapter.active = False
        try:
            with torch.no_grad():
                yield
        finally:
            for adapter in self._adapters:
                adapter.active = True

    def follow(self, decay: float) -> None:
        """Let the old policy go after the current one: old = decay old + (1 - decay) current."""
        nft.follow([*self._old.values()], [factor.detach() for factor in self._current.values()], decay)

    @property
    def same(self) -> bool:
        """Whether current and old are the same policy, bit for bit."""
        return all(torch.equal(factor, self._old[name]) for name, factor in self._current.items())

    def tensors(self) -> dict[str, Tensor]:
        """The old policy, as a checkpoint names it; to be written and to be filled."""
        return {f"old.{name}": factor for name, factor in self._old.items()}

    @property
    def old_sha256(self) -> str:
        """Of the old policy's numbers: what pictures were drawn by."""
        digest = hashlib.sha256()
        for name, factor in sorted(self._old.items()):
            digest.update(name.encode())
            digest.update(factor.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def _exchange(self) -> None:
        for name, factor in self._current.items():
            factor.data, self._old[name] = self._old[name], factor.data
