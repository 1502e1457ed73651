"""The Lens transformer once more, as slowly and plainly as it can be said: the reference of the parity tests.

Written from the description of the published network alone (configuration, key names, equations), not from
`backend`, of which it imports nothing. One picture at a time, float64, one token at a time, explicit indices
where the product uses views, chunks and fused kernels. So a mistake would have to be made twice, in two forms.

Every point on which ports of this network are known to differ is a field of `Choices`, whose defaults are the
published behaviour. The tests set one field wrong at a time and demand that the product then disagrees: this shows
that the comparison would notice that very mistake.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Weights = Mapping[str, Array]  # public key -> values
Config = Mapping[str, Any]  # the keys of transformer/config.json


@dataclass(frozen=True)
class Choices:
    """The published behaviour; every other value is a mistake that some port has made or could make."""

    qk_eps: float = 1e-6  # several ports: 1e-5
    text_eps: float = 1e-5
    block_eps: float = 1e-6
    final_eps: float = 1e-6
    final_scale_first: bool = True  # FLUX: shift first
    modulation: tuple[str, str, str] = ("shift", "scale", "gate")
    modulation_silu: bool = True  # the SiLU that makes the key img_mod.1
    time_scale: float = 1000.0
    cosine_first: bool = True
    pairs_are_neighbours: bool = True  # False: first half against second half, as in GPT-NeoX
    odd_extra_on_negative_side: bool = True  # one port starts at -(h // 2)
    text_starts_at_larger_half: bool = True  # False: at 0
    text_linspace: bool = False  # one port spaces T tokens by T / (T - 1)
    qkv_before_heads: bool = True  # False: fused projection read as head, then q, k, v
    w1_is_gate: bool = True
    per_layer_text_norm: bool = True  # False: one norm over the joined layers
    mask_padding: bool = True
    attention_scale_of_head: bool = True  # False: scale of the whole width


PUBLISHED = Choices()


def velocity(
    weights: Weights,
    config: Config,
    x: Array,
    t: float,
    text: Array,
    grid: tuple[int, int],
    keep: Sequence[bool] | None = None,
    choices: Choices = PUBLISHED,
) -> Array:
    """Velocity (N, C) of one picture: x (N, C), t in [0, 1], text (L, layers, F), `keep` True for real text tokens."""
    h, w = grid
    n, length = h * w, len(text)
    heads, size = config["num_attention_heads"], config["attention_head_dim"]
    keep = [True] * length if keep is None else list(keep)
    positions = image_positions(h, w, choices) + text_positions(h, w, length, choices)

    image = [linear(weights, "img_in", x[i]) for i in range(n)]
    words = [linear(weights, "txt_in", joined_text(weights, text[i], choices)) for i in range(length)]
    temb = time_embedding(weights, t, choices)

    for b in range(config["num_layers"]):
        block = f"transformer_blocks.{b}"
        image1, image2 = modulations(weights, f"{block}.img_mod.1", temb, choices)
        words1, words2 = modulations(weights, f"{block}.txt_mod.1", temb, choices)

        # Attention: every token asks, image tokens and real text tokens answer.
        queries, keys, values = [], [], []
        for i in range(n + length):
            if i < n:
                stream, token, mod, q_norm, k_norm = "img", image[i], image1, "norm_q", "norm_k"
            else:
                stream, token, mod, q_norm, k_norm = "txt", words[i - n], words1, "norm_added_q", "norm_added_k"
            normed = rms(token, weights[f"{block}.{stream}_norm1.weight"], choices.block_eps)
            fused = linear(weights, f"{block}.attn.{stream}_qkv", normed * (1 + mod["scale"]) + mod["shift"])
            q, k, v = split_heads(fused, heads, size, choices)
            for head in range(heads):
                q[head] = rms(q[head], weights[f"{block}.attn.{q_norm}.weight"], choices.qk_eps)
                k[head] = rms(k[head], weights[f"{block}.attn.{k_norm}.weight"], choices.qk_eps)
                q[head] = turn(q[head], positions[i], config["axes_dims_rope"], choices)
                k[head] = turn(k[head], positions[i], config["axes_dims_rope"], choices)
            queries.append(q)
            keys.append(k)
            values.append(v)
        visible = [i for i in range(n + length) if i < n or keep[i - n] or not choices.mask_padding]
        scale = 1 / math.sqrt(size if choices.attention_scale_of_head else size * heads)
        attended = []
        for i in range(n + length):
            out = np.zeros(heads * size)
            for head in range(heads):
                logits = [scale * float(queries[i][head] @ keys[j][head]) for j in visible]
                top = max(logits)
                powers = [math.exp(logit - top) for logit in logits]
                total = sum(powers)
                for j, power in zip(visible, powers, strict=True):
                    out[head * size : (head + 1) * size] += power / total * values[j][head]
            attended.append(out)

        for i in range(n):
            image[i] = image[i] + image1["gate"] * linear(weights, f"{block}.attn.to_out.0", attended[i])
        for i in range(length):
            words[i] = words[i] + words1["gate"] * linear(weights, f"{block}.attn.to_add_out", attended[n + i])

        # The feed-forward half, each stream with its own weights.
        for stream, tokens, mod in (("img", image, image2), ("txt", words, words2)):
            for i, token in enumerate(tokens):
                normed = rms(token, weights[f"{block}.{stream}_norm2.weight"], choices.block_eps)
                y = normed * (1 + mod["scale"]) + mod["shift"]
                tokens[i] = token + mod["gate"] * swiglu(weights, f"{block}.{stream}_mlp", y, choices)

    # Final norm: no weights of its own; the two halves of the projection are scale, then shift.
    both = linear(weights, "norm_out.linear", silu(temb))
    width = len(both) // 2
    first, second = both[:width], both[width:]
    scale_, shift = (first, second) if choices.final_scale_first else (second, first)
    out = []
    for token in image:
        centred = token - token.mean()
        normed = centred / math.sqrt(float((centred**2).mean()) + choices.final_eps)
        out.append(linear(weights, "proj_out", normed * (1 + scale_) + shift))
    return np.stack(out)


def linear(weights: Weights, key: str, x: Array) -> Array:
    out = weights[f"{key}.weight"] @ x
    return out + weights[f"{key}.bias"] if f"{key}.bias" in weights else out


def silu(x: Array) -> Array:
    return x / (1 + np.exp(-x))


def rms(x: Array, weight: Array, eps: float) -> Array:
    return x / math.sqrt(float((x**2).mean()) + eps) * weight


def swiglu(weights: Weights, key: str, x: Array, choices: Choices) -> Array:
    gate, up = ("w1", "w3") if choices.w1_is_gate else ("w3", "w1")
    return linear(weights, f"{key}.w2", silu(linear(weights, f"{key}.{gate}", x)) * linear(weights, f"{key}.{up}", x))


def joined_text(weights: Weights, layers: Array, choices: Choices) -> Array:
    """One text token: each encoder layer through its own RMSNorm, then one after the other."""
    gains = [weights[f"txt_norm.{i}.weight"] for i in range(len(layers))]
    if not choices.per_layer_text_norm:
        return rms(np.concatenate(list(layers)), np.concatenate(gains), choices.text_eps)
    return np.concatenate([rms(layer, gain, choices.text_eps) for layer, gain in zip(layers, gains, strict=True)])


def time_embedding(weights: Weights, t: float, choices: Choices) -> Array:
    """256 numbers: 128 cosines, 128 sines of 1000 t 10000^(-k/128); then linear, SiLU, linear."""
    angles = [choices.time_scale * t * 10000 ** (-k / 128) for k in range(128)]
    cosines, sines = [math.cos(a) for a in angles], [math.sin(a) for a in angles]
    features = np.array(cosines + sines if choices.cosine_first else sines + cosines)
    hidden = silu(linear(weights, "time_text_embed.timestep_embedder.linear_1", features))
    return linear(weights, "time_text_embed.timestep_embedder.linear_2", hidden)


def modulations(weights: Weights, key: str, temb: Array, choices: Choices) -> tuple[dict[str, Array], dict[str, Array]]:
    """Six vectors: shift, scale and gate of the attention half, then the three of the feed-forward half."""
    six = linear(weights, key, silu(temb) if choices.modulation_silu else temb)
    width = len(six) // 6
    parts = [six[i * width : (i + 1) * width] for i in range(6)]
    return (
        dict(zip(choices.modulation, parts[:3], strict=True)),
        dict(zip(choices.modulation, parts[3:], strict=True)),
    )


def split_heads(fused: Array, heads: int, size: int, choices: Choices) -> tuple[list[Array], list[Array], list[Array]]:
    """q, k and v, each a list of heads. Entry of part p, head a, dimension d: ((p * heads) + a) * size + d."""
    out: list[list[Array]] = [[], [], []]
    for part in range(3):
        for head in range(heads):
            row = part * heads + head if choices.qkv_before_heads else head * 3 + part
            out[part].append(fused[row * size : (row + 1) * size].copy())
    return out[0], out[1], out[2]


def image_positions(h: int, w: int, choices: Choices = PUBLISHED) -> list[tuple[float, float, float]]:
    """(frame, row, column) of the image tokens, row by row: -(h - h // 2) ... h // 2 - 1, columns alike."""
    top = -(h - h // 2) if choices.odd_extra_on_negative_side else -(h // 2)
    left = -(w - w // 2) if choices.odd_extra_on_negative_side else -(w // 2)
    return [(0.0, float(top + i), float(left + j)) for i in range(h) for j in range(w)]


def text_positions(h: int, w: int, length: int, choices: Choices = PUBLISHED) -> list[tuple[float, float, float]]:
    """Text token i stands at t0 + i on all three axes, t0 = max(h // 2, w // 2)."""
    t0 = max(h // 2, w // 2) if choices.text_starts_at_larger_half else 0
    step = length / (length - 1) if choices.text_linspace and length > 1 else 1.0
    return [(t0 + step * i, t0 + step * i, t0 + step * i) for i in range(length)]


def turn(x: Array, position: Sequence[float], axes: Sequence[int], choices: Choices) -> Array:
    """Rotate pairs of one head: first the pairs of the frame axis, then height, then width."""
    out = np.empty_like(x)
    pair = 0
    for axis, size in enumerate(axes):
        for k in range(size // 2):
            angle = position[axis] * 10000.0 ** (-2 * k / size)
            a, b = (2 * pair, 2 * pair + 1) if choices.pairs_are_neighbours else (pair, pair + len(x) // 2)
            out[a] = x[a] * math.cos(angle) - x[b] * math.sin(angle)
            out[b] = x[a] * math.sin(angle) + x[b] * math.cos(angle)
            pair += 1
    return out


def shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Public key -> shape, the published table with its sizes as letters."""
    dim = config["num_attention_heads"] * config["attention_head_dim"]
    layers, features = len(config["selected_layer_index"]), config["enc_hidden_dim"]
    hidden = int(dim / 3 * 8)
    out: dict[str, tuple[int, ...]] = {}

    def biased(key: str, rows: int, columns: int) -> None:
        out[f"{key}.weight"], out[f"{key}.bias"] = (rows, columns), (rows,)

    biased("img_in", dim, config["in_channels"])
    biased("txt_in", dim, features * layers)
    for i in range(layers):
        out[f"txt_norm.{i}.weight"] = (features,)
    biased("time_text_embed.timestep_embedder.linear_1", dim, 256)
    biased("time_text_embed.timestep_embedder.linear_2", dim, dim)
    biased("norm_out.linear", 2 * dim, dim)
    biased("proj_out", config["patch_size"] ** 2 * config["out_channels"], dim)
    for b in range(config["num_layers"]):
        block = f"transformer_blocks.{b}"
        for stream in ("img", "txt"):
            biased(f"{block}.attn.{stream}_qkv", 3 * dim, dim)
            biased(f"{block}.{stream}_mod.1", 6 * dim, dim)
            for norm in ("norm1", "norm2"):
                out[f"{block}.{stream}_{norm}.weight"] = (dim,)
            for key, shape in (("w1", (hidden, dim)), ("w3", (hidden, dim)), ("w2", (dim, hidden))):
                out[f"{block}.{stream}_mlp.{key}.weight"] = shape
        for norm in ("norm_q", "norm_k", "norm_added_q", "norm_added_k"):
            out[f"{block}.attn.{norm}.weight"] = (config["attention_head_dim"],)
        biased(f"{block}.attn.to_out.0", dim, dim)
        biased(f"{block}.attn.to_add_out", dim, dim)
    return out
