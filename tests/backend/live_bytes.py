"""Counts the bytes of tensors that are alive while something runs: what a device's allocator would have to hold.

Sees every result of a torch operation, not the scratch inside one. Tensors that were there before are not counted.
Two tensors on one storage count once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class LiveBytes(TorchDispatchMode):
    """A context manager; `peak` is the largest sum seen after any operation inside it."""

    def __init__(self, *before: torch.Tensor) -> None:
        """`before`: tensors that exist already and are not to be counted, such as weights and inputs."""
        super().__init__()
        self.peak = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in before}
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        # An address may be reused once its storage is gone, so the dead are counted out first.
        self._live = {key: entry for key, entry in self._live.items() if not entry[0].expired()}
        for value in tree_iter(result):
            if isinstance(value, torch.Tensor):
                storage = value.untyped_storage()
                if storage._cdata not in self._known:
                    self._live.setdefault(storage._cdata, (StorageWeakRef(storage), storage.nbytes()))
        self.peak = max(self.peak, self.now)
        return result

    @property
    def now(self) -> int:
        return sum(size for _, size in self._live.values())
