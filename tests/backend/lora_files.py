"""LoRA files for tests, and what they must do to the weights: written key by key, by hand.

Nothing here comes from `backend.lora.apply*`. Keys are literal strings as the tools write them; the changed weights are
plain numpy in float64, the formula of each kind spelled out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

Array = NDArray[np.float64]
RANK = 3
QKV = "transformer_blocks.0.attn.img_qkv"  # (192, 64) in the tiny network
OUT = "transformer_blocks.1.attn.to_out.0"  # (64, 64)


@dataclass(frozen=True)
class Case:
    """A file, and the change of each weight at strength 1."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str] | None
    deltas: Callable[[Mapping[str, Array]], dict[str, Array]]  # weights by public name -> what is added to some of them
    sidecar: dict[str, object] | None = None

    def write(self, path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(self.tensors, path, self.metadata)
        if self.sidecar is not None:
            path.with_name("adapter_config.json").write_text(json.dumps(self.sidecar))
        return path


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + 1000)) * 0.3


def n(tensor: Tensor) -> Array:
    return tensor.double().numpy()


A1, B1 = rand(RANK, 64, seed=1), rand(192, RANK, seed=2)
A2, B2 = rand(RANK, 64, seed=3), rand(64, RANK, seed=4)


def pairs(
    names: tuple[str, str, str, str], scale: float, metadata: dict[str, str] | None = None, **more: Tensor
) -> Case:
    """Two linears, the names of their four factors, and alpha / rank."""
    tensors = dict(zip(names, (A1, B1, A2, B2), strict=True)) | more

    def deltas(_: Mapping[str, Array]) -> dict[str, Array]:
        return {f"{QKV}.weight": scale * n(B1) @ n(A1), f"{OUT}.weight": scale * n(B2) @ n(A2)}

    return Case(tensors, metadata, deltas)


def _peft(config: dict[str, object]) -> dict[str, str]:
    return {"format": "pt", "lora_adapter_metadata": json.dumps(config)}


LOW_RANK: dict[str, Case] = {
    "bare PEFT": pairs(
        (
            "transformer_blocks.0.attn.img_qkv.lora_A.weight",
            "transformer_blocks.0.attn.img_qkv.lora_B.weight",
            "transformer_blocks.1.attn.to_out.0.lora_A.weight",
            "transformer_blocks.1.attn.to_out.0.lora_B.weight",
        ),
        6 / 3,
        _peft({"r": 3, "lora_alpha": 6, "use_rslora": False, "alpha_pattern": {}}),
    ),
    "bare PEFT without a word about alpha": pairs(
        (
            "transformer_blocks.0.attn.img_qkv.lora_A.weight",
            "transformer_blocks.0.attn.img_qkv.lora_B.weight",
            "transformer_blocks.1.attn.to_out.0.lora_A.weight",
            "transformer_blocks.1.attn.to_out.0.lora_B.weight",
        ),
        1.0,
    ),
    "diffusers": pairs(
        (
            "transformer.transformer_blocks.0.attn.img_qkv.lora_A.weight",
            "transformer.transformer_blocks.0.attn.img_qkv.lora_B.weight",
            "transformer.transformer_blocks.1.attn.to_out.0.lora_A.weight",
            "transformer.transformer_blocks.1.attn.to_out.0.lora_B.weight",
        ),
        4 / 3,
        _peft({"transformer.r": 3, "transformer.lora_alpha": 4, "transformer.use_rslora": False}),
    ),
    "rank-stabilised": pairs(
        (
            "transformer.transformer_blocks.0.attn.img_qkv.lora_A.weight",
            "transformer.transformer_blocks.0.attn.img_qkv.lora_B.weight",
            "transformer.transformer_blocks.1.attn.to_out.0.lora_A.weight",
            "transformer.transformer_blocks.1.attn.to_out.0.lora_B.weight",
        ),
        4 / 3**0.5,
        _peft({"transformer.r": 3, "transformer.lora_alpha": 4, "transformer.use_rslora": True}),
    ),
    "PEFT while it trains": pairs(
        (
            "base_model.model.transformer.transformer_blocks.0.attn.img_qkv.lora_A.default.weight",
            "base_model.model.transformer.transformer_blocks.0.attn.img_qkv.lora_B.default.weight",
            "base_model.model.transformer_blocks.1.attn.to_out.0.lora_A.default.weight",
            "base_model.model.transformer_blocks.1.attn.to_out.0.lora_B.default.weight",
        ),
        1.0,
    ),
    "ComfyUI": pairs(
        (
            "diffusion_model.transformer_blocks.0.attn.img_qkv.lora_A.weight",
            "diffusion_model.transformer_blocks.0.attn.img_qkv.lora_B.weight",
            "diffusion_model.transformer_blocks.1.attn.to_out.0.lora_A.default.weight",
            "diffusion_model.transformer_blocks.1.attn.to_out.0.lora_B.default.weight",
        ),
        1.5 / 3,
        {"rank": "3", "alpha": "1.5", "base_model": "microsoft/Lens-Base", "step": "1200"},
    ),
    "kohya": pairs(
        (
            "lora_unet_transformer_blocks_0_attn_img_qkv.lora_down.weight",
            "lora_unet_transformer_blocks_0_attn_img_qkv.lora_up.weight",
            "lora_unet_transformer_blocks_1_attn_to_out_0.lora_down.weight",
            "lora_unet_transformer_blocks_1_attn_to_out_0.lora_up.weight",
        ),
        1 / 3,
        {"ss_network_dim": "3", "ss_network_alpha": "99", "ss_network_module": "networks.lora"},
        **{
            "lora_unet_transformer_blocks_0_attn_img_qkv.alpha": torch.tensor(1.0),
            "lora_unet_transformer_blocks_1_attn_to_out_0.alpha": torch.tensor(1.0, dtype=torch.bfloat16),
        },
    ),
    "lora_transformer_": pairs(
        (
            "lora_transformer_transformer_blocks_0_attn_img_qkv.lora_down.weight",
            "lora_transformer_transformer_blocks_0_attn_img_qkv.lora_up.weight",
            "lora_transformer_transformer_blocks_1_attn_to_out_0.lora_down.weight",
            "lora_transformer_transformer_blocks_1_attn_to_out_0.lora_up.weight",
        ),
        2 / 3,
        None,
        **{
            "lora_transformer_transformer_blocks_0_attn_img_qkv.alpha": torch.tensor([2.0], dtype=torch.float16),
            "lora_transformer_transformer_blocks_1_attn_to_out_0.alpha": torch.tensor(2, dtype=torch.int64),
        },
    ),
    "old diffusers": pairs(
        (
            "transformer.transformer_blocks.0.attn.img_qkv.lora.down.weight",
            "transformer.transformer_blocks.0.attn.img_qkv.lora.up.weight",
            "transformer.transformer_blocks.1.attn.to_out.0.lora.down.weight",
            "transformer.transformer_blocks.1.attn.to_out.0.lora.up.weight",
        ),
        1.0,
    ),
}

# Kronecker: (192, 64) = (12, 8) x (16, 8).
K1, K2 = rand(12, 8, seed=5), rand(16, 8, seed=6)
K2A, K2B = rand(16, 2, seed=7), rand(2, 8, seed=8)
H = [rand(192, RANK, seed=9), rand(RANK, 64, seed=10), rand(192, RANK, seed=11), rand(RANK, 64, seed=12)]
DIFF, DIFF_B, NORM = rand(192, 64, seed=13), rand(192, seed=14), rand(64, seed=15)
MAGNITUDE = rand(192, seed=16).abs() + 0.5


def kron(a: Array, b: Array) -> Array:
    """By the definition, entry by entry."""
    (p, q), (r, s) = a.shape, b.shape
    out = np.zeros((p * r, q * s))
    for i in range(p):
        for j in range(q):
            out[i * r : (i + 1) * r, j * s : (j + 1) * s] = a[i, j] * b
    return out


def decomposed(weights: Mapping[str, Array], delta: Array, magnitude: Array, *, per_input: bool = False) -> Array:
    """What DoRA adds: every row (or column) of W + delta stretched to its magnitude, less W."""
    weight = weights[f"{QKV}.weight"]
    whole = weight + delta
    out = np.zeros_like(whole)
    if per_input:
        for i in range(whole.shape[1]):
            out[:, i] = whole[:, i] * magnitude[i] / np.sqrt((whole[:, i] ** 2).sum())
    else:
        for o in range(whole.shape[0]):
            out[o] = whole[o] * magnitude[o] / np.sqrt((whole[o] ** 2).sum())
    return out - weight


WHOLE: dict[str, Case] = {
    "LoKr with alphas, one factor split": Case(
        {
            "lora_unet_transformer_blocks_0_attn_img_qkv.lokr_w1": K1,
            "lora_unet_transformer_blocks_0_attn_img_qkv.lokr_w2_a": K2A,
            "lora_unet_transformer_blocks_0_attn_img_qkv.lokr_w2_b": K2B,
            "lora_unet_transformer_blocks_0_attn_img_qkv.alpha": torch.tensor(5.0),
        },
        None,
        lambda _: {f"{QKV}.weight": 5 / 2 * kron(n(K1), n(K2A) @ n(K2B))},
    ),
    "LoKr of two whole matrices ignores its alpha": Case(
        {
            "lycoris_transformer_blocks_0_attn_img_qkv.lokr_w1": K1,
            "lycoris_transformer_blocks_0_attn_img_qkv.lokr_w2": K2,
            "lycoris_transformer_blocks_0_attn_img_qkv.alpha": torch.tensor(1e10),
        },
        None,
        lambda _: {f"{QKV}.weight": kron(n(K1), n(K2))},
    ),
    "LoKr with a header": Case(
        {
            "transformer_blocks.0.attn.img_qkv.lokr_w1": K1,
            "transformer_blocks.0.attn.img_qkv.lokr_w2": K2,
        },
        {"networkType": "lokr", "rank": "8", "alpha": "4", "decomposeFactor": "-1", "targetModules": "img_qkv"},
        lambda _: {f"{QKV}.weight": 4 / 8 * kron(n(K1), n(K2))},
    ),
    "LoHa": Case(
        {
            f"transformer_blocks.0.attn.img_qkv.hada_w{i}_{f}": H[2 * i - 2 + "ab".index(f)]
            for i in (1, 2)
            for f in "ab"
        },
        {"networkType": "loha", "rank": "3", "alpha": "6"},
        lambda _: {f"{QKV}.weight": 2 * (n(H[0]) @ n(H[1])) * (n(H[2]) @ n(H[3]))},
    ),
    "full deltas": Case(
        {
            "diffusion_model.transformer_blocks.0.attn.img_qkv.diff": DIFF,
            "diffusion_model.transformer_blocks.0.attn.img_qkv.diff_b": DIFF_B,
            "diffusion_model.transformer_blocks.1.img_norm1.diff": NORM,
        },
        {"alpha": "7", "rank": "2"},  # about low-rank updates, of which there are none
        lambda _: {
            f"{QKV}.weight": n(DIFF),
            f"{QKV}.bias": n(DIFF_B),
            "transformer_blocks.1.img_norm1.weight": n(NORM),
        },
    ),
    "PEFT with a bias": Case(
        {
            "transformer_blocks.0.attn.img_qkv.lora_A.weight": A1,
            "transformer_blocks.0.attn.img_qkv.lora_B.weight": B1,
            "transformer_blocks.0.attn.img_qkv.lora_B.bias": DIFF_B,
        },
        _peft({"r": 3, "lora_alpha": 6, "lora_bias": True}),
        lambda _: {f"{QKV}.weight": 2 * n(B1) @ n(A1), f"{QKV}.bias": 2 * n(DIFF_B)},
    ),
    "DoRA of PEFT": Case(
        {
            "transformer_blocks.0.attn.img_qkv.lora_A.weight": A1,
            "transformer_blocks.0.attn.img_qkv.lora_B.weight": B1,
            "transformer_blocks.0.attn.img_qkv.lora_magnitude_vector": MAGNITUDE,
        },
        _peft({"r": 3, "lora_alpha": 6, "use_dora": True}),
        lambda w: {f"{QKV}.weight": decomposed(w, 2 * n(B1) @ n(A1), n(MAGNITUDE))},
    ),
    "DoRA of LyCORIS, by outputs": Case(
        {
            "lora_unet_transformer_blocks_0_attn_img_qkv.lora_down.weight": A1,
            "lora_unet_transformer_blocks_0_attn_img_qkv.lora_up.weight": B1,
            "lora_unet_transformer_blocks_0_attn_img_qkv.alpha": torch.tensor(1.5),
            "lora_unet_transformer_blocks_0_attn_img_qkv.dora_scale": MAGNITUDE[:, None].clone(),
        },
        None,
        lambda w: {f"{QKV}.weight": decomposed(w, 0.5 * n(B1) @ n(A1), n(MAGNITUDE))},
    ),
    "DoRA of LyCORIS, by inputs, over LoKr": Case(
        {
            "lora_unet_transformer_blocks_0_attn_img_qkv.lokr_w1": K1,
            "lora_unet_transformer_blocks_0_attn_img_qkv.lokr_w2": K2,
            "lora_unet_transformer_blocks_0_attn_img_qkv.dora_scale": MAGNITUDE[None, :64].clone(),
        },
        None,
        lambda w: {f"{QKV}.weight": decomposed(w, kron(n(K1), n(K2)), n(MAGNITUDE[:64]), per_input=True)},
    ),
}

# For what only reads headers.
HEADERS: dict[str, Case] = {
    "LoKr": WHOLE["LoKr with a header"],
    "DoRA": WHOLE["DoRA of PEFT"],
    "modulation": Case(
        {
            "transformer_blocks.0.img_mod.1.lora_A.weight": torch.zeros(2, 64),
            "transformer_blocks.0.img_mod.1.lora_B.weight": torch.zeros(384, 2),
        },
        None,
        lambda _: {},
    ),
}
