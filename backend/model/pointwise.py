"""The pointwise operations of inference, each in as few passes over its tensor as torch's own kernels allow.

The plain statements are in `backend.model.transformer`; these compute the same with fewer roundings on the way.
Shapes as there; P = 2, queries and keys.
"""

from __future__ import annotations

import torch
from torch import Tensor


def normalised(x: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """x over the root of its mean square, before any weight; no square of x is ever in memory."""
    size = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
    return (x * torch.rsqrt(size.square() / x.shape[-1] + eps)).to(dtype)


def norm_modulate(x: Tensor, weight: Tensor, eps: float, shift: Tensor, scale: Tensor) -> Tensor:
    """RMSNorm, then x (1 + scale) + shift; the norm's weight and 1 + scale multiply each other first, one row each."""
    return torch.addcmul(shift, normalised(x, eps, weight.dtype), weight * (1 + scale))


def add_gated(x: Tensor, gate: Tensor, update: Tensor) -> Tensor:
    """x + gate * update."""
    return torch.addcmul(x, gate, update)


def rotate(x_BSPHK: Tensor, rope: Tensor) -> Tensor:
    """`apply_rope` for queries and keys at once: a pair is a complex number, one product turns it."""
    pairs = torch.view_as_complex(x_BSPHK.float().unflatten(-1, (-1, 2)))
    turned = torch.view_as_real(pairs * torch.view_as_complex(rope)[:, None, None])
    return turned.flatten(-2).to(x_BSPHK.dtype)
