"""The FLUX.2 autoencoder, as diffusers has it, and the latent normalisation that goes with it.

Knows nothing about files: `backend.model.checkpoint` loads the weights.
"""

from __future__ import annotations

from diffusers import AutoencoderKLFlux2

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
