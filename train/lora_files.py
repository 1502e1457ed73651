"""What a fine-tuning run leaves for others: the LoRA in three families of keys, or the whole transformer.

RUN/lora.safetensors                                     ComfyUI's keys, which stable-diffusion.cpp and lens read too
RUN/export/diffusers/pytorch_lora_weights.safetensors    what `load_lora_weights` looks for in a folder
RUN/export/kohya/lora.safetensors                        sd-scripts, musubi-tuner, and what reads their files
RUN/steps/lora-00000500.safetensors                      as lora.safetensors, at each sheet of previews
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn

from backend.files import make_folder
from backend.identity import files_sha256
from backend.model.lora_write import Family, write_lora
from backend.weights import ModelFiles
from train.adapters import factors
from train.lora_config import LoraConfig

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def export(config: LoraConfig, files: ModelFiles, network: nn.Module, step: int) -> tuple[Path, ...]:
    """Write the run's result; returns the files, the one for `lens gen` first. Raises FileError, CheckpointError."""
    if config.tune == "full":
        from train.export import export as export_transformer

        folder, single = export_transformer(config.run_dir, config.run_dir / "export", dtype="bfloat16")
        return folder, single
    places = {
        Family.comfyui: config.run_dir / "lora.safetensors",
        Family.diffusers: config.run_dir / "export" / "diffusers" / "pytorch_lora_weights.safetensors",
        Family.kohya: config.run_dir / "export" / "kohya" / "lora.safetensors",
    }
    for family, path in places.items():
        _write(path, family, config, files, network, step)
    return tuple(places.values())


def write_step(config: LoraConfig, files: ModelFiles, network: nn.Module, step: int) -> Path:
    """The LoRA as it is now, under its step's name."""
    path = config.run_dir / "steps" / f"lora-{step:08d}.safetensors"
    _write(path, Family.comfyui, config, files, network, step)
    return path


def _write(path: Path, family: Family, config: LoraConfig, files: ModelFiles, network: nn.Module, step: int) -> None:
    make_folder(path.parent)
    write_lora(
        path, factors(network), family=family, metadata=header(config, files, step),
        dtype=_DTYPES[config.export_dtype],
    )  # fmt: skip


def header(config: LoraConfig, files: ModelFiles, step: int) -> Mapping[str, str]:
    """What the file says about itself, beside what its family needs (`rank` and `alpha` are the family's words).

    The modelspec names are Stability AI's, which ComfyUI, Forge and model managers show.
    """
    training = {
        "base_model": files.name,
        "base_sha256": files_sha256(files.transformer),
        "rank": config.rank,
        "alpha": config.alpha,
        "targets": list(config.targets),
        "steps": step,
        "pictures_per_step": config.pictures_per_step,
        "learning_rate": config.learning_rate,
        "quant": str(config.quant),
        "seed": config.seed,
        "ema_decay": config.ema_decay,
        "start_from": None if config.start_from is None else Path(config.start_from).name,
        "trigger": config.trigger,
        "caption": config.caption,
        "version": version("lens"),
    }
    phrase = config.trigger or config.caption
    return {
        "base_model": files.name,
        "step": str(step),
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "lens/lora",
        "modelspec.implementation": "lens",
        "modelspec.title": config.run_dir.resolve().name,
        **({"modelspec.trigger_phrase": phrase} if phrase else {}),
        "lens_training": json.dumps(training, sort_keys=True, ensure_ascii=False),
    }
