"""Sums that every loss here is made of: estimates, means per picture, one list of tensors that nears another.

Every loss of this folder is (B,), the mean over a picture's elements: the mean over the pictures is then the same
whatever the batch, the number of ranks and the shape of the pictures, and the one who trains divides by the count.

Legend: B pictures, N image tokens, C packed channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def precise(x: Tensor) -> Tensor:
    """`x` in float32, or as it is where it has more digits: bfloat16 loses the difference of two near velocities."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def column(t_B: Tensor, like: Tensor) -> Tensor:
    """(B, 1, ...) with as many axes as `like` (B, ...), on its device: one number per picture to multiply with."""
    return precise(t_B).to(like.device).view(-1, *[1] * (like.dim() - 1))


def picture_mean(x: Tensor) -> Tensor:
    """(B,) mean over all axes of `x` (B, ...) but the first."""
    return x.flatten(1).mean(1)


def rms(x: Tensor) -> Tensor:
    """(B,) root mean square over a picture. Its gradient at 0 is 0, not nan.

    Not `vector_norm`, whose float32 sum over the 5e5 elements of a large picture is off by 2.5e-4 on a CPU.
    """
    return picture_mean(precise(x).square()).clamp(min=1e-24).sqrt()


def clean(x_t: Tensor, v: Tensor, t_B: Tensor) -> Tensor:
    """(B, ...) estimate of x0 that a velocity implies: x_t - t v (x_t = (1 - t) x0 + t eps, v = eps - x0)."""
    return precise(x_t) - column(t_B, x_t) * precise(v)


@torch.no_grad()
def near(these: Sequence[Tensor], those: Sequence[Tensor], share: float) -> None:
    """Move each of `these` in place by `share` of the way to its partner: this = (1 - share) this + share that.

    Sharded tensors move shard by shard, which is right only where both are sharded alike: pass the local shards.
    ValueError where the two lists do not match tensor for tensor.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"a share lies between 0 and 1, not {share}")
    for i, (this, that) in enumerate(zip(these, those, strict=True)):
        if (this.shape, this.dtype, this.device) != (that.shape, that.dtype, that.device):
            raise ValueError(
                f"tensor {i} is {tuple(this.shape)} {this.dtype} on {this.device}, "
                f"its partner {tuple(that.shape)} {that.dtype} on {that.device}"
            )
    for this, that in zip(these, those, strict=True):
        this.lerp_(that, share)
