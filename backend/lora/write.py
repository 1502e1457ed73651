"""Writes a low-rank LoRA in the form each of the other tools reads: what training exports."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from backend.disk import write_atomic
from backend.errors import CheckpointError
from backend.lora.keys import flat_name
from backend.lora.scales import PEFT_METADATA


class Family(StrEnum):
    """Whose names the keys follow."""

    peft = "peft"  # bare: this transformer's own save_lora_adapter
    diffusers = "diffusers"  # a pipeline's save_lora_weights
    comfyui = "comfyui"
    kohya = "kohya"  # musubi-tuner, sd-scripts


@dataclass(frozen=True)
class Factors:
    """The update alpha / R * up @ down of one linear; R rank, I inputs, O outputs."""

    down_RI: Tensor
    up_OR: Tensor
    alpha: float

    @property
    def rank(self) -> int:
        return self.down_RI.shape[0]


def write_lora(
    path: Path | str,
    updates: Mapping[str, Factors],
    *,
    family: Family,
    metadata: Mapping[str, str] | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write `updates` (module name such as transformer_blocks.0.attn.img_qkv -> factors), stored in `dtype`.

    `metadata` joins the header. Raises CheckpointError for factors that do not belong together or are not finite in
    `dtype`, FileError where the file cannot be written.
    """
    if not updates:
        raise CheckpointError(f"{path}: not written: no updates")
    for module, factors in updates.items():
        if factors.down_RI.ndim != 2 or factors.up_OR.ndim != 2 or factors.up_OR.shape[1] != factors.rank:
            shapes = f"{list(factors.down_RI.shape)} and {list(factors.up_OR.shape)}"
            raise CheckpointError(f"{path}: not written: the factors of {module!r} are {shapes}")
    match family:
        case Family.peft:
            tensors, header = _peft(updates, "")
        case Family.diffusers:
            tensors, header = _peft(updates, "transformer.")
        case Family.comfyui:
            tensors, header = _comfyui(updates)
        case Family.kohya:
            tensors, header = _kohya(updates)
    stored = {  # an alpha stays whole: bfloat16 has no 300
        name: tensor.detach().to("cpu", dtype if tensor.ndim else torch.float32).contiguous()
        for name, tensor in tensors.items()
    }
    for name, tensor in stored.items():
        if not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{path}: not written: {name!r} is not finite in {dtype}")
    write_atomic(Path(path), save(stored, metadata={"format": "pt", **header, **(metadata or {})}))


def _peft(updates: Mapping[str, Factors], prefix: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Keys lora_A and lora_B; PEFT's config, which diffusers keeps in the header, with every alpha its rank: so that a
    reader that leaves the header aside, and takes alpha for the rank, applies the same strength."""
    even = _even(updates)
    rank, _ = Counter(f.rank for f in even.values()).most_common(1)[0]
    others = {module: f.rank for module, f in even.items() if f.rank != rank}
    config: dict[str, object] = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": sorted(even),
        "use_rslora": False,
        "use_dora": False,
        "lora_bias": False,
        "bias": "none",
    }
    text = json.dumps({f"{prefix}{key}": value for key, value in config.items()}, sort_keys=True)
    return _a_and_b(even, prefix), {PEFT_METADATA: text}


def _comfyui(updates: Mapping[str, Factors]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Keys lora_A and lora_B; ComfyUI reads no header, others take alpha = rank from it."""
    even = _even(updates)
    ranks = {f.rank for f in even.values()}
    stated = str(ranks.pop()) if len(ranks) == 1 else None
    return _a_and_b(even, "diffusion_model."), {} if stated is None else {"rank": stated, "alpha": stated}


def _even(updates: Mapping[str, Factors]) -> dict[str, Factors]:
    """Put alpha / rank into `up`, so that alpha = rank and nothing else changes."""
    return {
        module: Factors(f.down_RI.float(), f.up_OR.float() * (f.alpha / f.rank), float(f.rank))
        for module, f in updates.items()
    }


def _kohya(updates: Mapping[str, Factors]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Names without dots, and an alpha tensor a module."""
    tensors: dict[str, Tensor] = {}
    for module, f in updates.items():
        stem = f"lora_unet_{flat_name(module)}"
        tensors[f"{stem}.lora_down.weight"], tensors[f"{stem}.lora_up.weight"] = f.down_RI, f.up_OR
        tensors[f"{stem}.alpha"] = torch.tensor(float(f.alpha))
    (rank, alpha), _ = Counter((f.rank, f.alpha) for f in updates.values()).most_common(1)[0]
    return tensors, {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": f"{alpha:g}",
    }


def _a_and_b(updates: Mapping[str, Factors], prefix: str) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for module, f in updates.items():
        tensors[f"{prefix}{module}.lora_A.weight"] = f.down_RI
        tensors[f"{prefix}{module}.lora_B.weight"] = f.up_OR
    return tensors
