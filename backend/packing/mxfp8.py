"""MXFP8 as ComfyUI stores it: E4M3 codes with a power of two for every 32 inputs. Legend: O outputs, I inputs."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from backend.errors import CheckpointError, UsageError
from backend.packing import block_scaled, comfyui
from backend.packing.block_scaled import MXFP8_BLOCK
from backend.packing.linears import PackedLinear
from backend.packing.storage import PackedWeight, Read, StoredTensors, TensorGroup, TensorSpec, finite


class Mxfp8Linear(PackedLinear):
    """F8-E4M3 (O, I) with E8M0 scales per 32 inputs, in cuBLAS's swizzled order."""

    scales: Tensor

    def __init__(self, packed_OI: Tensor, scales: Tensor) -> None:
        super().__init__("mxfp8", (packed_OI.shape[0], packed_OI.shape[1]), packed_OI)
        self.register_buffer("scales", scales)

    def decoded(self, dtype: torch.dtype) -> Tensor:
        return block_scaled.mxfp8_linear(self.packed, self.scales, dtype)


def find(files: StoredTensors, stored: str) -> PackedWeight | None:
    """8-bit floats with block scales. Raises CheckpointError for any others: whoever asks has tried plain scales."""
    scale = comfyui.fp8_scale(files, stored)
    if scale is None:
        return None
    shape = files.shape(stored)
    if (
        files.kind(stored) != "F8_E4M3"
        or files.kind(scale) not in ("U8", "F8_E8M0")
        or len(shape) != 2
        or shape[1] % MXFP8_BLOCK
        or math.prod(files.shape(scale)) != block_scaled.padded(shape[0], shape[1] // MXFP8_BLOCK)
    ):
        raise CheckpointError(
            f"{files.origin}: {stored!r} {list(shape)} ({files.kind(stored)}) with scales "
            f"{list(files.shape(scale))} ({files.kind(scale)}) is no MXFP8 linear"
        )
    return PackedWeight(
        (shape[0], shape[1]), lambda: Mxfp8Linear(files.raw(stored), files.raw(scale).reshape(-1).view(torch.uint8))
    )


def item(name: str, shape: tuple[int, int], read: Read) -> TensorGroup:
    """The codes, the swizzled scales and ComfyUI's marker. Raises UsageError."""
    outputs, inputs = shape
    if inputs % MXFP8_BLOCK:
        raise UsageError(f"{name} has {inputs} inputs, no multiple of {MXFP8_BLOCK}: no MXFP8")
    stem = name.removesuffix(".weight")
    marker, about = comfyui.marker(stem, "mxfp8")
    rows, columns = -(-outputs // 128) * 128, -(-inputs // MXFP8_BLOCK // 4) * 4

    def make() -> list[Tensor]:
        codes, scales = block_scaled.quantise_mxfp8(finite(read, name))
        return [codes, block_scaled.swizzle(scales), about]

    specs = (
        TensorSpec(name, torch.float8_e4m3fn, shape),
        TensorSpec(f"{stem}.weight_scale", torch.uint8, (rows, columns)),
        marker,
    )
    return TensorGroup(specs, make)
