"""Decodes the block-scaled number formats of published files: MXFP4, NVFP4, MXFP8.

Legend: E experts, O outputs, I inputs. Sources: OCP Microscaling Formats v1.0 for the elements; facts 3.3-3.5 for
how each publisher lays out nibbles and scales.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch

# E2M1 by code: sign bit, two exponent bits, one mantissa bit.
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
MXFP4_BLOCK = 32  # inputs per scale
NVFP4_BLOCK = 16
MXFP8_BLOCK = 32
SLAB = 2**19  # values decoded in one step on a CPU: 1 to 2 MB


def mxfp4_experts(blocks_EOB: torch.Tensor, scales_EOB: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """OpenAI's packing -> (E, I, O), as Hugging Face's dequantised experts lie.

    `blocks` U8 (E, O, I/32, 16), the low nibble is the even element; `scales` U8 (E, O, I/32), value 2^(scale-127).
    """
    experts, outputs, blocks, _ = blocks_EOB.shape
    out = torch.empty(experts, blocks * MXFP4_BLOCK, outputs, dtype=dtype)
    for expert in range(experts):  # one at a time: the scratch of one is 0.2 GB at the published size
        out[expert] = mxfp4_expert(blocks_EOB[expert], scales_EOB[expert], dtype).T
    return out


def mxfp4_expert(blocks_OB: torch.Tensor, scales_OB: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """One expert of OpenAI's packing -> (O, I), on the device of `blocks`.

    Exact in bfloat16 too: two significant bits times a power of two.
    """
    outputs, blocks = scales_OB.shape
    out = torch.empty(outputs, blocks, MXFP4_BLOCK, dtype=dtype, device=blocks_OB.device)
    for rows in _slabs(outputs, blocks * MXFP4_BLOCK, blocks_OB.device):
        scales = _powers_of_two(scales_OB[rows]).to(dtype)[..., None]
        torch.mul(_nibbles(blocks_OB[rows], dtype, even_low=True), scales, out=out[rows])
    return out.flatten(1)


def ggml_mxfp4(packed_RB: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """llama.cpp's packing U8 (R, I/32 * 17) -> (R, I), on its device; exact in bfloat16 too.

    A block is one scale byte and 16 bytes, whose low nibbles are elements 0 to 15 and high nibbles 16 to 31.
    """
    blocks = packed_RB.view(len(packed_RB), -1, 17)
    out = torch.empty(*blocks.shape[:2], 2, 16, dtype=dtype, device=packed_RB.device)
    for rows in _slabs(len(blocks), blocks.shape[1] * MXFP4_BLOCK, blocks.device):
        pairs = _nibbles(blocks[rows, :, 1:].contiguous(), dtype, even_low=True).unflatten(-1, (16, 2))
        torch.mul(pairs.mT, _powers_of_two(blocks[rows, :, 0]).to(dtype)[..., None, None], out=out[rows])
    return out.flatten(1)


def nvfp4_experts(
    packed_EOI: torch.Tensor, scales: torch.Tensor, scales_E: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """Comfy's packing -> (E, I, O).

    `packed` U8 (E, O, I/2), the **high** nibble is the even element; `scales` F8-E4M3 per 16 inputs, swizzled and
    padded per expert; `scales_E` F32 (E) or one for all. Value = e2m1 * block scale * expert scale.
    """
    experts, outputs, half = packed_EOI.shape
    out = torch.empty(experts, 2 * half, outputs, dtype=dtype)
    per_expert = scales.reshape(experts, -1)
    outer = scales_E.to(torch.float32).reshape(-1).expand(experts)
    for expert in range(experts):
        out[expert] = nvfp4_expert(packed_EOI[expert], per_expert[expert], outer[expert], dtype).T
    return out


def nvfp4_expert(
    packed_OI: torch.Tensor, scales: torch.Tensor, outer: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """One expert of Comfy's packing -> (O, I), on the device of `packed`; `outer` is the expert's own scale, F32 ()."""
    outputs, inputs = packed_OI.shape[0], 2 * packed_OI.shape[1]
    block = unswizzle(scales, outputs, inputs // NVFP4_BLOCK).to(torch.float32) * outer
    out = torch.empty(outputs, inputs // NVFP4_BLOCK, NVFP4_BLOCK, dtype=dtype, device=packed_OI.device)
    for rows in _slabs(outputs, inputs, packed_OI.device):
        values = _nibbles(packed_OI[rows], torch.float32, even_low=False).unflatten(-1, (-1, NVFP4_BLOCK))
        out[rows] = values * block[rows][..., None]
    return out.flatten(1)


def mxfp8_linear(weight_OI: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """F8-E4M3 (O, I) with swizzled E8M0 scales (U8 or float8_e8m0fnu) per 32 inputs -> (O, I)."""
    outputs, inputs = weight_OI.shape
    exponent = unswizzle(scales.reshape(-1).view(torch.uint8), outputs, inputs // MXFP8_BLOCK).to(torch.int32) - 127
    blocks = weight_OI.to(torch.float32).reshape(outputs, -1, MXFP8_BLOCK)
    return torch.ldexp(blocks, exponent[..., None]).reshape(outputs, inputs).to(dtype)


def quantise_mxfp8(weight_OI: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(O, I), I a multiple of 32 -> F8-E4M3 (O, I) and E8M0 scales U8 (O, I/32), not swizzled.

    The scale is the smallest power of two that brings a block's largest magnitude to 448 or less, so nothing is cut.
    """
    blocks = weight_OI.float().reshape(len(weight_OI), -1, MXFP8_BLOCK)
    largest = blocks.abs().amax(dim=-1)
    mantissa, exponent = torch.frexp(largest)  # largest = mantissa * 2^exponent, 0.5 <= mantissa < 1; 448 = 0.875 * 2^9
    exponent = (exponent - 9 + (mantissa > 0.875)).clamp(-127, 127)
    exponent = torch.where(largest == 0, -127, exponent)
    scaled = torch.ldexp(blocks, -exponent[..., None])
    return scaled.reshape(weight_OI.shape).to(torch.float8_e4m3fn), (exponent + 127).to(torch.uint8)


def swizzle(scales_RC: torch.Tensor) -> torch.Tensor:
    """(rows, columns) -> cuBLAS's blocked layout, (rows, columns) padded with zeros: what `unswizzle` undoes."""
    rows, columns = scales_RC.shape
    tall, wide = -(-rows // 128), -(-columns // 4)
    plain = scales_RC.new_zeros(tall * 128, wide * 4)
    plain[:rows, :columns] = scales_RC
    tiles = plain.view(tall, 4, 32, wide, 4).permute(0, 3, 2, 1, 4)  # row block, r div 32, r mod 32, column block, c
    return tiles.reshape(tall * 128, wide * 4)


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


def _powers_of_two(exponents: torch.Tensor) -> torch.Tensor:
    """E8M0 bytes -> 2^(byte - 127) in float32."""
    shifted = exponents.to(torch.int32) - 127
    return torch.ldexp(torch.ones(shifted.shape, device=shifted.device), shifted)


def _slabs(rows: int, width: int, device: torch.device) -> Iterator[slice]:
    """Rows taken together: on a CPU few enough that all steps of decoding them stay in its cache; elsewhere all, where
    every further step would be another round of kernels (434 instead of 10 an expert of gpt-oss)."""
    step = max(1, SLAB // width if device.type == "cpu" else rows)
    return (slice(first, first + step) for first in range(0, rows, step))


def _nibbles(packed: torch.Tensor, dtype: torch.dtype, *, even_low: bool) -> torch.Tensor:
    """U8 (..., n), n even -> E2M1 values (..., 2n) in float32 or bfloat16.

    One look-up for two bytes, in a table of all their 65,536 quads of values: five times faster than by nibble.
    """
    if packed.data_ptr() % 2:  # a U8 tensor may lie anywhere in its file
        packed = packed.clone()
    table = _quads(dtype, packed.device, even_low)
    index = packed.view(torch.uint16).int()
    return torch.index_select(table, 0, index.flatten()).view(dtype).view(*packed.shape[:-1], -1)


@functools.cache
def _quads(dtype: torch.dtype, device: torch.device, even_low: bool) -> torch.Tensor:
    """The four values of every two bytes, each quad taken as one number of their total size."""
    one = torch.tensor(E2M1, dtype=dtype)
    low, high = one.repeat(16), one.repeat_interleave(16)
    pairs = torch.stack((low, high) if even_low else (high, low), dim=-1)
    number = torch.arange(2**16)
    quads = torch.cat((pairs[number & 255], pairs[number >> 8]), dim=-1)  # memory order: the low byte comes first
    return quads.view(torch.int64 if dtype == torch.bfloat16 else torch.complex128).flatten().to(device)
