"""Where every token of the joint sequence stands, how that turns queries and keys, and which tokens may be seen.

Sources: the published configuration and the reference pipeline (facts on RoPE: centred, theta 10000, three axes).
Shapes as in `backend.model.transformer`: N image tokens, L text tokens, S = N + L, K head size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from backend.params import DiTParams

ROPE_THETA = 10000.0
ROPE_POSITIONS = 4096  # table length of the published model, each way


def rope_positions(h: int, w: int, text: int) -> Tensor:
    """(S, 3) frame, row, column of every token, image first.

    Image rows run from -(h - h // 2) to h // 2 - 1 (an odd size has its extra index on the negative side), columns
    alike; text token i stands at t0 + i on all three axes, t0 = max(h // 2, w // 2).
    """
    t0 = max(h // 2, w // 2)
    if t0 + text > ROPE_POSITIONS or max(h, w) > ROPE_POSITIONS:
        raise ValueError(f"{text} text tokens beside a latent of {h} x {w} exceed {ROPE_POSITIONS} positions")
    row = torch.arange(h) - (h - h // 2)
    column = torch.arange(w) - (w - w // 2)
    image = torch.zeros(h, w, 3, dtype=torch.long)
    image[..., 1], image[..., 2] = row[:, None], column[None, :]
    words = (t0 + torch.arange(text))[:, None].expand(text, 3)
    return torch.cat((image.view(h * w, 3), words))


def rope_table(params: DiTParams, h: int, w: int, text: int, device: torch.device) -> Tensor:
    """(S, K/2, 2) float32 cosine and sine: 4 frame, 14 height and 14 width pairs at the published head size.

    Computed in float32 from the angles as the reference's tables are; small beside one block's work.
    """
    position = rope_positions(h, w, text)
    columns: list[Tensor] = []
    for axis, size in enumerate(params.axes_dims_rope):
        frequency = 1.0 / ROPE_THETA ** (torch.arange(0, size, 2, dtype=torch.float32) / size)
        columns.append(position[:, axis, None].float() * frequency)
    angle = torch.cat(columns, dim=-1)
    return torch.stack((angle.cos(), angle.sin()), dim=-1).to(device)


def apply_rope(x_BSHK: Tensor, rope: Tensor) -> Tensor:
    """Rotate neighbouring pairs (2i, 2i+1) in float32, cast back."""
    pairs = x_BSHK.float().unflatten(-1, (-1, 2))
    real, imaginary = pairs.unbind(-1)
    cos, sin = rope[:, None, :, 0], rope[:, None, :, 1]
    turned = torch.stack((real * cos - imaginary * sin, real * sin + imaginary * cos), dim=-1)
    return turned.flatten(-2).to(x_BSHK.dtype)


def attention_mask(text_mask_BL: Tensor, image_tokens: int) -> Tensor:
    """(B, 1, 1, S) bool, True where a key may be seen: every image token, and the real text tokens."""
    image = torch.ones(text_mask_BL.shape[0], image_tokens, dtype=torch.bool, device=text_mask_BL.device)
    return torch.cat((image, text_mask_BL.bool()), dim=1)[:, None, None]
