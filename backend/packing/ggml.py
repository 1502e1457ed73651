"""Dequantises ggml's packed types with torch operations, on any device; equal to the last bit to the gguf package.

A packed row is a run of blocks; a block is some scales and the codes of 32 values, or of 256 for the K types. Every
function takes whole blocks U8 (n, bytes of a block) and gives float32 (n, values of a block), by the same products
and differences in the same order as ggml. Source: the block layouts of ggml's quantisation formats.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from backend.packing.ggml_layout import GGML_BLOCKS

SLAB = 2**19  # values decoded in one step on a CPU: 2 MB of float32, so that the steps stay in its cache


def can_dequantise(kind: int) -> bool:
    """Whether a ggml type number is one of this file's; the gguf package reads some more, slower and on a CPU."""
    return kind in _DECODERS


def dequantise(packed_RB: Tensor, kind: int, dtype: torch.dtype, *, slab: int | None = None) -> Tensor:
    """Packed rows U8 (R, bytes) -> (R, values) in `dtype`, on the device of `packed`.

    Decoded in float32 and rounded once. `slab`: values decoded at a time; None: SLAB on a CPU, all elsewhere, where
    every further step would be another round of kernels.
    """
    values, size = GGML_BLOCKS[kind]
    decode = _DECODERS[kind]
    rows, width = len(packed_RB), packed_RB.shape[1] // size * values
    out = torch.empty(rows, width, dtype=dtype, device=packed_RB.device)
    if slab is None:
        slab = SLAB if packed_RB.device.type == "cpu" else rows * width
    step = max(1, slab // max(1, width))
    for first in range(0, rows, step):
        part = packed_RB[first : first + step]
        out[first : first + step] = decode(part.reshape(-1, size)).view(len(part), width)
    return out


def quantise_q8_0(weight_RI: Tensor) -> Tensor:
    """(R, I), I a multiple of 32 -> packed rows U8 (R, I / 32 * 34): the bytes that ggml writes for its reference.

    The scale is the largest magnitude over 127, rounded to float16; the codes are rounded with the scale before that.
    """
    blocks = weight_RI.float().reshape(-1, 32)
    scale = blocks.abs().amax(dim=1, keepdim=True) / 127
    factor = torch.where(scale == 0, 0.0, 1 / scale)
    scaled = blocks * factor
    size = scaled.abs()
    whole = size.floor()
    codes = (whole + (2 * (size - whole)).floor()) * scaled.sign()  # halves away from zero, unlike torch.round
    packed = torch.cat((scale.half().view(torch.uint8), codes.to(torch.int8).view(torch.uint8)), dim=1)
    return packed.view(len(weight_RI), -1)


def _half(two_bytes: Tensor) -> Tensor:
    """U8 (n, 2) float16 bits -> float32 (n, 1)."""
    return two_bytes.contiguous().view(torch.float16).float()


def _nibbles(codes: Tensor) -> Tensor:
    """U8 (n, k) -> U8 (n, 2, k): all low nibbles, then all high ones."""
    return torch.stack((codes & 15, codes >> 4), dim=1)


def _fifth_bits(four_bytes: Tensor) -> Tensor:
    """U8 (n, 4), little end first -> U8 (n, 32): bit i, moved to where a fifth bit belongs."""
    shift = torch.arange(8, dtype=torch.uint8, device=four_bytes.device)
    return ((four_bytes[:, :, None] >> shift & 1) << 4).flatten(1)


def _q8_0(b: Tensor) -> Tensor:
    return b[:, 2:].contiguous().view(torch.int8).float() * _half(b[:, :2])


def _q4_0(b: Tensor) -> Tensor:
    return _half(b[:, :2]) * (_nibbles(b[:, 2:]).flatten(1).float() - 8)


def _q4_1(b: Tensor) -> Tensor:
    return _half(b[:, :2]) * _nibbles(b[:, 4:]).flatten(1).float() + _half(b[:, 2:4])


def _q5_0(b: Tensor) -> Tensor:
    return _half(b[:, :2]) * ((_nibbles(b[:, 6:]).flatten(1) | _fifth_bits(b[:, 2:6])).float() - 16)


def _q5_1(b: Tensor) -> Tensor:
    codes = (_nibbles(b[:, 8:]).flatten(1) | _fifth_bits(b[:, 4:8])).float()
    return _half(b[:, :2]) * codes + _half(b[:, 2:4])


def _k_scales(b: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and minimum of each of the 8 groups of a Q4_K or Q5_K block, float32 (n, 8, 1).

    12 bytes after the two float16: four of the low six bits of scales 0 to 3, four of minima 0 to 3, four whose
    nibbles continue 4 to 7, with their upper two bits on top of the first eight bytes.
    """
    first, second, third = b[:, 4:8], b[:, 8:12], b[:, 12:16]
    scale = torch.cat((first & 63, third & 15 | first >> 2 & 48), dim=1).float()
    minimum = torch.cat((second & 63, third >> 4 | second >> 2 & 48), dim=1).float()
    return (_half(b[:, :2]) * scale)[..., None], (_half(b[:, 2:4]) * minimum)[..., None]


def _q4_k(b: Tensor) -> Tensor:
    scale, minimum = _k_scales(b)
    codes = _nibbles(b[:, 16:].reshape(-1, 32)).view(len(b), 8, 32)
    return (scale * codes.float() - minimum).flatten(1)


def _q5_k(b: Tensor) -> Tensor:
    scale, minimum = _k_scales(b)
    shift = torch.arange(8, dtype=torch.uint8, device=b.device)
    high = (b[:, None, 16:48] >> shift[:, None] & 1) << 4  # bit g of byte i belongs to value i of group g
    codes = _nibbles(b[:, 48:].reshape(-1, 32)).view(len(b), 8, 32) | high
    return (scale * codes.float() - minimum).flatten(1)


def _q6_k(b: Tensor) -> Tensor:
    """Two halves of 128 values; in each, 64 bytes of low nibbles and 32 bytes of four pairs of high bits."""
    shift = torch.arange(0, 8, 2, dtype=torch.uint8, device=b.device)
    low = _nibbles(b[:, :128].reshape(-1, 64)).view(len(b), 8, 32)
    high = (b[:, 128:192].reshape(-1, 2, 1, 32) >> shift[:, None] & 3).view(len(b), 8, 32) << 4
    codes = (low | high).float() - 32
    scale = _half(b[:, 208:]) * b[:, 192:208].contiguous().view(torch.int8).float()
    return (scale[..., None] * codes.view(len(b), 16, 16)).flatten(1)


_DECODERS: dict[int, Callable[[Tensor], Tensor]] = {
    2: _q4_0, 3: _q4_1, 6: _q5_0, 7: _q5_1, 8: _q8_0, 12: _q4_k, 13: _q5_k, 14: _q6_k,
}  # fmt: skip
