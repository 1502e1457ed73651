"""The FLUX.2 autoencoder: building it, its two directions and the latent normalisation that goes with it.

Knows nothing about files: `backend.model.checkpoint` loads the weights. The network itself is in
`backend.model.vae_network`, decoding for pictures in `backend.model.decode`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from backend.model.decode import decode_latent
from backend.model.vae_network import AutoencoderKLFlux2
from backend.params import VAEParams

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl_flux2 import AutoencoderKLFlux2 as DiffusersAutoencoder

__all__ = [
    "AutoencoderKLFlux2",
    "build_diffusers_vae",
    "build_vae",
    "decode_latent",
    "encode_mean",
    "latent_statistics",
    "set_latent_statistics",
]


def build_vae(params: VAEParams) -> AutoencoderKLFlux2:
    """An untrained autoencoder in evaluation mode; 3 colour channels, 2x2 patches, scale 1/8."""
    return AutoencoderKLFlux2(params).eval()


def build_diffusers_vae(params: VAEParams) -> DiffusersAutoencoder:
    """The same network as diffusers states it, to be compared with: its tensors have the same names and shapes."""
    from diffusers.models.autoencoders.autoencoder_kl_flux2 import AutoencoderKLFlux2 as DiffusersAutoencoder

    levels = len(params.block_out_channels)
    vae = DiffusersAutoencoder(
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
    mean, _ = vae.quant_conv(vae.encoder(image_BCHW)).chunk(2, dim=1)
    return mean


def latent_statistics(vae: AutoencoderKLFlux2) -> tuple[Tensor, Tensor, float]:
    """Mean and variance (128,) float32 of the packed channels, and the epsilon that goes with them."""
    bn = vae.bn
    assert bn.running_mean is not None and bn.running_var is not None
    return bn.running_mean.float(), bn.running_var.float(), float(bn.eps)


@torch.no_grad()
def set_latent_statistics(vae: AutoencoderKLFlux2, mean_C: Tensor, var_C: Tensor) -> None:
    """Store measured statistics of the packed channels."""
    bn = vae.bn
    assert bn.running_mean is not None and bn.running_var is not None and bn.num_batches_tracked is not None
    bn.running_mean.copy_(mean_C)
    bn.running_var.copy_(var_C)
    bn.num_batches_tracked.fill_(1)
