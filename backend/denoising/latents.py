"""Noise, packing and normalisation of latents: pure functions.

Shapes: B batch, h = H / 16 and w = W / 16 for a picture of H x W pixels, N = h * w tokens, C = 128 packed channels
(32 VAE channels x 2 x 2 sub-positions, channel = c * 4 + row * 2 + column). Knows nothing about models.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

PACKED = 128  # C


def noise(seed: int, h: int, w: int) -> Tensor:
    """(1, N, C) float32 standard normal, drawn on the CPU: the same seed starts alike on every device and dtype."""
    return torch.randn(1, h * w, PACKED, generator=torch.Generator("cpu").manual_seed(seed), dtype=torch.float32)


def unpack(x_BNC: Tensor, h: int, w: int) -> Tensor:
    """Tokens -> (B, 128, h, w)."""
    return rearrange(x_BNC, "b (h w) c -> b c h w", h=h, w=w)


def denormalise(z_BCHW: Tensor, mean_C: Tensor, var_C: Tensor, eps: float) -> Tensor:
    """Undo the VAE's batch-norm on the packed channels: z * sqrt(var + eps) + mean."""
    shape = (1, -1, 1, 1)
    return z_BCHW * torch.sqrt(var_C.view(shape) + eps) + mean_C.view(shape)


def normalise(z_BCHW: Tensor, mean_C: Tensor, var_C: Tensor, eps: float) -> Tensor:
    """The inverse of `denormalise`."""
    shape = (1, -1, 1, 1)
    return (z_BCHW - mean_C.view(shape)) / torch.sqrt(var_C.view(shape) + eps)


def unpatchify(z_BCHW: Tensor) -> Tensor:
    """(B, 128, h, w) -> (B, 32, 2h, 2w), the VAE's own layout."""
    return rearrange(z_BCHW, "b (c p1 p2) h w -> b c (h p1) (w p2)", p1=2, p2=2)


def patchify(z_BCHW: Tensor) -> Tensor:
    """(B, 32, 2h, 2w) -> (B, 128, h, w)."""
    return rearrange(z_BCHW, "b c (h p1) (w p2) -> b (c p1 p2) h w", p1=2, p2=2)


def pack(z_BCHW: Tensor) -> Tensor:
    """(B, 128, h, w) -> tokens (B, N, C), row by row."""
    return rearrange(z_BCHW, "b c h w -> b (h w) c")


def to_pixels(image_BCHW: Tensor) -> Tensor:
    """Decoded [-1, 1] -> (B, H, W, 3) uint8: clamp, scale, round (the reference truncates; rounding is nearer)."""
    scaled = (image_BCHW.float().clamp(-1, 1) + 1) * 127.5
    return rearrange(scaled.round().to(torch.uint8), "b c h w -> b h w c")
