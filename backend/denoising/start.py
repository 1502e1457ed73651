"""Where a latent begins: from noise, from what lies between the noise of two seeds, or from a picture.

A picture begins where the schedule's own sigma says: x = (1 - sigma) x0 + sigma eps, and of N steps the last
`steps_left` run. What is kept of it follows its own straight line, whose velocity eps - x0 is known: no sampler needs
to know of it, and at sigma 0 it is the picture's latent again.

Shapes: N image tokens, C packed channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from backend.denoising import latents
from backend.sampling import Velocity
from backend.types import GenerationRequest

Sigmas = tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Start:
    """A picture that a latent begins from."""

    x0_1NC: Tensor  # normalised, float32
    strength: float  # 0..1
    drawn_1NC: Tensor | None = None  # 1 where it is drawn, 0 where it is kept; None: drawn everywhere

    def begin(self, noise_1NC: Tensor, velocity: Velocity, sigmas: Sigmas) -> tuple[Tensor, Velocity, Sigmas]:
        """(x, velocity, sigmas) of the steps that run. At strength 1 x is the noise itself, at 0 the latent."""
        sigmas = sigmas[len(sigmas) - 1 - steps_left(len(sigmas) - 1, self.strength) :]
        sigma, x0 = sigmas[0], self.x0_1NC
        x = noise_1NC if sigma == 1.0 else (1.0 - sigma) * x0 + sigma * noise_1NC
        if self.drawn_1NC is None:
            return x, velocity, sigmas
        return x, _keeping(velocity, noise_1NC - x0, self.drawn_1NC), sigmas


def _keeping(velocity: Velocity, known_1NC: Tensor, drawn_1NC: Tensor) -> Velocity:
    def kept(x_1NC: Tensor, sigma: float) -> Tensor:
        return torch.where(drawn_1NC > 0, velocity(x_1NC, sigma).float(), known_1NC)

    return kept


def drawn_places(cells_hw: Tensor) -> Tensor:
    """A mask of the latent's places (2h, 2w), not 0 where something is drawn -> (1, N, C)."""
    places = (cells_hw > 0).float()[None, None].expand(1, latents.PACKED // 4, -1, -1)
    return latents.pack(latents.patchify(places))


def steps_left(steps: int, strength: float) -> int:
    """How many of a schedule's steps run: the nearest share, at least one, and none at strength 0."""
    return min(steps, max(1, math.floor(steps * strength + 0.5))) if strength > 0 else 0


def noise_of(request: GenerationRequest, seed: int, h: int, w: int) -> Tensor:
    """(1, N, C) float32 on the CPU: the noise of a seed, or of what it makes of the one that it varies."""
    own = latents.noise(seed, h, w)
    if request.around is None or request.amount is None:
        return own
    return between(latents.noise(request.around, h, w), own, request.amount)


def between(one: Tensor, other: Tensor, share: float) -> Tensor:
    """Spherical interpolation, which keeps the length that noise has; the ends are one and other to the bit."""
    if share in (0.0, 1.0) or torch.equal(one, other):
        return other if share == 1.0 else one
    angle = torch.acos((one * other).sum() / (one.norm() * other.norm()))
    return (torch.sin((1 - share) * angle) * one + torch.sin(share * angle) * other) / torch.sin(angle)
