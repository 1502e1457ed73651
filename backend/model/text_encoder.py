"""GPT-OSS in torch, cut to what Lens needs: the residual stream after a few blocks, and logits for training.

State-dict keys are those of Hugging Face's `GptOssForCausalLM` after dequantisation, so any gpt-oss checkpoint maps
one to one. Knows nothing about prompts, templates or files. Sources: facts of the published gpt-oss configuration;
YaRN (arXiv 2309.00071) with an attention factor of 0.1 ln(factor) + 1.

Shapes: B batch, L tokens, F width, H heads, G key/value heads, K head size, E experts, I expert width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backend.params import TextEncoderParams

SWIGLU_ALPHA = 1.702


def yarn_frequencies(params: TextEncoderParams) -> tuple[Tensor, float]:
    """Inverse frequencies (K/2,) float32 and the factor on cos and sin.

    Dimensions that turn more than `beta_fast` times in the original context keep their frequency, those that turn less
    than `beta_slow` times are divided by `factor`, with a linear ramp between. `rope_truncate` rounds the ends of the
    ramp outwards to whole dimensions, as llama.cpp does; the published model does not.
    """
    dim, base = params.head_dim, params.rope_theta

    def dimension_of(turns: float) -> float:
        return dim * math.log(params.rope_original_context / (turns * 2 * math.pi)) / (2 * math.log(base))

    low, high = dimension_of(params.rope_beta_fast), dimension_of(params.rope_beta_slow)
    if params.rope_truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    index = torch.arange(dim // 2, dtype=torch.float32)
    ramp = ((index - low) / max(high - low, 0.001)).clamp(0, 1)
    plain = base ** (-2 * index / dim)
    return plain * (1 - ramp) + plain / params.rope_factor * ramp, 0.1 * math.log(params.rope_factor) + 1


def rotate(x_BLHK: Tensor, cos_LK: Tensor, sin_LK: Tensor) -> Tensor:
    """Rotate the first half of each head against the second (NeoX order); cos and sin have K/2 columns."""
    first, second = x_BLHK.chunk(2, dim=-1)
    cos, sin = cos_LK[:, None], sin_LK[:, None]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class TextRMSNorm(nn.Module):
    """Root-mean-square norm computed wholly in float32, weight included, then cast back (GPT-OSS's order)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps) * self.weight.float()).to(x.dtype)


class Attention(nn.Module):
    """Grouped-query causal attention with a learned sink per head: one extra logit that takes weight and gives none."""

    def __init__(self, params: TextEncoderParams) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = (
            params.num_attention_heads,
            params.num_key_value_heads,
            params.head_dim,
        )
        width, inner, kv = params.hidden_size, self.heads * self.head_dim, self.kv_heads * self.head_dim
        self.q_proj = nn.Linear(width, inner)
        self.k_proj = nn.Linear(width, kv)
        self.v_proj = nn.Linear(width, kv)
        self.o_proj = nn.Linear(inner, width)
        self.sinks = nn.Parameter(torch.zeros(self.heads))
        self.explicit = False  # training on a CPU sets it: the fused kernel's backward pass is slow there

    def forward(self, x_BLF: Tensor, cos: Tensor, sin: Tensor, blocked: Tensor) -> Tensor:
        """`blocked` is (B or 1, 1, L, L) bool: True where a query may not look."""
        b, n, _ = x_BLF.shape
        q = rotate(self.q_proj(x_BLF).view(b, n, self.heads, self.head_dim), cos, sin).transpose(1, 2)
        k = rotate(self.k_proj(x_BLF).view(b, n, self.kv_heads, self.head_dim), cos, sin).transpose(1, 2)
        v = self.v_proj(x_BLF).view(b, n, self.kv_heads, self.head_dim).transpose(1, 2)
        groups = self.heads // self.kv_heads
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        if self.explicit:
            logits = (q @ k.transpose(-1, -2)).float() * self.head_dim**-0.5
            logits = logits.masked_fill(blocked, torch.finfo(logits.dtype).min)
            sink = self.sinks.float().view(1, -1, 1, 1)
            peak = torch.maximum(logits.amax(-1, keepdim=True), sink).detach()
            weights = torch.exp(logits - peak)
            weights = weights / (weights.sum(-1, keepdim=True) + torch.exp(sink - peak))
            return self.o_proj((weights.to(v.dtype) @ v).transpose(1, 2).reshape(b, n, -1))
        # The sink as one more key: a spare head dimension holds 1 in every query, 0 in every key and sink / scale in
        # the sink's key, whose value is 0. So fused attention kernels compute it; eight spare dimensions align them.
        q = torch.cat((q, torch.ones_like(q[..., :1]), torch.zeros_like(q[..., :7])), -1)
        k, v = F.pad(k, (0, 8, 1, 0)), F.pad(v, (0, 8, 1, 0))
        column = torch.zeros_like(k[:1, :1, :1, :]).index_fill(-1, torch.tensor([self.head_dim], device=k.device), 1.0)
        sink = (self.sinks * self.head_dim**0.5).to(k.dtype).view(1, -1, 1, 1) * column
        k = torch.cat((sink.expand(b, -1, -1, -1), k[:, :, 1:]), 2)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=~F.pad(blocked, (1, 0)), scale=self.head_dim**-0.5)
        return self.o_proj(out[..., : self.head_dim].transpose(1, 2).reshape(b, n, -1))


class Router(nn.Linear):
    """Chooses `top` experts a token; their weights are a softmax over the chosen logits only."""

    def __init__(self, width: int, experts: int, top: int) -> None:
        super().__init__(width, experts)
        self.top = top

    def choose(self, x_TF: Tensor) -> tuple[Tensor, Tensor]:
        """Weights and expert numbers, both (T, top)."""
        values, index = torch.topk(self(x_TF), self.top, dim=-1)
        return torch.softmax(values, dim=-1), index


class Experts(nn.Module):
    """Clamped SwiGLU experts. Even columns of `gate_up_proj` are the gate, odd ones the linear part."""

    def __init__(self, params: TextEncoderParams) -> None:
        super().__init__()
        e, f, i = params.num_local_experts, params.hidden_size, params.intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(e, f, 2 * i))
        self.gate_up_proj_bias = nn.Parameter(torch.zeros(e, 2 * i))
        self.down_proj = nn.Parameter(torch.empty(e, i, f))
        self.down_proj_bias = nn.Parameter(torch.zeros(e, f))
        self.limit = params.swiglu_limit

    def one(self, expert: int, x_TF: Tensor) -> Tensor:
        """Run one expert on the tokens that chose it."""
        gate_up = torch.addmm(self.gate_up_proj_bias[expert], x_TF, self.gate_up_proj[expert])
        hidden = clamped_swiglu(gate_up[..., ::2], gate_up[..., 1::2], self.limit)
        return torch.addmm(self.down_proj_bias[expert], hidden, self.down_proj[expert])

    def mixed(self, x_TF: Tensor, share_TE: Tensor) -> Tensor:
        """Every expert on every token, summed with `share_TE` as weights: two plain matrix products."""
        f = self.gate_up_proj.shape[1]
        # The weights are taken apart, not the activations: strided activations would defeat vector instructions.
        # Biases go into the products and the shares are spread before they multiply: compiled, the backward pass of
        # the plain sums over a view (T, E, I) runs without vector instructions (102 -> 26 ms for 4,096 tokens).
        weight, bias = self.gate_up_proj.permute(1, 0, 2), self.gate_up_proj_bias
        gate, up = (torch.addmm(bias[:, i::2].flatten(), x_TF, weight[..., i::2].reshape(f, -1)) for i in (0, 1))
        share_TI = share_TE.repeat_interleave(bias.shape[1] // 2, dim=1)
        hidden = clamped_swiglu(gate, up, self.limit) * share_TI
        return torch.matmul(hidden, self.down_proj.flatten(0, 1)) + share_TE @ self.down_proj_bias


def clamped_swiglu(gate: Tensor, up: Tensor, limit: float) -> Tensor:
    """(up + 1) * gate * sigmoid(1.702 gate), gate clamped above, up on both sides."""
    gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return (up + 1) * gate * torch.sigmoid(SWIGLU_ALPHA * gate)


class MoE(nn.Module):
    def __init__(self, params: TextEncoderParams) -> None:
        super().__init__()
        self.router = Router(params.hidden_size, params.num_local_experts, params.num_experts_per_tok)
        self.experts = Experts(params)

    def forward(self, x_BLF: Tensor) -> Tensor:
        x_TF = x_BLF.reshape(-1, x_BLF.shape[-1])
        weights, index = self.router.choose(x_TF)
        if self.experts.gate_up_proj.shape[0] <= 2 * self.router.top:
            # Few experts (Nano): running all of them costs at most twice the work, needs no gathers and compiles whole.
            share_TE = torch.zeros(len(x_TF), self.router.out_features, dtype=weights.dtype, device=weights.device)
            return self.experts.mixed(x_TF, share_TE.scatter(1, index, weights)).to(x_TF.dtype).view_as(x_BLF)
        out = torch.zeros_like(x_TF)
        for expert in torch.unique(index).tolist():
            token, slot = torch.where(index == expert)
            y = self.experts.one(expert, x_TF[token]) * weights[token, slot, None]
            out.index_add_(0, token, y.to(out.dtype))
        return out.view_as(x_BLF)


class Block(nn.Module):
    def __init__(self, params: TextEncoderParams, index: int) -> None:
        super().__init__()
        self.input_layernorm = TextRMSNorm(params.hidden_size, params.rms_norm_eps)
        self.self_attn = Attention(params)
        self.post_attention_layernorm = TextRMSNorm(params.hidden_size, params.rms_norm_eps)
        self.mlp = MoE(params)
        self.window = params.sliding_window if index % 2 == 0 else None  # even blocks see a window, odd ones all

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, blocked: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, blocked)
        return x + self.mlp(self.post_attention_layernorm(x))


class _Decoder(nn.Module):
    """Holds what Hugging Face keeps under `model.`."""

    def __init__(self, params: TextEncoderParams) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(params.vocab_size, params.hidden_size)
        self.layers = nn.ModuleList(Block(params, i) for i in range(params.num_hidden_layers))
        self.norm = TextRMSNorm(params.hidden_size, params.rms_norm_eps)


class Surroundings:
    """What every block needs to know of its prompts: positions, and who may not look where."""

    def __init__(
        self,
        params: TextEncoderParams,
        length: int,
        device: torch.device,
        dtype: torch.dtype,
        real_BL: Tensor | None = None,
    ) -> None:
        """`real_BL` marks real tokens (True) against right padding; None: all are real."""
        frequency, factor = yarn_frequencies(params)
        angle = torch.arange(length, dtype=torch.float32)[:, None] * frequency
        self.cos, self.sin = ((part * factor).to(device, dtype) for part in (angle.cos(), angle.sin()))
        position = torch.arange(length, device=device)
        back = position[:, None] - position[None, :]
        self.full = (back < 0)[None, None]
        self.windowed = ((back < 0) | (back >= params.sliding_window))[None, None]
        if real_BL is not None:
            hidden = ~real_BL[:, None, None, :]
            self.full, self.windowed = self.full | hidden, self.windowed | hidden

    def of(self, window: int | None) -> tuple[Tensor, Tensor, Tensor]:
        """(cos, sin, blocked) of a block with or without a window."""
        return self.cos, self.sin, self.full if window is None else self.windowed


class LensGptOssEncoder(nn.Module):
    """GPT-OSS as Lens uses it. `head=False` leaves out `lm_head` (features only)."""

    def __init__(self, params: TextEncoderParams, *, head: bool = False) -> None:
        super().__init__()
        if params.num_attention_heads % params.num_key_value_heads:
            raise ValueError(
                f"{params.num_attention_heads} heads cannot share {params.num_key_value_heads} key/value heads evenly"
            )
        self.params = params
        self.model = _Decoder(params)
        self.lm_head = nn.Linear(params.hidden_size, params.vocab_size, bias=False) if head else None

    def reset_parameters(self, generator: torch.Generator, std: float = 0.02) -> None:
        """Normal weights, zero biases and sinks, unit norms; residual outputs scaled down with depth (GPT-2)."""
        depth = (2 * self.params.num_hidden_layers) ** -0.5
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2 or name.endswith("_bias"):
                parameter.data.fill_(1.0 if "norm" in name else 0.0)
            else:
                scale = std * depth if name.endswith(("o_proj.weight", "down_proj")) else std
                parameter.data.normal_(0.0, scale, generator=generator)

    def hidden_states(self, ids_BL: Tensor, take: Sequence[int], real_BL: Tensor | None = None) -> list[Tensor]:
        """Residual stream (B, L, F) right after each block in `take` (0-based, ascending), before any final norm.

        Blocks after the last one taken are not run. `real_BL` marks real tokens (True) against right padding.
        """
        wanted = set(take)
        out: list[Tensor] = []
        x = self.model.embed_tokens(ids_BL)
        around = Surroundings(self.params, ids_BL.shape[1], x.device, x.dtype, real_BL)
        for i, block in enumerate(self.model.layers):
            assert isinstance(block, Block)
            x = block(x, *around.of(block.window))
            if i in wanted:
                out.append(x)
            if len(out) == len(wanted):
                break
        return out

    def logits(self, ids_BL: Tensor, where_BL: Tensor | None = None) -> Tensor:
        """Next-token logits (B, L, vocabulary), or (count, vocabulary) of the positions that are True in `where_BL`.

        Right padding needs no mask, since attention is causal.
        """
        if self.lm_head is None:
            raise ValueError("this encoder was built without a language-model head")
        last = len(self.model.layers) - 1
        x = self.hidden_states(ids_BL, [last])[0]
        return self.lm_head(self.model.norm(x if where_BL is None else x[where_BL]))
