"""Decodes the block-scaled number formats of published files: MXFP4, NVFP4, MXFP8.

Legend: E experts, O outputs, I inputs. Sources: OCP Microscaling Formats v1.0 for the elements; facts 3.3-3.5 for
how each publisher lays out nibbles and scales.
"""

from __future__ import annotations

import torch

# E2M1 by code: sign bit, two exponent bits, one mantissa bit.
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
MXFP4_BLOCK = 32  # inputs per scale
NVFP4_BLOCK = 16
MXFP8_BLOCK = 32


def mxfp4_experts(blocks_EOB: torch.Tensor, scales_EOB: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """OpenAI's packing -> (E, I, O), as Hugging Face's dequantised experts lie.

    `blocks` U8 (E, O, I/32, 16), the low nibble is the even element; `scales` U8 (E, O, I/32), value 2^(scale-127).
    Exact in bfloat16: two significant bits times a power of two.
    """
    experts, outputs, blocks, _ = blocks_EOB.shape
    out = torch.empty(experts, blocks * MXFP4_BLOCK, outputs, dtype=dtype)
    for expert in range(experts):  # one at a time: the scratch of one is 0.2 GB at the published size
        values = _nibbles(blocks_EOB[expert], even_low=True)  # (O, I/32, 32)
        exponent = scales_EOB[expert].to(torch.int32) - 127
        scale = torch.ldexp(torch.ones(exponent.shape), exponent)
        out[expert] = (values * scale[..., None]).flatten(1).T
    return out


def nvfp4_experts(
    packed_EOI: torch.Tensor, scales: torch.Tensor, scales_E: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """Comfy's packing -> (E, I, O).

    `packed` U8 (E, O, I/2), the **high** nibble is the even element; `scales` F8-E4M3 per 16 inputs, swizzled and
    padded per expert; `scales_E` F32 (E) or one for all. Value = e2m1 * block scale * expert scale.
    """
    experts, outputs, half = packed_EOI.shape
    inputs = 2 * half
    out = torch.empty(experts, inputs, outputs, dtype=dtype)
    per_expert = scales.reshape(experts, -1)
    outer = scales_E.to(torch.float32).reshape(-1).expand(experts)
    for expert in range(experts):
        block = unswizzle(per_expert[expert], outputs, inputs // NVFP4_BLOCK).to(torch.float32) * outer[expert]
        values = _nibbles(packed_EOI[expert], even_low=False).reshape(outputs, -1, NVFP4_BLOCK)
        out[expert] = (values * block[..., None]).flatten(1).T
    return out


def mxfp8_linear(weight_OI: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """F8-E4M3 (O, I) with swizzled E8M0 scales (U8 or float8_e8m0fnu) per 32 inputs -> (O, I)."""
    outputs, inputs = weight_OI.shape
    exponent = unswizzle(scales.reshape(-1).view(torch.uint8), outputs, inputs // MXFP8_BLOCK).to(torch.int32) - 127
    blocks = weight_OI.to(torch.float32).reshape(outputs, -1, MXFP8_BLOCK)
    return torch.ldexp(blocks, exponent[..., None]).reshape(outputs, inputs).to(dtype)


def padded(rows: int, columns: int) -> int:
    """Elements of a swizzled scale matrix: padded to multiples of 128 rows and 4 columns."""
    return -(-rows // 128) * 128 * (-(-columns // 4) * 4)


def unswizzle(stored: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """cuBLAS's blocked scale layout -> (rows, columns).

    Tiles of 128 x 4, row-block major; within a tile (r, c) lies at (r mod 32) * 16 + (r div 32) * 4 + c.
    """
    tiles = stored.reshape(-(-rows // 128), -(-columns // 4), 32, 4, 4)  # row and column block, r mod 32, r div 32, c
    plain = tiles.permute(0, 3, 2, 1, 4).reshape(-(-rows // 128) * 128, -1)
    return plain[:rows, :columns]


def _nibbles(packed: torch.Tensor, *, even_low: bool) -> torch.Tensor:
    """U8 (..., n) -> float32 (..., 2n) of E2M1 values."""
    table = torch.tensor(E2M1)
    low, high = table[(packed & 15).int()], table[(packed >> 4).int()]
    return torch.stack((low, high) if even_low else (high, low), dim=-1).flatten(-2)
