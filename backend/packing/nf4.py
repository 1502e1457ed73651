"""bitsandbytes' NF4: 16 quantiles of a normal distribution, a float32 scale per 64 values. Legend: O outputs, I inputs.

Scales that are quantised themselves ("double quantisation") are decoded when a linear is made.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from backend.errors import CheckpointError, UsageError
from backend.packing.bitsandbytes import (
    NF4_BLOCK,
    NF4_STATE,
    dequantise_nf4,
    library,
    nf4_state,
    plain_scales,
    quantise_nf4,
    read_nf4_state,
)
from backend.packing.linears import PackedLinear
from backend.packing.storage import PackedWeight, Read, StoredTensors, TensorGroup, TensorSpec, finite

DIFFUSERS: dict[str, Any] = {
    "load_in_4bit": True,
    "load_in_8bit": False,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": False,
    "bnb_4bit_compute_dtype": "bfloat16",
    "bnb_4bit_quant_storage": "uint8",
}


class Nf4Linear(PackedLinear):
    """U8 (O * I / 2, 1) codes and a float32 scale per 64 values."""

    absmax: Tensor

    def __init__(self, packed: Tensor, absmax: Tensor, shape: tuple[int, int]) -> None:
        library()  # registers the operations of bitsandbytes; missing, it is said before anything runs
        super().__init__("nf4", shape, packed)
        self.register_buffer("absmax", absmax)

    def decoded(self, dtype: torch.dtype) -> Tensor:
        return dequantise_nf4(self.packed, self.absmax, (self.out_features, self.in_features), dtype)


def pack(weight_OI: Tensor) -> Nf4Linear:
    """A weight of any dtype, rounded to NF4 by bitsandbytes. Raises LensError without it."""
    return Nf4Linear(*quantise_nf4(weight_OI), (weight_OI.shape[0], weight_OI.shape[1]))


def find(files: StoredTensors, stored: str) -> PackedWeight | None:
    """Codes with bitsandbytes' description beside them. Raises CheckpointError."""
    if files.kind(stored) != "U8" or f"{stored}.{NF4_STATE}" not in files:
        return None
    raw = bytes(files.raw(f"{stored}.{NF4_STATE}").numpy().tobytes())
    shape, stated = read_nf4_state(raw, f"{files.origin}: {stored!r}")
    nested = "nested_blocksize" in stated
    beside = ("absmax", "nested_absmax", "nested_quant_map") if nested else ("absmax",)
    for name in (f"{stored}.{part}" for part in beside):
        if name not in files:
            raise CheckpointError(f"{files.origin}: tensor {name!r} is missing")
    values, scales = math.prod(shape), files.shape(f"{stored}.absmax")
    if 2 * math.prod(files.shape(stored)) != values or math.prod(scales) != -(-values // NF4_BLOCK):
        raise CheckpointError(f"{files.origin}: {stored!r} and its scales do not fit a weight of {list(shape)}")

    def make() -> PackedLinear:
        absmax = files.raw(f"{stored}.absmax")
        if nested:
            inner, table = files.raw(f"{stored}.nested_absmax"), files.raw(f"{stored}.nested_quant_map")
            absmax = plain_scales(absmax, inner, table, stated)
        return Nf4Linear(files.raw(stored).reshape(-1, 1), absmax.float().reshape(-1), shape)

    return PackedWeight(shape, make)


def item(name: str, shape: tuple[int, int], read: Read) -> TensorGroup:
    """The codes, the scales, the 16 values and bitsandbytes' description. Raises UsageError."""
    values = math.prod(shape)
    if values % 2:
        raise UsageError(f"{name} has an odd number of weights: no NF4")
    state = nf4_state(shape)
    specs = (
        TensorSpec(name, torch.uint8, (values // 2, 1)),
        TensorSpec(f"{name}.absmax", torch.float32, (-(-values // NF4_BLOCK),)),
        TensorSpec(f"{name}.quant_map", torch.float32, (16,)),
        TensorSpec(f"{name}.{NF4_STATE}", torch.uint8, (len(state),)),
    )

    def make() -> list[Tensor]:
        codes, absmax = quantise_nf4(finite(read, name))
        table = library().get_4bit_type("nf4", device="cpu")
        return [codes, absmax, table, torch.tensor(list(state), dtype=torch.uint8)]

    return TensorGroup(specs, make)
