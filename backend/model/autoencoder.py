"""The FLUX.2 autoencoder as a tree of plain torch modules, read top-down; names are those of the published checkpoints.

Own code, because importing diffusers' class costs more processor time than torch itself: it brings every autoencoder,
quantiser and adapter that diffusers knows. Its `forward`s are the plain statement, for training and for encoding;
`backend.model.decode` is the lean way through the same weights. Source: the published vae/config.json and diffusers'
`AutoencoderKLFlux2`, which the tests hold every output against. The order in which parts are made is diffusers' too, so
that one seed gives the same untrained network. Below the network: building it, its mean latent, and the statistics
that normalise a latent.

Knows nothing about files: `backend.loading` fills it. Shapes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from backend.model.tensors import COLOURS, PATCH
from backend.params import VAEParams

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl_flux2 import AutoencoderKLFlux2 as DiffusersAutoencoder


from collections.abc import Iterator
from itertools import pairwise

from torch import nn
from torch.nn import functional as F

NORM_EPS = 1e-6


class AutoencoderKLFlux2(nn.Module):
    """Encoder, decoder, the 1x1 convolutions between them and the statistics of packed latents."""

    def __init__(self, params: VAEParams) -> None:
        super().__init__()
        self.params = params
        z = params.latent_channels
        self.encoder = VaeEncoder(params)
        self.decoder = VaeDecoder(params)
        self.quant_conv = nn.Conv2d(2 * z, 2 * z, 1)
        self.post_quant_conv = nn.Conv2d(z, z, 1)
        self.bn = nn.BatchNorm2d(PATCH * PATCH * z, eps=params.batch_norm_eps, affine=False)


class VaeEncoder(nn.Module):
    """(B, 3, H, W) -> (B, 2 Z, H/8, W/8): mean and log-variance, before `quant_conv`."""

    def __init__(self, params: VAEParams) -> None:
        super().__init__()
        widths, groups = params.block_out_channels, params.norm_num_groups
        self.conv_in = nn.Conv2d(COLOURS, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            UpStage(narrow, wide, params.layers_per_block, groups, down=i + 1 < len(widths))
            for i, (narrow, wide) in enumerate(pairwise((widths[0], *widths)))
        )
        self.mid_block = Middle(widths[-1], groups, params.mid_block_add_attention)
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], eps=NORM_EPS)
        self.conv_out = nn.Conv2d(widths[-1], 2 * params.latent_channels, 3, padding=1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x = self.conv_in(x_BCHW)
        for stage in self.down_blocks:
            x = stage(x)
        return self.conv_out(F.silu(self.conv_norm_out(self.mid_block(x))))


class VaeDecoder(nn.Module):
    """(B, Z, H/8, W/8), after `post_quant_conv`, -> (B, 3, H, W)."""

    def __init__(self, params: VAEParams) -> None:
        super().__init__()
        widths, groups = params.block_out_channels[::-1], params.norm_num_groups
        self.conv_in = nn.Conv2d(params.latent_channels, widths[0], 3, padding=1)
        self.up_blocks = nn.ModuleList()  # named before the middle, made after it
        self.mid_block = Middle(widths[0], groups, params.mid_block_add_attention)
        self.up_blocks.extend(
            UpStage(wide, narrow, params.layers_per_block + 1, groups, up=i + 1 < len(widths))
            for i, (wide, narrow) in enumerate(pairwise((widths[0], *widths)))
        )
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], eps=NORM_EPS)
        self.conv_out = nn.Conv2d(widths[-1], COLOURS, 3, padding=1)

    def forward(self, z_BCHW: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(z_BCHW))
        for stage in self.up_blocks:
            x = stage(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))

    def stages(self) -> Iterator[UpStage]:
        """The up-blocks in order."""
        for stage in self.up_blocks:
            assert isinstance(stage, UpStage)
            yield stage


class UpStage(nn.Module):
    """Residual blocks at one resolution, then half or twice that resolution."""

    def __init__(
        self, inside: int, outside: int, layers: int, groups: int, *, down: bool = False, up: bool = False
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(Resnet(inside if i == 0 else outside, outside, groups) for i in range(layers))
        if down:
            self.downsamplers = nn.ModuleList([Downsample(outside)])
        if up:
            self.upsamplers = nn.ModuleList([Upsample(outside)])

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x = x_BCHW
        for part in (*self.resnets, *self.resamplers()):
            x = part(x)
        return x

    def blocks(self) -> Iterator[Resnet]:
        for block in self.resnets:
            assert isinstance(block, Resnet)
            yield block

    def resamplers(self) -> nn.ModuleList:
        """One, or none."""
        return getattr(self, "downsamplers", None) or getattr(self, "upsamplers", None) or nn.ModuleList()

    def upsampling(self) -> nn.Conv2d | None:
        """The convolution after doubling; None in the last stage."""
        part = next(iter(self.resamplers()), None)
        assert part is None or isinstance(part, Upsample)
        return part.conv if part is not None else None


class Resnet(nn.Module):
    """x + two normalised 3x3 convolutions of it; a 1x1 convolution of x where the width changes."""

    def __init__(self, inside: int, outside: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, inside, eps=NORM_EPS)
        self.conv1 = nn.Conv2d(inside, outside, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, outside, eps=NORM_EPS)
        self.conv2 = nn.Conv2d(outside, outside, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(inside, outside, 1) if inside != outside else None

    def forward(self, x_BCHW: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x_BCHW)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (x_BCHW if self.conv_shortcut is None else self.conv_shortcut(x_BCHW))


class Middle(nn.Module):
    """Residual block, attention over all positions (where the model has it), residual block."""

    def __init__(self, width: int, groups: int, attention: bool) -> None:
        super().__init__()
        self.attentions = nn.ModuleList()
        before = Resnet(width, width, groups)
        if attention:
            self.attentions.append(VaeAttention(width, groups))
        self.resnets = nn.ModuleList([before, Resnet(width, width, groups)])

    def forward(self, x_BCHW: Tensor) -> Tensor:
        before, after = self.resnets
        x = before(x_BCHW)
        for attention in self.attentions:
            x = attention(x)
        return after(x)

    def parts(self) -> tuple[Resnet, VaeAttention | None, Resnet]:
        before, after = self.resnets
        attention = next(iter(self.attentions), None)
        assert isinstance(before, Resnet) and isinstance(after, Resnet)
        assert attention is None or isinstance(attention, VaeAttention)
        return before, attention, after


class VaeAttention(nn.Module):
    """One head as wide as the picture is deep, every position to every other."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, width, eps=NORM_EPS)
        self.to_q, self.to_k, self.to_v = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, width)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])  # a list, as diffusers has a dropout behind it

    def forward(self, x_BCHW: Tensor) -> Tensor:
        n_BNC = self.group_norm(x_BCHW).flatten(2).transpose(1, 2)
        q, k, v = (part(n_BNC).unsqueeze(1) for part in (self.to_q, self.to_k, self.to_v))
        attended_BNC = self.to_out[0](F.scaled_dot_product_attention(q, k, v).squeeze(1))
        return x_BCHW + attended_BNC.transpose(1, 2).unflatten(2, x_BCHW.shape[2:])


class Upsample(nn.Module):
    """Twice the side: every position four times, then a convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.conv(F.interpolate(x_BCHW, scale_factor=2.0, mode="nearest"))


class Downsample(nn.Module):
    """Half the side; the border of zeros is to the right and below only."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.conv(F.pad(x_BCHW, (0, 1, 0, 1)))


def build_vae(params: VAEParams) -> AutoencoderKLFlux2:
    """An untrained autoencoder in evaluation mode; 3 colour channels, 2x2 patches, scale 1/8."""
    return AutoencoderKLFlux2(params).eval()


def build_diffusers_vae(params: VAEParams) -> DiffusersAutoencoder:
    """Build the network as diffusers states it, to be compared with: its tensors have the same names and shapes."""
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
