"""The pointwise operations of inference as Triton kernels: one pass over memory each, float32 in between, one rounding.

Imported only where they run (`backend.kernels.pointwise`), since triton comes with torch's CUDA builds alone.
The shapes are loops and masks, not constants of a build, nor does triton look at their divisors: a new picture size
compiles nothing. Only widths (D, K, H) are constants; they belong to the model.

Shapes: B batch, S tokens, D width, H heads, K head size, M hidden width of the MLP, R = B S rows.
"""

# pyright: reportMissingImports=false, reportUnknownParameterType=false, reportMissingParameterType=false
# pyright: reportArgumentType=false, reportOperatorIssue=false, reportCallIssue=false, reportIndexIssue=false
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from backend.kernels.pointwise_torch import FP8, FP8_MAX, Stream

ELEMENTS = 1024  # handled by one program of an elementwise kernel
HEADS_TOGETHER = 8  # of one token in one program of the kernel for queries and keys


@triton.jit(do_not_specialize=["tokens"])
def _norm_modulate(
    x, weight, shift, scale, out, tokens, shift_stride, scale_stride, eps, D: tl.constexpr, BLOCK: tl.constexpr
):
    """One row a program: the row stays in registers between its mean square and its product."""
    row = tl.program_id(0).to(tl.int64)
    batch = row // tokens
    column = tl.arange(0, BLOCK)
    inside = column < D
    value = tl.load(x + row * D + column, mask=inside, other=0.0).to(tl.float32)
    factor = tl.rsqrt(tl.sum(value * value, axis=0) / D + eps)
    w = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    a = tl.load(scale + batch * scale_stride + column, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(shift + batch * shift_stride + column, mask=inside, other=0.0).to(tl.float32)
    result = value * factor * (w * (1.0 + a)) + b
    tl.store(out + row * D + column, result.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["tokens"])
def _add_gated(x, gate, update, out, tokens, gate_stride, D: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < D
    value = tl.load(x + row * D + column, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(gate + (row // tokens) * gate_stride + column, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(update + row * D + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * D + column, (value + g * u).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _silu_mul(a, b, out, count, BLOCK: tl.constexpr):
    """May write over `a`: every element is read and written by the same program."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < count
    x = tl.load(a + index, mask=inside, other=0.0).to(tl.float32)
    y = tl.load(b + index, mask=inside, other=0.0).to(tl.float32)
    # exp(-x) overflows to inf below -88, and x / inf is the -0 that SiLU rounds to there.
    tl.store(out + index, (x / (1.0 + tl.exp(-x)) * y).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _fp8_row(x, out, scales, limit, smallest, D: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < D
    value = tl.load(x + row * D + column, mask=inside, other=0.0).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(value), axis=0) / limit, smallest)
    scaled = tl.minimum(tl.maximum(tl.div_rn(value, scale), -limit), limit)
    tl.store(out + row * D + column, scaled.to(out.dtype.element_ty), mask=inside)
    tl.store(scales + row, scale)


@triton.jit(do_not_specialize=["tokens", "first", "q_tokens", "k_tokens"])
def _stream_into_joint(
    qkv, q_weight, k_weight, rope, q, k, v,
    tokens, first, q_tokens, k_tokens, first_part, eps,
    H: tl.constexpr, K: tl.constexpr, HEADS: tl.constexpr, KBLOCK: tl.constexpr,
):  # fmt: skip
    """One token, one of q, k, v, HEADS heads a program: normalise, turn, and put where the joint sequence has it."""
    row = tl.program_id(0).to(tl.int64)  # of the stream: batch * tokens + token
    part = tl.program_id(1) + first_part
    batch, token = row // tokens, row % tokens
    head = tl.program_id(2) * HEADS + tl.arange(0, HEADS)
    column = tl.arange(0, KBLOCK)
    inside = (head[:, None] < H) & (column[None, :] < K)
    source = qkv + (row * 3 + part) * (H * K) + head[:, None] * K + column[None, :]
    here = head[:, None] * K + column[None, :]
    place = first + token  # in the joint sequence
    if part == 2:
        kept = tl.load(source, mask=inside, other=0.0)
        tl.store(v + (batch * k_tokens + place) * (H * K) + here, kept.to(v.dtype.element_ty), mask=inside)
    else:
        value = tl.load(source, mask=inside, other=0.0).to(tl.float32)
        factor = tl.rsqrt(tl.sum(value * value, axis=1) / K + eps)
        if part == 0:
            weight = tl.load(q_weight + column, mask=column < K, other=0.0).to(tl.float32)
        else:
            weight = tl.load(k_weight + column, mask=column < K, other=0.0).to(tl.float32)
        value = value * factor[:, None] * weight[None, :]
        # Neighbours (2i, 2i + 1) are a pair, and so are the cosine and the sine of the table.
        pair = tl.arange(0, KBLOCK)
        angle = tl.load(rope + place * K + pair, mask=pair < K, other=0.0)
        cosine, sine = tl.split(tl.reshape(angle, (KBLOCK // 2, 2)))
        real, imaginary = tl.split(tl.reshape(value, (HEADS, KBLOCK // 2, 2)))
        turned_real = real * cosine[None, :] - imaginary * sine[None, :]
        turned_imaginary = real * sine[None, :] + imaginary * cosine[None, :]
        turned = tl.reshape(tl.join(turned_real, turned_imaginary), (HEADS, KBLOCK))
        if part == 0:
            tl.store(q + (batch * q_tokens + place) * (H * K) + here, turned.to(q.dtype.element_ty), mask=inside)
        else:
            tl.store(k + (batch * k_tokens + place) * (H * K) + here, turned.to(k.dtype.element_ty), mask=inside)


def norm_modulate(
    x_BSD: Tensor, weight_D: Tensor, eps: float, shift_B1D: Tensor, scale_B1D: Tensor, out: torch.dtype | None = None
) -> Tensor:
    """RMSNorm, then x (1 + scale) + shift. `out`: dtype of the answer; None: the weight's."""
    x = x_BSD.contiguous()
    b, s, d = x.shape
    shift, scale = _per_picture(shift_B1D, b), _per_picture(scale_B1D, b)
    result = torch.empty(x.shape, dtype=out or weight_D.dtype, device=x.device)
    if b * s:
        _norm_modulate[(b * s,)](
            x, weight_D, shift, scale, result, s, shift.stride(0), scale.stride(0), eps,
            D=d, BLOCK=triton.next_power_of_2(d), num_warps=4,
        )  # fmt: skip
    return result


def add_gated(x_BSD: Tensor, gate_B1D: Tensor, update_BSD: Tensor, out: torch.dtype | None = None) -> Tensor:
    """x + gate * update."""
    x, update = x_BSD.contiguous(), update_BSD.contiguous()
    b, s, d = x.shape
    gate = _per_picture(gate_B1D, b)
    result = torch.empty(x.shape, dtype=out or x.dtype, device=x.device)
    if b * s:
        _add_gated[(b * s,)](
            x, gate, update, result, s, gate.stride(0), D=d, BLOCK=triton.next_power_of_2(d), num_warps=4
        )
    return result


def silu_mul(a: Tensor, b: Tensor, out: torch.dtype | None = None) -> Tensor:
    """silu(a) * b, in a's own memory where the dtype stays."""
    a, b = a.contiguous(), b.contiguous()
    result = a if out in (None, a.dtype) else torch.empty(a.shape, dtype=out, device=a.device)
    if a.numel():
        _silu_mul[(triton.cdiv(a.numel(), ELEMENTS),)](a, b, result, a.numel(), BLOCK=ELEMENTS, num_warps=4)
    return result


def joint_qkv(
    streams: Sequence[Stream],
    rope: Tensor,
    heads: int,
    eps: float,
    *,
    query_streams: int,
    out: torch.dtype | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of the joint sequence, (B, H, S, K) each, from the streams' projections.

    Only the first `query_streams` streams have queries. The memory is laid out (B, S, H, K), which is what flash
    kernels read and how they write their answer, so that joining the heads afterwards copies nothing.
    """
    first = streams[0][0]
    b, dtype = first.shape[0], out or first.dtype
    size = first.shape[2] // (3 * heads)
    lengths = [qkv.shape[1] for qkv, _, _ in streams]
    q_tokens, k_tokens = sum(lengths[:query_streams]), sum(lengths)
    q = torch.empty(b, q_tokens, heads, size, dtype=dtype, device=first.device)
    k = torch.empty(b, k_tokens, heads, size, dtype=dtype, device=first.device)
    v = torch.empty_like(k)
    rope = rope.contiguous()
    start = 0
    for index, (qkv, q_weight, k_weight) in enumerate(streams):
        skipped = 0 if index < query_streams else 1
        grid = (b * lengths[index], 3 - skipped, triton.cdiv(heads, HEADS_TOGETHER))
        if grid[0]:
            _stream_into_joint[grid](
                qkv.contiguous(), q_weight, k_weight, rope, q, k, v,
                lengths[index], start, q_tokens, k_tokens, skipped, eps,
                H=heads, K=size, HEADS=HEADS_TOGETHER, KBLOCK=triton.next_power_of_2(size), num_warps=4,
            )  # fmt: skip
        start += lengths[index]
    return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)


def quantise_fp8_rows(x_RI: Tensor, out: torch.dtype = FP8) -> tuple[Tensor, Tensor]:
    """(R, I) -> F8-E4M3 (R, I) and float32 scales (R, 1): the largest magnitude of a row becomes 448."""
    x = x_RI.contiguous()
    rows, width = x.shape
    result = torch.empty(x.shape, dtype=out, device=x.device)
    scales = torch.empty(rows, 1, dtype=torch.float32, device=x.device)
    if rows:
        _fp8_row[(rows,)](
            x, result, scales, FP8_MAX, torch.finfo(torch.float32).tiny,
            D=width, BLOCK=triton.next_power_of_2(width), num_warps=4,
        )  # fmt: skip
    return result, scales


def _per_picture(row_B1D: Tensor, batch: int) -> Tensor:
    """One row a picture, (B, D) with neighbouring columns; a single row serves them all (stride 0)."""
    row = row_B1D.squeeze(1)
    row = row if row.stride(-1) == 1 else row.contiguous()
    return row.expand(batch, -1)
