"""8-bit floats, E4M3: weights as ComfyUI's scaled files hold them, and products of weights and activations in fp8.

Legend: O outputs, I inputs, T tokens of all pictures.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from backend.kernels import switches
from backend.kernels.pointwise import has_fp8_units, quantise_fp8_rows
from backend.kernels.pointwise_torch import FP8, FP8_MAX
from backend.packing import comfyui
from backend.packing.linears import PackedLinear
from backend.packing.storage import PackedWeight, Read, StoredTensors, TensorGroup, TensorSpec, finite


class ScaledFp8Linear(PackedLinear):
    """F8 (O, I) with one float32 scale, or one per output, as a file holds it; products in the network's dtype."""

    scales: Tensor

    def __init__(self, packed_OI: Tensor, scales: Tensor) -> None:
        super().__init__("fp8 weights", (packed_OI.shape[0], packed_OI.shape[1]), packed_OI)
        self.register_buffer("scales", scales.float().reshape(-1, 1))

    def decoded(self, dtype: torch.dtype) -> Tensor:
        return (self.packed.float() * self.scales).to(dtype)


class Fp8Linear(PackedLinear):
    """E4M3 times E4M3: weights scaled per output, activations per token, at every call; sums in float32.

    With fp8 units (compute capability 8.9 and up) one `scaled_mm`; elsewhere the same roundings and the
    product of the decoded factors, in float32: for proving the maths, not for speed.
    """

    scales: Tensor

    def __init__(self, packed_OI: Tensor, scales_O: Tensor) -> None:
        super().__init__("fp8", (packed_OI.shape[0], packed_OI.shape[1]), packed_OI)
        self.register_buffer("scales", scales_O.float())
        self._by_units = not switches.FP8.is_plain  # asked here: a compiler would have to trace the environment

    def decoded(self, dtype: torch.dtype) -> Tensor:
        return (self.packed.float() * self.scales[:, None]).to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        x_TI = x.reshape(-1, self.in_features)
        if self._by_units and has_fp8_units(x.device) and x.dtype == torch.bfloat16 and len(x_TI) and self._fits():
            y = self._multiply(*quantise_fp8_rows(x_TI), x.dtype)
        else:
            y = self._emulate(*quantise_fp8_rows(x_TI), x.dtype)
        return y.view(*x.shape[:-1], self.out_features)

    def _fits(self) -> bool:
        """cuBLAS wants both sides in multiples of 16; every linear of Lens has them."""
        return self.in_features % 16 == 0 and self.out_features % 16 == 0

    def _multiply(self, x_TI: Tensor, scale_T1: Tensor, dtype: torch.dtype) -> Tensor:
        # Fast accumulation keeps fewer bits between the partial sums (about 14) and is still far below the 3 bits of
        # the factors; without it Hopper's tensor cores run fp8 at little more than their bfloat16 rate.
        return F.scaled_mm(
            x_TI, self.packed.t(), scale_T1, F.ScalingType.RowWise, self.scales[None], F.ScalingType.RowWise,
            bias=self.bias, output_dtype=dtype, use_fast_accum=True,
        )  # fmt: skip

    def _emulate(self, x_TI: Tensor, scale_T1: Tensor, dtype: torch.dtype) -> Tensor:
        y = (x_TI.float() @ self.packed.float().t()) * scale_T1 * self.scales
        return (y if self.bias is None else y + self.bias).to(dtype)


def pack(weight_OI: Tensor) -> Fp8Linear:
    """A weight of any dtype, rounded to E4M3."""
    packed, scales_O1 = quantise_fp8_rows(weight_OI)
    return Fp8Linear(packed, scales_O1[:, 0])


def take(packed: PackedLinear) -> Fp8Linear | None:
    """A file's E4M3 codes as they are; None: it holds E5M2, or something else."""
    if not isinstance(packed, ScaledFp8Linear) or packed.packed.dtype is not FP8:
        return None
    return Fp8Linear(packed.packed, packed.scales.expand(packed.out_features, 1)[:, 0].contiguous())


def find(files: StoredTensors, stored: str) -> PackedWeight | None:
    """8-bit floats with one float32 scale for the weight or for each output. Raises CheckpointError without a scale."""
    scale = comfyui.fp8_scale(files, stored)
    if scale is None:
        return None
    shape = files.shape(stored)
    if files.kind(scale) != "F32" or len(shape) != 2 or math.prod(files.shape(scale)) not in (1, shape[0]):
        return None
    return PackedWeight((shape[0], shape[1]), lambda: ScaledFp8Linear(files.raw(stored), files.raw(scale)))


def item(name: str, shape: tuple[int, int], read: Read) -> TensorGroup:
    """The codes and one scale for the whole weight, the only kind that ComfyUI reads beside E4M3; and its marker."""
    stem = name.removesuffix(".weight")
    marker, about = comfyui.marker(stem, "fp8")

    def make() -> list[Tensor]:
        weight = finite(read, name)
        scale = (weight.abs().amax() / FP8_MAX).clamp(min=torch.finfo(torch.float32).tiny)
        return [(weight / scale).clamp(-FP8_MAX, FP8_MAX).to(FP8), scale, about]

    return TensorGroup(
        (TensorSpec(name, FP8, shape), TensorSpec(f"{stem}.weight_scale", torch.float32, ()), marker), make
    )
