"""The Lens transformer: a dual-stream diffusion transformer over image and text tokens, read top-down.

Own code; parameter names are those of the published checkpoints. The velocity it returns is eps - x0 at sigma in
[0, 1] (1 is noise). Knows nothing about prompts, samplers or files. Sources: the Lens paper, section 2.2, and the
published configuration; where both leave a point open, the reference pipeline (image tokens first, qk-norm eps 1e-6,
text-norm eps 1e-5, final norm splits into scale then shift).

Two ways through the same weights. `LensTransformer2DModel.forward` is the plain one, for batches of unequal length and
for training. Inference takes the parts one by one (`backend.denoising.denoiser`): text embedded once, modulation given
instead of computed, one picture without a mask, and each pointwise operation in as few passes as torch allows.

Shapes: B batch, N image tokens, L text tokens, S = N + L, C packed channels, D width, F text features, H heads,
K head size, T text-encoder layers read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backend.kernels.pointwise import Stream, add_gated, joint_qkv, norm_modulate, silu_mul
from backend.model.explicit_attention import explicit_attention
from backend.model.positions import apply_rope, attention_mask, rope_table
from backend.model.tensors import TIME_FREQUENCIES
from backend.params import DiTParams

QK_NORM_EPS = 1e-6
TEXT_NORM_EPS = 1e-5
NORM_EPS = 1e-6


class LensTransformer2DModel(nn.Module):
    """Velocity network v(x, t, text). Constructor arguments are the keys of transformer/config.json.

    With diffusers' methods (`from_pretrained`, …) it is in `backend.model.diffusers_transformer`.
    """

    def __init__(
        self,
        patch_size: int = 2,
        in_channels: int = 128,
        out_channels: int = 32,
        num_layers: int = 48,
        attention_head_dim: int = 64,
        num_attention_heads: int = 24,
        inner_dim: int | None = None,  # in the published file; heads * head size is what counts
        enc_hidden_dim: int = 2880,
        axes_dims_rope: Sequence[int] = (8, 28, 28),
        gate_mlp: bool = True,
        rms_norm: bool = True,
        multi_layer_encoder_feature: bool = True,
        selected_layer_index: Sequence[int] = (5, 11, 17, 23),
        mlp_hidden_dim: int | None = None,
    ) -> None:
        super().__init__()
        if not (gate_mlp and rms_norm and multi_layer_encoder_feature):
            raise ValueError("only gate_mlp, rms_norm and multi_layer_encoder_feature = true are Lens models")
        params = DiTParams(
            patch_size=patch_size,
            in_channels=in_channels,
            out_channels=out_channels,
            num_layers=num_layers,
            attention_head_dim=attention_head_dim,
            num_attention_heads=num_attention_heads,
            enc_hidden_dim=enc_hidden_dim,
            axes_dims_rope=(axes_dims_rope[0], axes_dims_rope[1], axes_dims_rope[2]),
            selected_layer_index=tuple(selected_layer_index),
            mlp_hidden_dim=mlp_hidden_dim,
        )
        if sum(params.axes_dims_rope) != params.attention_head_dim or any(d % 2 for d in params.axes_dims_rope):
            raise ValueError(
                f"axes_dims_rope {params.axes_dims_rope} must be even and sum to the head size "
                f"{params.attention_head_dim}"
            )
        self.params = params
        dim, layers = params.dim, len(params.selected_layer_index)
        self.img_in = nn.Linear(in_channels, dim)
        self.txt_norm = nn.ModuleList(RMSNorm(enc_hidden_dim, TEXT_NORM_EPS) for _ in range(layers))
        self.txt_in = nn.Linear(enc_hidden_dim * layers, dim)
        self.time_text_embed = TimeEmbedding(dim)
        self.transformer_blocks = nn.ModuleList(LensBlock(params) for _ in range(num_layers))
        self.norm_out = FinalNorm(dim)
        self.proj_out = nn.Linear(dim, patch_size**2 * out_channels)
        self.gradient_checkpointing = False

    def forward(
        self,
        x_BNC: Tensor,
        t_B: Tensor,
        text_BLTF: Tensor,
        grid: tuple[int, int],
        text_mask_BL: Tensor | None = None,
        taps: Sequence[int] = (),
    ) -> Tensor:
        """Velocity (B, N, C); or with `taps`, blocks in rising order, the image tokens after each: (taps, B, N, D).

        `t_B`: sigma in [0, 1]. `text_BLTF`: encoder features, layer by layer, L may be 0 (the unconditional branch).
        `grid`: latent height and width, N = h * w, row by row. `text_mask_BL`: True for real tokens, for batches of
        unequal length; None where every token is real. Behind the last of `taps` nothing is computed.
        """
        h, w = grid
        if x_BNC.shape[1] != h * w:
            raise ValueError(f"{x_BNC.shape[1]} image tokens do not fill a latent of {h} x {w}")
        dtype = self.img_in.weight.dtype
        image = self.img_in(x_BNC.to(dtype))
        text = self.embed_text(text_BLTF.to(dtype))
        rope = rope_table(self.params, h, w, text.shape[1], image.device)
        mask = None if text_mask_BL is None else attention_mask(text_mask_BL, h * w)
        temb = self.time_text_embed(t_B, dtype)
        tapped: list[Tensor] = []
        for place, block in enumerate(self.blocks()):
            if self.gradient_checkpointing and torch.is_grad_enabled():
                image, text = torch.utils.checkpoint.checkpoint(  # type: ignore[misc]
                    block, image, text, temb, rope, mask, use_reentrant=False
                )
            else:
                image, text = block(image, text, temb, rope, mask)
            if place in taps:
                tapped.append(image)
                if place == taps[-1]:
                    return torch.stack(tapped)
        return self.proj_out(self.norm_out(image, temb))

    def embed_text(self, text_BLTF: Tensor) -> Tensor:
        """(B, L, D): each encoder layer normalised on its own, joined in layer order, projected."""
        parts = [norm(text_BLTF[:, :, i]) for i, norm in enumerate(self.txt_norm)]
        return self.txt_in(torch.cat(parts, dim=-1))

    def blocks(self) -> Iterator[LensBlock]:
        """The blocks in order; what a `backend.denoising.denoiser.BlockSource` is."""
        for block in self.transformer_blocks:
            assert isinstance(block, LensBlock)
            yield block

    def drop_modulation(self) -> None:
        """Let go of the layers that only the time embedding feeds, a third of the published parameters.

        What they say is known before the first step (`backend.denoising.modulation`). `forward` is gone with them.
        """
        del self.time_text_embed, self.norm_out.linear
        for block in self.blocks():
            del block.img_mod, block.txt_mod


class RMSNorm(nn.Module):
    """Variance in float32; the product is cast to the weight's dtype before the weight multiplies it."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        variance = x.float().square().mean(-1, keepdim=True)
        return (x * torch.rsqrt(variance + self.eps)).to(self.weight.dtype) * self.weight

    def modulated(self, x: Tensor, m: Modulation) -> Tensor:
        """`modulate(self(x), m)` in inference's way."""
        return norm_modulate(x, self.weight, self.eps, m.shift, m.scale)


class _TimestepMLP(nn.Module):
    """Holds `timestep_embedder.linear_1/2`."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(TIME_FREQUENCIES, dim)
        self.linear_2 = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(x)))


class TimeEmbedding(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.timestep_embedder = _TimestepMLP(dim)

    def forward(self, t_B: Tensor, dtype: torch.dtype) -> Tensor:
        """(B, D) from sigma in [0, 1]."""
        return self.timestep_embedder(time_features(t_B).to(dtype))


def time_features(t_B: Tensor) -> Tensor:
    """(B, 256) float32: cosines then sines of 1000 t at 128 frequencies from 1 down to almost 1/10000."""
    half = TIME_FREQUENCIES // 2
    exponent = torch.arange(half, dtype=torch.float32, device=t_B.device) / half
    angle = 1000.0 * t_B.float()[:, None] * torch.exp(-torch.log(torch.tensor(10000.0)) * exponent)
    return torch.cat((angle.cos(), angle.sin()), dim=-1)


class Modulation(NamedTuple):
    """Shift, scale and gate (B, 1, D) of one half of a block."""

    shift: Tensor
    scale: Tensor
    gate: Tensor


class BlockModulation(NamedTuple):
    """What the time says to one block: (B, 6 D) for the image stream and for the text stream."""

    image: Tensor
    text: Tensor


class LensBlock(nn.Module):
    """Joint attention over both streams, then a SwiGLU each; every step modulated by the time embedding."""

    def __init__(self, params: DiTParams) -> None:
        super().__init__()
        dim = params.dim
        # Index 1 of the Sequential: the published names are img_mod.1 and txt_mod.1, behind the SiLU.
        self.img_mod = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        self.txt_mod = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        self.img_norm1, self.img_norm2 = RMSNorm(dim, NORM_EPS), RMSNorm(dim, NORM_EPS)
        self.txt_norm1, self.txt_norm2 = RMSNorm(dim, NORM_EPS), RMSNorm(dim, NORM_EPS)
        self.attn = JointAttention(params)
        self.img_mlp = SwiGLU(dim, params.mlp_dim)
        self.txt_mlp = SwiGLU(dim, params.mlp_dim)

    def forward(
        self,
        image: Tensor,
        text: Tensor,
        time: Tensor | BlockModulation,
        rope: Tensor,
        mask: Tensor | None = None,
        *,
        text_unread: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """(B, N, D), (B, L, D) -> the same, one block further.

        `time`: the time embedding (B, D), or the modulation where it is known already: then in inference's way, without
        a mask. `text_unread`: nobody reads the text that comes out (the last block), so it comes out as it came.
        """
        if isinstance(time, BlockModulation):
            assert mask is None, "inference runs each picture in its own length"
            return self._infer(image, text, time, rope, text_unread)
        m = self.modulation(time)
        image1, image2 = split_modulation(m.image)
        text1, text2 = split_modulation(m.text)
        image_out, text_out = self.attn(
            modulate(self.img_norm1(image), image1), modulate(self.txt_norm1(text), text1), rope, mask
        )
        image, text = image + image1.gate * image_out, text + text1.gate * text_out
        image = image + image2.gate * self.img_mlp(modulate(self.img_norm2(image), image2))
        text = text + text2.gate * self.txt_mlp(modulate(self.txt_norm2(text), text2))
        return image, text

    def modulation(self, temb: Tensor) -> BlockModulation:
        return BlockModulation(self.img_mod(temb), self.txt_mod(temb))

    def _infer(
        self, image: Tensor, text: Tensor, m: BlockModulation, rope: Tensor, text_unread: bool
    ) -> tuple[Tensor, Tensor]:
        """Attend with fewer passes; a stream of no tokens costs nothing, nor does what nobody reads."""
        image1, image2 = split_modulation(m.image)
        text1, text2 = split_modulation(m.text)
        silent = text_unread or text.shape[1] == 0
        image_out, text_out = self.attn.infer(
            self.img_norm1.modulated(image, image1),
            self.txt_norm1.modulated(text, text1) if text.shape[1] else None,
            rope,
            text_unread=silent,
        )
        image = add_gated(image, image1.gate, image_out)
        image = add_gated(image, image2.gate, self.img_mlp.infer(self.img_norm2.modulated(image, image2)))
        if text_out is not None:
            text = add_gated(text, text1.gate, text_out)
            text = add_gated(text, text2.gate, self.txt_mlp.infer(self.txt_norm2.modulated(text, text2)))
        return image, text


def split_modulation(vector_BD6: Tensor) -> tuple[Modulation, Modulation]:
    """Order of the six parts: shift, scale, gate of the attention half, then of the MLP half."""
    parts = vector_BD6[:, None].chunk(6, dim=-1)
    return Modulation(*parts[:3]), Modulation(*parts[3:])


def modulate(x: Tensor, m: Modulation) -> Tensor:
    return x * (1 + m.scale) + m.shift


class JointAttention(nn.Module):
    """One softmax over image tokens then text tokens; separate projections and qk-norms a stream."""

    def __init__(self, params: DiTParams) -> None:
        super().__init__()
        dim, head = params.dim, params.attention_head_dim
        self.heads = params.num_attention_heads
        self.explicit = False  # training on a CPU sets it: see explicit_attention
        self.img_qkv = nn.Linear(dim, 3 * dim)
        self.txt_qkv = nn.Linear(dim, 3 * dim)
        self.norm_q, self.norm_k = RMSNorm(head, QK_NORM_EPS), RMSNorm(head, QK_NORM_EPS)
        self.norm_added_q, self.norm_added_k = RMSNorm(head, QK_NORM_EPS), RMSNorm(head, QK_NORM_EPS)
        # Index 0 of a ModuleList: the published name is to_out.0.
        self.to_out = nn.ModuleList([nn.Linear(dim, dim)])
        self.to_add_out = nn.Linear(dim, dim)

    def forward(self, image: Tensor, text: Tensor, rope: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        n = image.shape[1]
        qi, ki, vi = self._heads(self.img_qkv(image))
        qt, kt, vt = self._heads(self.txt_qkv(text))
        q = torch.cat((self.norm_q(qi), self.norm_added_q(qt)), dim=1)
        k = torch.cat((self.norm_k(ki), self.norm_added_k(kt)), dim=1)
        v = torch.cat((vi, vt), dim=1)
        q, k = apply_rope(q, rope), apply_rope(k, rope)
        attend = explicit_attention if self.explicit else F.scaled_dot_product_attention
        out = attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask)
        out = out.transpose(1, 2).flatten(2)
        return self.to_out[0](out[:, :n]), self.to_add_out(out[:, n:])

    def infer(
        self, image: Tensor, text: Tensor | None, rope: Tensor, *, text_unread: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Do what `forward` does for one picture without a mask.

        `text`: None without text tokens. `text_unread`: no text queries, and None in place of the text's output. The
        text's query rows are still projected with its keys and values: they are a third of one matrix product over L
        tokens, and without them the weight would have to be cut, which packed formats do not allow.
        """
        n = image.shape[1]
        streams = [Stream(self.img_qkv(image), self.norm_q.weight, self.norm_k.weight)]
        if text is not None:
            streams.append(Stream(self.txt_qkv(text), self.norm_added_q.weight, self.norm_added_k.weight))
        q, k, v = joint_qkv(streams, rope, self.heads, QK_NORM_EPS, query_streams=1 if text_unread else 2)
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        if text_unread:
            return self.to_out[0](out), None
        return self.to_out[0](out[:, :n]), self.to_add_out(out[:, n:])

    def _heads(self, qkv_BSD3: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Fused projection ordered q, k, v, then head, then dimension -> three (B, S, H, K)."""
        b, s, width = qkv_BSD3.shape
        # The head size is spelt out: -1 is ambiguous where s is 0 (no text tokens).
        q, k, v = qkv_BSD3.view(b, s, 3, self.heads, width // (3 * self.heads)).unbind(2)
        return q, k, v


class SwiGLU(nn.Module):
    """w2(silu(w1 x) * w3 x), no biases."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(dim, hidden, bias=False)
        self.w2 = nn.Linear(hidden, dim, bias=False)
        self.w3 = nn.Linear(dim, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))

    def infer(self, x: Tensor) -> Tensor:
        return self.w2(silu_mul(self.w1(x), self.w3(x)))


class FinalNorm(nn.Module):
    """LayerNorm without affine; its modulation splits into scale, then shift (FLUX has the opposite order)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, 2 * dim)

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        return self.modulated(x, self.modulation(temb))

    def modulation(self, temb: Tensor) -> Tensor:
        """(B, 2 D)."""
        return self.linear(F.silu(temb))

    @staticmethod
    def modulated(x: Tensor, modulation_BD2: Tensor) -> Tensor:
        scale, shift = modulation_BD2[:, None].chunk(2, dim=-1)
        return F.layer_norm(x, x.shape[-1:], eps=NORM_EPS) * (1 + scale) + shift
