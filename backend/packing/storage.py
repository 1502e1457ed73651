"""How a packed weight lies in a file: what a packing asks of an open file, and what it gives to be written.

Knows no file format: `backend.checkpoints.tensor_files` opens files, `backend.checkpoints.write_safetensors` writes
them. Shapes of weights are those of the decoded one, (outputs, inputs).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from backend.errors import CheckpointError
from backend.packing.linears import PackedLinear

Read = Callable[[str], Tensor]  # a public tensor in float32


class StoredTensors(Protocol):
    """What `backend.checkpoints.tensor_files.TensorFiles` is to a packing."""

    origin: str  # for messages

    def __contains__(self, name: str) -> bool: ...
    def kind(self, name: str) -> str:
        """The stored dtype by safetensors' name, or "ggml N" for a packed type of a GGUF."""
        ...

    def shape(self, name: str) -> tuple[int, ...]: ...
    def raw(self, name: str) -> Tensor:
        """The stored elements of a tensor that is no packed GGUF type; usually a view of the file."""
        ...

    def packed_rows(self, name: str) -> Tensor:
        """The stored bytes of a packed GGUF weight, U8 (rows, bytes of a row): a view of the file."""
        ...


@dataclass(frozen=True)
class PackedWeight:
    """A packed weight of a file: its decoded shape, and how to make a linear over its bytes, which stay where they are.
    Nothing is read before a linear is made."""

    shape: tuple[int, int]
    make: Callable[[], PackedLinear]


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of a file to be written, before its values are known."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class TensorGroup:
    """Tensors that are made together; `make` gives them in the order of `specs`."""

    specs: tuple[TensorSpec, ...]
    make: Callable[[], Sequence[Tensor]]


class Code(Protocol):
    """What a packing's module may have; its row in `backend.packing.schemes` promises which of these it has."""

    DIFFUSERS: Mapping[str, Any]  # what diffusers' quantization_config says of it (container diffusers)

    def pack(self, weight_OI: Tensor) -> PackedLinear:
        """A weight in this packing, without a bias, on the weight's device (`quant`). Raises UsageError."""
        ...

    def take(self, packed: PackedLinear) -> PackedLinear | None:
        """The linear of another packing (`takes`) in this one, its codes as they are; None: they do not serve."""
        ...

    def find(self, files: StoredTensors, stored: str) -> PackedWeight | None:
        """The weight that a stored tensor holds in this packing (`in_files`); None: it is something else.

        Raises CheckpointError for one whose parts do not fit together.
        """
        ...

    def item(self, name: str, shape: tuple[int, int], read: Read) -> TensorGroup:
        """The tensors that a weight is written as (containers comfyui and diffusers). Raises UsageError for a shape
        that the packing does not allow; nothing is read yet."""
        ...


def finite(read: Read, name: str) -> Tensor:
    """A tensor to be written. Raises CheckpointError where it is not finite."""
    tensor = read(name)
    if not bool(torch.isfinite(tensor).all()):
        raise CheckpointError(f"not written: {name!r} has values that are not finite")
    return tensor
