"""The pointwise operations of inference: Triton's kernels on a CUDA device, torch's elsewhere. Same results.

Both keep float32 between reading and writing, so neither is further from exact arithmetic than the plain statements
of `backend.model.transformer`, which training goes through. While gradients are recorded, or a compiler looks on
(which fuses these by itself), torch's are taken everywhere.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from backend import paths
from backend.model import pointwise as plain
from backend.model.pointwise import Stream

__all__ = ["Stream", "add_gated", "fused", "joint_qkv", "norm_modulate", "silu_mul"]


def norm_modulate(x: Tensor, weight: Tensor, eps: float, shift: Tensor, scale: Tensor) -> Tensor:
    """RMSNorm of x (B, S, D), then x (1 + scale) + shift; shift and scale (B, 1, D)."""
    if not fused(x):
        return plain.norm_modulate(x, weight, eps, shift, scale)
    from backend.model.kernels import pointwise_triton

    with torch.cuda.device_of(x):
        return pointwise_triton.norm_modulate(x, weight, eps, shift, scale)


def add_gated(x: Tensor, gate: Tensor, update: Tensor) -> Tensor:
    """x + gate * update, (B, S, D); gate (B, 1, D)."""
    if not fused(x):
        return plain.add_gated(x, gate, update)
    from backend.model.kernels import pointwise_triton

    with torch.cuda.device_of(x):
        return pointwise_triton.add_gated(x, gate, update)


def silu_mul(a: Tensor, b: Tensor) -> Tensor:
    """silu(a) * b, written over a."""
    if not fused(a):
        return plain.silu_mul(a, b)
    from backend.model.kernels import pointwise_triton

    with torch.cuda.device_of(a):
        return pointwise_triton.silu_mul(a, b)


def joint_qkv(
    streams: Sequence[Stream], rope: Tensor, heads: int, eps: float, *, query_streams: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of the joint sequence, normalised and turned, (B, H, S, K) each.

    `rope`: (S, K/2, 2) float32. Only the first `query_streams` streams have queries. The memory behind the answer is
    laid out as the device's attention likes it.
    """
    if not fused(rope):
        return plain.joint_qkv(streams, rope, heads, eps, query_streams=query_streams)
    from backend.model.kernels import pointwise_triton

    with torch.cuda.device_of(rope):
        return pointwise_triton.joint_qkv(streams, rope, heads, eps, query_streams=query_streams)


def fused(x: Tensor) -> bool:
    """Whether Triton's kernels serve this tensor."""
    return x.is_cuda and not torch.is_grad_enabled() and not torch.compiler.is_compiling() and _have_triton()


@cache
def _have_triton() -> bool:
    """Asked only on a CUDA device, where torch normally brings triton along (not on Windows)."""
    if find_spec("triton") is None:
        logging.getLogger(__name__).warning(
            "triton is not installed: the pointwise operations run unfused, which is slower and just as exact"
        )
        return False
    os.environ.setdefault("TRITON_CACHE_DIR", str(paths.triton_dir()))  # read when triton is imported
    return True
