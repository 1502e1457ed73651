"""The FLUX.2 autoencoder, as diffusers has it, and the latent normalisation that goes with it.

Knows nothing about files: `backend.model.checkpoint` loads the weights. The functions below are the only places that
call the network, because diffusers types its outputs as unions that no type checker can follow.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from diffusers.models.autoencoders.autoencoder_kl_flux2 import AutoencoderKLFlux2
from torch import Tensor

from backend.params import VAEParams


def build_vae(params: VAEParams) -> AutoencoderKLFlux2:
    """An untrained autoencoder in evaluation mode; 3 colour channels, 2x2 patches, scale 1/8."""
    levels = len(params.block_out_channels)
    vae = AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=params.block_out_channels,
        layers_per_block=params.layers_per_block,
        latent_channels=params.latent_channels,
        norm_num_groups=params.norm_num_groups,
        sample_size=params.sample_size,
        mid_block_add_attention=params.mid_block_add_attention,
        batch_norm_eps=params.batch_norm_eps,
    )
    return vae.eval()


def encode_mean(vae: AutoencoderKLFlux2, image_BCHW: Tensor) -> Tensor:
    """Picture in [-1, 1] -> mean of the latent distribution (B, 32, H/8, W/8)."""
    return cast(Any, vae).encode(image_BCHW).latent_dist.mean


def decode_latent(vae: AutoencoderKLFlux2, z_BCHW: Tensor) -> Tensor:
    """(B, 32, H/8, W/8) -> picture, about [-1, 1]."""
    return cast(Any, vae).decode(z_BCHW).sample


def latent_statistics(vae: AutoencoderKLFlux2) -> tuple[Tensor, Tensor, float]:
    """Mean and variance (128,) float32 of the packed channels, and the epsilon that goes with them."""
    bn = vae.bn
    assert bn.running_mean is not None and bn.running_var is not None
    return bn.running_mean.float(), bn.running_var.float(), float(cast(Any, vae.config).batch_norm_eps)


@torch.no_grad()
def set_latent_statistics(vae: AutoencoderKLFlux2, mean_C: Tensor, var_C: Tensor) -> None:
    """Store measured statistics of the packed channels."""
    bn = vae.bn
    assert bn.running_mean is not None and bn.running_var is not None and bn.num_batches_tracked is not None
    bn.running_mean.copy_(mean_C)
    bn.running_var.copy_(var_C)
    bn.num_batches_tracked.fill_(1)
