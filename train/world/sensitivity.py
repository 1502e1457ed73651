"""How much each latent channel shows in the picture: weights for the loss of a small model.

The autoencoder's statistics bring every channel to variance 1, so a plain loss spends the same on each. They do not
show alike: in Lens-Nano's autoencoder two of 32 channels make 54 % of what a disturbance changes in the picture, eight
make 86 %, and sixteen less than 4 % together. The paper has no such weights; `SceneData.channel_power` = 0 is its
loss.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

PATCH = (
    4  # packed channels that are one of the autoencoder's: the 2 x 2 positions of `backend.denoising.latents.patchify`
)
_NUDGE = 0.5  # standard deviation of the disturbance, where the channel's own is 1


@torch.no_grad()
def sensitivity(decode: Callable[[Tensor], Tensor], x_BNC: Tensor) -> Tensor:
    """(C,) mean squared change of the decoded picture when one channel is disturbed; the same for the four of a patch.

    `decode`: packed, normalised latents -> pictures, any units. `x_BNC`: typical ones.
    """
    generator = torch.Generator().manual_seed(0)
    noise = _NUDGE * torch.randn(*x_BNC.shape[:2], PATCH, generator=generator).to(x_BNC.device)
    plain = decode(x_BNC)
    changes: list[Tensor] = []
    for first in range(0, x_BNC.shape[-1], PATCH):
        disturbed = x_BNC.clone()
        disturbed[..., first : first + PATCH] += noise
        changes.append((decode(disturbed) - plain).square().mean())
    return torch.stack(changes).repeat_interleave(PATCH)


def loss_weights(sensitivity_C: Tensor, power: float) -> Tensor:
    """(C,) of mean 1, proportional to sensitivity^power: 0 is the plain loss, 1 that of the pixels to first order."""
    weights = sensitivity_C.double() ** power
    return (weights / weights.mean()).float()
