"""int8 weights with one scale an output: bitsandbytes' LLM.int8 format, without its int8 activations.

Legend: O outputs, I inputs.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from backend.errors import CheckpointError
from backend.packing.linears import PackedLinear
from backend.packing.storage import PackedWeight, Read, StoredTensors, TensorGroup, TensorSpec, finite

INT8_MAX = 127
DIFFUSERS: dict[str, Any] = {"load_in_4bit": False, "load_in_8bit": True, "llm_int8_threshold": 6.0}


class Int8Linear(PackedLinear):
    """int8 (O, I), one scale per output."""

    scales: Tensor

    def __init__(self, packed_OI: Tensor, absmax_O: Tensor) -> None:
        """`absmax`: largest magnitude of each row, which the code 127 stands for (bitsandbytes' SCB)."""
        super().__init__("int8", (packed_OI.shape[0], packed_OI.shape[1]), packed_OI)
        self.register_buffer("scales", absmax_O.float())

    def decoded(self, dtype: torch.dtype) -> Tensor:
        # in this order, and times 1/127 instead of divided by 127: the same float32 products as bitsandbytes'
        return (self.packed.float() * self.scales[:, None] * (1 / INT8_MAX)).to(dtype)


def pack(weight_OI: Tensor) -> Int8Linear:
    """A weight of any dtype, rounded to int8."""
    return Int8Linear(*quantise_int8(weight_OI))


def quantise_int8(weight_OI: Tensor) -> tuple[Tensor, Tensor]:
    """(O, I) -> int8 (O, I) and the largest magnitude of each row, float32 (O), by bitsandbytes' formula."""
    wide = weight_OI.float()
    absmax = wide.abs().amax(dim=-1)
    factor = torch.where(absmax > 0, INT8_MAX / absmax, 0.0)
    return torch.round(wide * factor[:, None]).to(torch.int8), absmax


def find(files: StoredTensors, stored: str) -> PackedWeight | None:
    """Row-major codes, with the largest magnitude of each row in SCB. Raises CheckpointError."""
    scale = f"{stored.removesuffix('.weight')}.SCB"
    if files.kind(stored) != "I8" or scale not in files:
        return None
    shape = files.shape(stored)
    if len(shape) != 2 or files.kind(scale) != "F32" or math.prod(files.shape(scale)) != shape[0]:
        raise CheckpointError(
            f"{files.origin}: {stored!r} {list(shape)} with scales {list(files.shape(scale))} "
            f"({files.kind(scale)}) is no int8 linear"
        )
    return PackedWeight((shape[0], shape[1]), lambda: Int8Linear(files.raw(stored), files.raw(scale).reshape(-1)))


def item(name: str, shape: tuple[int, int], read: Read) -> TensorGroup:
    """The codes, the rows' scales, and bitsandbytes' word that the codes lie row by row."""
    stem = name.removesuffix(".weight")
    specs = (
        TensorSpec(name, torch.int8, shape),
        TensorSpec(f"{stem}.SCB", torch.float32, shape[:1]),
        TensorSpec(f"{stem}.weight_format", torch.uint8, ()),
    )
    row_major = torch.tensor(0, dtype=torch.uint8)
    return TensorGroup(specs, lambda: [*quantise_int8(finite(read, name)), row_major])
