"""Backward simulation: the student's own way down the grid that it is served on, ending at a chosen step.

DMD2's (Yin et al. 2024) answer to a student that trains on noised data and is asked about its own pictures. The way is
inference's: Euler steps along `sampling.schedule` of the picture's own shape. DMD2 puts fresh noise between the steps
instead, which is the option `renoise`. The Lens paper says only that the student is simulated (Appendix D).

Legend: K steps before the last, B pictures, N image tokens, C packed channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from backend.sampling import Velocity, denoise


@dataclass(frozen=True)
class Simulated:
    """What the student made of noise with k steps without a gradient and one with it."""

    x0_BNC: Tensor  # float32, the student's clean picture after step k; the gradient flows through this step alone
    x_k_BNC: Tensor  # float32, what step k began from, without gradient
    sigma_k: float  # its level


def simulate(
    student: Velocity, noise_BNC: Tensor, grid: Sequence[float], k: int, renoise_KBNC: Tensor | None = None
) -> Simulated:
    """Walk `noise_BNC` down `grid` to step k (0-based) without a gradient, then predict the clean picture from there.

    `grid`: steps + 1 levels from 1 to 0, `sampling.schedule(tokens, steps)`. `renoise_KBNC`: None for inference's Euler
    steps; noise (k or more, B, N, C) with which each clean estimate is noised to the next level. All ranks must take
    the same k, else sharded networks wait for each other for ever. ValueError for a k that the grid has not, and for
    less fresh noise than steps.
    """
    if not 0 <= k < len(grid) - 1:
        raise ValueError(f"a grid of {len(grid) - 1} steps has no step {k}")
    with torch.no_grad():
        if renoise_KBNC is None:
            x = denoise(student, noise_BNC, grid[: k + 1])
        else:
            x = noise_BNC.float()
            for sigma, following, eps in zip(grid[:k], grid[1 : k + 1], renoise_KBNC[:k].float(), strict=True):
                x = (1 - following) * _clean(student, x, sigma) + following * eps
    return Simulated(_clean(student, x, grid[k]), x, grid[k])


def _clean(student: Velocity, x: Tensor, sigma: float) -> Tensor:
    return x - sigma * student(x, sigma).float()
