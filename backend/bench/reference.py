"""The published pipeline, stated plainly: what `lens bench --against reference` measures this project against.

Own words, after the description of the reference implementation; nothing of `backend.model.transformer` is used, so a
mistake would have to be made twice. It keeps what makes the published pipeline slow or coarse: conditional and
unconditional branch always run as one batch of two, at guidance 1 too; text is padded to one length and attended
under a float mask; every block computes its modulation in the loop; the last block still updates the text; rotary
embeddings are complex products; latents and times are rounded to the network's dtype at every step; the autoencoder
decodes the whole picture in one piece.

The weights are looked up by their public names, so this shares every tensor with a network that is already loaded.

Legend: B batch, N image tokens, L text tokens (padded), S = N + L, C packed channels, D width, F text features,
H heads, K head size, T text-encoder layers read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from backend.params import DiTParams, VAEParams

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl_flux2 import AutoencoderKLFlux2

POSITIONS = 4096  # rows of the published rotary tables, each way


@dataclass(frozen=True)
class Text:
    """Both branches' features padded to one length, conditional first: (2, L, T, F) and (2, L) True for real tokens."""

    features_BLTF: Tensor
    keep_BL: Tensor


def pad_text(conditional_1LTF: Tensor, unconditional_1LTF: Tensor | None) -> Text:
    """Zero-padded to the longer branch. None, or no tokens: a blank negative prompt, zeros that nobody attends to."""
    length = conditional_1LTF.shape[1]
    negative = conditional_1LTF[:, :0] if unconditional_1LTF is None else unconditional_1LTF
    longest = max(length, negative.shape[1])
    rows = [F.pad(part, (0, 0, 0, 0, 0, longest - part.shape[1])) for part in (conditional_1LTF, negative)]
    positions = torch.arange(longest, device=conditional_1LTF.device)
    keep = torch.stack([positions < length, positions < negative.shape[1]])
    return Text(torch.cat(rows), keep)


@dataclass(frozen=True)
class ReferenceLens:
    """The transformer as functions over `weights`: public name -> tensor, all of one dtype on one device."""

    weights: Mapping[str, Tensor]
    params: DiTParams

    @property
    def dtype(self) -> torch.dtype:
        return self.weights["img_in.weight"].dtype

    def velocity(
        self, x_BNC: Tensor, t_B: Tensor, text_BLTF: Tensor, keep_BL: Tensor, grid: tuple[int, int], rope: RopeTables
    ) -> Tensor:
        """(B, N, C). `t_B` is sigma in [0, 1]."""
        image = self._linear("img_in", x_BNC)
        layers = [
            rms_norm(text_BLTF[:, :, i], self.weights[f"txt_norm.{i}.weight"], 1e-5) for i in range(text_BLTF.shape[2])
        ]
        text = self._linear("txt_in", torch.cat(layers, dim=-1))
        temb = self._time_embedding(t_B)
        turns = rope.rows(*grid, text.shape[1])
        mask = additive_mask(keep_BL, image.shape[1]).to(image.dtype)
        for index in range(self.params.num_layers):
            text, image = self._block(f"transformer_blocks.{index}", image, text, temb, turns, mask)
        scale, shift = self._linear("norm_out.linear", F.silu(temb)).chunk(2, dim=-1)
        image = F.layer_norm(image, image.shape[-1:], eps=1e-6) * (1 + scale)[:, None] + shift[:, None]
        return self._linear("proj_out", image)

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"))

    def _time_embedding(self, t_B: Tensor) -> Tensor:
        frequencies = torch.exp(-math.log(10000.0) / 128 * torch.arange(128, dtype=torch.float32, device=t_B.device))
        angles = 1000.0 * (t_B.float()[:, None] * frequencies[None])
        features = torch.cat((angles.cos(), angles.sin()), dim=-1).to(self.dtype)
        name = "time_text_embed.timestep_embedder"
        return self._linear(f"{name}.linear_2", F.silu(self._linear(f"{name}.linear_1", features)))

    def _block(
        self, name: str, image: Tensor, text: Tensor, temb: Tensor, turns: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """One block, modulation computed here and now; (text, image) as published."""
        weights = self.weights
        img = self._linear(f"{name}.img_mod.1", F.silu(temb))[:, None].chunk(6, dim=-1)
        txt = self._linear(f"{name}.txt_mod.1", F.silu(temb))[:, None].chunk(6, dim=-1)
        image_in = rms_norm(image, weights[f"{name}.img_norm1.weight"], 1e-6) * (1 + img[1]) + img[0]
        text_in = rms_norm(text, weights[f"{name}.txt_norm1.weight"], 1e-6) * (1 + txt[1]) + txt[0]
        image_out, text_out = self._attention(f"{name}.attn", image_in, text_in, turns, mask)
        image, text = image + img[2] * image_out, text + txt[2] * text_out
        image_in = rms_norm(image, weights[f"{name}.img_norm2.weight"], 1e-6) * (1 + img[4]) + img[3]
        text_in = rms_norm(text, weights[f"{name}.txt_norm2.weight"], 1e-6) * (1 + txt[4]) + txt[3]
        image = image + img[5] * self._feed_forward(f"{name}.img_mlp", image_in)
        text = text + txt[5] * self._feed_forward(f"{name}.txt_mlp", text_in)
        return text, image

    def _attention(self, name: str, image: Tensor, text: Tensor, turns: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        heads = self.params.num_attention_heads
        parts: list[list[Tensor]] = []
        for stream, x, norms in (("img", image, ("norm_q", "norm_k")), ("txt", text, ("norm_added_q", "norm_added_k"))):
            fused = self._linear(f"{name}.{stream}_qkv", x)
            q, k, v = (part.unflatten(-1, (heads, -1)) for part in fused.chunk(3, dim=-1))
            q = rms_norm(q, self.weights[f"{name}.{norms[0]}.weight"], 1e-6)
            k = rms_norm(k, self.weights[f"{name}.{norms[1]}.weight"], 1e-6)
            parts.append([q, k, v])
        q, k, v = (torch.cat(pair, dim=1) for pair in zip(*parts, strict=True))  # image first
        q, k = turn(q, turns), turn(k, turns)
        out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask)
        out = out.transpose(1, 2).flatten(2)
        n = image.shape[1]
        return self._linear(f"{name}.to_out.0", out[:, :n]), self._linear(f"{name}.to_add_out", out[:, n:])

    def _feed_forward(self, name: str, x: Tensor) -> Tensor:
        return self._linear(f"{name}.w2", F.silu(self._linear(f"{name}.w1", x)) * self._linear(f"{name}.w3", x))


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Variance in float32; the product goes back to the weight's dtype before the weight multiplies it."""
    variance = x.to(torch.float32).pow(2).mean(-1, keepdim=True)
    return (x * torch.rsqrt(variance + eps)).to(weight.dtype) * weight


class RopeTables:
    """Complex turns of every position from -4096 to 4095 on the three axes; a picture's rows are gathered from them."""

    def __init__(self, params: DiTParams, device: torch.device) -> None:
        positions = torch.arange(-POSITIONS, POSITIONS, dtype=torch.float32)
        self.axes = [
            torch.polar(torch.ones(2 * POSITIONS, size // 2), torch.outer(positions, inverse_frequencies(size))).to(
                device
            )
            for size in params.axes_dims_rope
        ]

    def rows(self, h: int, w: int, text: int) -> Tensor:
        """(S, K/2) complex: image tokens row by row around the centre, then the text on a diagonal beside them."""
        frame, height, width = self.axes
        rows = POSITIONS + torch.arange(-(h - h // 2), h // 2, device=frame.device)
        columns = POSITIONS + torch.arange(-(w - w // 2), w // 2, device=frame.device)
        image = torch.cat(
            (
                frame[POSITIONS].expand(h, w, -1),
                height[rows][:, None].expand(h, w, -1),
                width[columns][None].expand(h, w, -1),
            ),
            dim=-1,
        ).flatten(0, 1)
        start = POSITIONS + max(h // 2, w // 2)
        words = torch.cat([axis[start : start + text] for axis in self.axes], dim=-1)
        return torch.cat((image, words))


def inverse_frequencies(size: int) -> Tensor:
    return 1.0 / torch.pow(10000.0, torch.arange(0, size, 2, dtype=torch.float32) / size)


def turn(x_BSHK: Tensor, turns_SK: Tensor) -> Tensor:
    """Neighbouring pairs as complex numbers, multiplied in float32."""
    pairs = torch.view_as_complex(x_BSHK.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * turns_SK[None, :, None]).flatten(-2).to(x_BSHK.dtype)


def additive_mask(keep_BL: Tensor, image_tokens: int) -> Tensor:
    """(B, 1, 1, S) float32: 0 where a key may be seen, -inf at padded text."""
    keep = F.pad(keep_BL, (image_tokens, 0), value=True)
    return torch.zeros(keep.shape, device=keep.device).masked_fill(~keep, -math.inf)[:, None, None]


# ------------------------------------------------------------------------------------------------------- the pipeline


def denoise(
    lens: ReferenceLens,
    noise_1NC: Tensor,
    text: Text,
    sigmas: Sequence[float],
    guidance: float,
    grid: tuple[int, int],
    *,
    batched: bool = True,
    on_step: Callable[[int], None] | None = None,
) -> Tensor:
    """The packed latent (1, N, C) after the last step.

    `batched=False` runs the same two branches one after the other: the same maths at batch 1, so its distance from the
    published form is what changing nothing but the batch size does. `on_step(i)` after step i (0-based).
    """
    dtype = lens.dtype
    rope = RopeTables(lens.params, noise_1NC.device)
    text_BLTF = text.features_BLTF.to(dtype)
    x = noise_1NC.to(dtype)
    for i, (sigma, following) in enumerate(pairwise(sigmas)):
        t = torch.full((2,), 1000.0 * sigma, device=x.device).to(dtype) / 1000.0  # in that dtype: rounded twice
        doubled = torch.cat((x, x))
        spans = [slice(0, 2)] if batched else [slice(0, 1), slice(1, 2)]
        v = torch.cat([lens.velocity(doubled[s], t[s], text_BLTF[s], text.keep_BL[s], grid, rope) for s in spans])
        conditional, unconditional = v.chunk(2)
        combined = unconditional + guidance * (conditional - unconditional)
        wanted, got = (part.norm(dim=-1, keepdim=True) for part in (conditional, combined))
        combined = combined * torch.where(got > 0, wanted / got.clamp(min=1e-12), torch.ones_like(got))
        x = (x.float() + (following - sigma) * combined).to(dtype)
        if on_step is not None:
            on_step(i)
    return x


def build_decoder(tensors: Mapping[str, Tensor], params: VAEParams) -> AutoencoderKLFlux2:
    """diffusers' own autoencoder over `tensors`: shared wherever they lie in the plain memory format."""
    from backend.loading import Uninitialised
    from backend.model.autoencoder import build_diffusers_vae

    with torch.device("meta"), Uninitialised():
        vae = build_diffusers_vae(params)
    vae.load_state_dict({name: tensor.contiguous() for name, tensor in tensors.items()}, strict=True, assign=True)
    return vae.eval().requires_grad_(False)


def decode(vae: AutoencoderKLFlux2, x_1NC: Tensor, grid: tuple[int, int]) -> Tensor:
    """(1, 3, 16 h, 16 w), about [-1, 1]: statistics undone in the autoencoder's dtype, one pass of diffusers' own."""
    h, w = grid
    typed = cast(Any, vae)
    dtype = typed.decoder.conv_in.weight.dtype
    mean, variance = (part.view(1, -1, 1, 1) for part in (typed.bn.running_mean, typed.bn.running_var))
    shift, scale = (-mean).to(dtype), (1 / torch.sqrt(variance + typed.config.batch_norm_eps)).to(dtype)
    z = x_1NC.to(dtype).transpose(1, 2).unflatten(2, (h, w)) / scale - shift
    z = z.unflatten(1, (-1, 2, 2)).permute(0, 1, 4, 2, 5, 3).flatten(4).flatten(2, 3)
    return typed.decode(z, return_dict=False)[0]


def to_pixels(decoded_1CHW: Tensor) -> Tensor:
    """(H, W, 3) uint8: clamped, scaled, truncated."""
    return ((decoded_1CHW[0].float().clamp(-1, 1) + 1) * 127.5).to(torch.uint8).permute(1, 2, 0)
