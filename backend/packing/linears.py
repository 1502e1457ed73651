"""Linear layers whose weight stays packed: y = x W^T + b, with W decoded for each use and dropped again.

A layer's memory is its file's; the price is one decoding a call, which pays off beside some hundred tokens. Decoding
rounds nothing that decoding at load would not, so a network of these gives the same numbers, to the last bit, as one
whose weights were decoded while it was loaded. Only `Fp8Linear` also rounds what goes in: it multiplies in fp8.

Activations stay in the network's dtype: those of Lens reach 3e7, so nothing here passes through float16 or int8.
Buffers, not parameters: they travel with `.to(device)` and in the state dict, and nobody trains them.
Legend: O outputs, I inputs, T tokens of all pictures.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backend.kernels.pointwise import has_fp8_units, quantise_fp8_rows
from backend.packing import block_scaled, ggml
from backend.packing.bitsandbytes import dequantise_nf4, library, quantise_nf4
from backend.packing.ggml_layout import ggml_name

INT8_MAX = 127


class PackedLinear(nn.Module):
    """What they share. `scheme` names the packing, as in `lens gen -v` and in metadata."""

    packed: Tensor
    bias: Tensor | None

    def __init__(self, scheme: str, shape: tuple[int, int], packed: Tensor) -> None:
        super().__init__()
        self.scheme = scheme
        self.out_features, self.in_features = shape
        self.register_buffer("packed", packed)
        self.register_buffer("bias", None)

    @property
    def nbytes(self) -> int:
        """Of all that is kept, the bias included."""
        return sum(buffer.nbytes for buffer in self.buffers())

    def decoded(self, dtype: torch.dtype) -> Tensor:
        """The weight (O, I) in `dtype`, on this layer's device."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.decoded(x.dtype), self.bias)

    def extra_repr(self) -> str:
        return f"{self.in_features} -> {self.out_features}, {self.scheme}, bias={self.bias is not None}"


class GgufLinear(PackedLinear):
    """Any ggml type of `ggml_types`; `packed` U8 (O, bytes of a row)."""

    def __init__(self, packed_OB: Tensor, kind: int, width: int) -> None:
        super().__init__(ggml_name(kind), (len(packed_OB), width), packed_OB)
        self.kind = kind

    def decoded(self, dtype: torch.dtype) -> Tensor:
        return ggml.dequantise(self.packed, self.kind, dtype)


class Mxfp8Linear(PackedLinear):
    """F8-E4M3 (O, I) with E8M0 scales per 32 inputs, in cuBLAS's swizzled order."""

    scales: Tensor

    def __init__(self, packed_OI: Tensor, scales: Tensor) -> None:
        super().__init__("mxfp8", (packed_OI.shape[0], packed_OI.shape[1]), packed_OI)
        self.register_buffer("scales", scales)

    def decoded(self, dtype: torch.dtype) -> Tensor:
        return block_scaled.mxfp8_linear(self.packed, self.scales, dtype)


class ScaledFp8Linear(PackedLinear):
    """F8-E4M3 (O, I) with one float32 scale, or one per output, as a file holds it; products in the network's dtype."""

    scales: Tensor

    def __init__(self, packed_OI: Tensor, scales: Tensor) -> None:
        super().__init__("fp8 weights", (packed_OI.shape[0], packed_OI.shape[1]), packed_OI)
        self.register_buffer("scales", scales.float().reshape(-1, 1))

    def decoded(self, dtype: torch.dtype) -> Tensor:
        return (self.packed.float() * self.scales).to(dtype)


class Int8Linear(PackedLinear):
    """int8 (O, I), one scale per output: bitsandbytes' weight format, without its int8 activations."""

    scales: Tensor

    def __init__(self, packed_OI: Tensor, absmax_O: Tensor) -> None:
        """`absmax`: largest magnitude of each row, which the code 127 stands for (bitsandbytes' SCB)."""
        super().__init__("int8", (packed_OI.shape[0], packed_OI.shape[1]), packed_OI)
        self.register_buffer("scales", absmax_O.float())

    @classmethod
    def of(cls, weight_OI: Tensor) -> Int8Linear:
        return cls(*quantise_int8(weight_OI))

    def decoded(self, dtype: torch.dtype) -> Tensor:
        # in this order, and times 1/127 instead of divided by 127: the same float32 products as bitsandbytes'
        return (self.packed.float() * self.scales[:, None] * (1 / INT8_MAX)).to(dtype)


class Nf4Linear(PackedLinear):
    """bitsandbytes' NF4: U8 (O * I / 2, 1) codes and a float32 scale per 64 values."""

    absmax: Tensor

    def __init__(self, packed: Tensor, absmax: Tensor, shape: tuple[int, int]) -> None:
        library()  # registers the operations of bitsandbytes; missing, it is said before anything runs
        super().__init__("nf4", shape, packed)
        self.register_buffer("absmax", absmax)

    @classmethod
    def of(cls, weight_OI: Tensor) -> Nf4Linear:
        return cls(*quantise_nf4(weight_OI), (weight_OI.shape[0], weight_OI.shape[1]))

    def decoded(self, dtype: torch.dtype) -> Tensor:
        return dequantise_nf4(self.packed, self.absmax, (self.out_features, self.in_features), dtype)


class Fp8Linear(PackedLinear):
    """E4M3 times E4M3: weights scaled per output, activations per token, at every call; sums in float32.

    With fp8 units (compute capability 8.9 and up) one `scaled_mm`; elsewhere the same roundings and the
    product of the decoded factors, in float32: for proving the maths, not for speed.
    """

    scales: Tensor

    def __init__(self, packed_OI: Tensor, scales_O: Tensor) -> None:
        super().__init__("fp8", (packed_OI.shape[0], packed_OI.shape[1]), packed_OI)
        self.register_buffer("scales", scales_O.float())

    @classmethod
    def of(cls, weight_OI: Tensor) -> Fp8Linear:
        packed, scales_O1 = quantise_fp8_rows(weight_OI)
        return cls(packed, scales_O1[:, 0])

    def decoded(self, dtype: torch.dtype) -> Tensor:
        return (self.packed.float() * self.scales[:, None]).to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        x_TI = x.reshape(-1, self.in_features)
        if has_fp8_units(x.device) and x.dtype == torch.bfloat16 and len(x_TI) and self._fits():
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


def quantise_int8(weight_OI: Tensor) -> tuple[Tensor, Tensor]:
    """(O, I) -> int8 (O, I) and the largest magnitude of each row, float32 (O), by bitsandbytes' formula."""
    wide = weight_OI.float()
    absmax = wide.abs().amax(dim=-1)
    factor = torch.where(absmax > 0, INT8_MAX / absmax, 0.0)
    return torch.round(wide * factor[:, None]).to(torch.int8), absmax
