"""The discriminator of distillation: small heads on the frozen teacher's features, and its losses.

Lens paper, Appendix D, "Distillation Details", with the logistic l(r) = log(1 + e^-r); the numbers are ours:

    (1) L_critic = E l(d(x_t)) + E l(-d(x_t fake)) + r1_weight / 2 E (d(x_t) - d(x_t + r1_step eps))^2
    (2) L_G = E l(d(x_t fake))

x_t is a real picture *after* it was noised; real and fake pictures share their t. The last term of (1) stands for the
R1 penalty r1_weight / 2 r1_step^2 |grad d|^2 without second derivatives, which sharded and fused networks lack. The
paper has r1_weight = gamma = 1.0 and r1_step = alpha = 0.1. It does not say which of the teacher's blocks are read nor
what a head is; both are those of NVIDIA's FastGen (34f30e8), which also reads a frozen transformer: the middle block,
strided convolutions and a global mean, so that every shape of picture fits.

Legend: B pictures, N = h w image tokens, D the teacher's width, H heads.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from train.losses.sums import picture_mean, precise


class Heads(nn.Module):
    """One head per tapped block of the teacher: features in, a logit each out.

    `taps` are the teacher's blocks, 0-based and rising; `width` is D. A head has 8 D^2 + O(D) numbers: 18.9 M of the
    published teacher's 1536.
    """

    def __init__(self, width: int, taps: Sequence[int]) -> None:
        super().__init__()
        if not taps or list(taps) != sorted(set(taps)):
            raise ValueError(f"taps name blocks in rising order, each once, not {list(taps)}")
        self.taps = tuple(taps)
        self.heads = nn.ModuleList(_head(width) for _ in taps)

    def forward(self, features: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """(B, H) logits, in float32, from a (B, N, D) of image tokens per tap; `size` is (h, w) in tokens."""
        maps = (precise(x).unflatten(1, size).permute(0, 3, 1, 2) for x in features)
        return torch.cat([head(x) for head, x in zip(self.heads, maps, strict=True)], dim=1)


def _head(width: int) -> nn.Sequential:
    """(B, D, h, w) -> (B, 1)."""
    hidden = width // 2
    return nn.Sequential(
        nn.Conv2d(width, hidden, kernel_size=4, stride=2, padding=1),
        nn.GroupNorm(_groups(hidden), hidden),
        nn.LeakyReLU(0.2),
        nn.Conv2d(hidden, 1, kernel_size=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


def _groups(channels: int) -> int:
    """Largest divisor of `channels` up to 32; of 32 channels and fewer up to a quarter of them."""
    most = 32 if channels > 32 else max(1, channels // 4)
    return max(n for n in range(1, most + 1) if channels % n == 0)


def critic_losses(d_real_BH: Tensor, d_fake_BH: Tensor) -> Tensor:
    """(B,) first two terms of (1), the mean over the heads: real logits are to rise, fake ones to fall."""
    return picture_mean(F.softplus(-d_real_BH) + F.softplus(d_fake_BH))


def r1_losses(d_real_BH: Tensor, d_moved_BH: Tensor, r1_weight: float) -> Tensor:
    """(B,) last term of (1), the mean over the heads. The gradient flows through both logits, neither is held fixed."""
    return 0.5 * r1_weight * picture_mean((d_real_BH - d_moved_BH).square())


def move(x_t: Tensor, eps: Tensor, r1_step: float) -> Tensor:
    """x_t + r1_step eps: the real picture of (1), noised already, a little further on."""
    return x_t + r1_step * eps


def generator_losses(d_fake_BH: Tensor) -> Tensor:
    """(B,) loss (2), the mean over the heads: the student's logits are to rise."""
    return picture_mean(F.softplus(-d_fake_BH))
