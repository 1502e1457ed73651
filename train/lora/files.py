"""What a fine-tuning run leaves for others: the LoRA in three families of keys, or the whole transformer.

RUN/lora.safetensors                                     ComfyUI's keys, which stable-diffusion.cpp and lens read too
RUN/export/diffusers/pytorch_lora_weights.safetensors    what `load_lora_weights` looks for in a folder
RUN/export/kohya/lora.safetensors                        sd-scripts, musubi-tuner, and what reads their files
RUN/steps/lora-00000500.safetensors                      as lora.safetensors, at each sheet of previews
RUN/export/transformer/, RUN/export/RUN.safetensors      the whole transformer (tune=full), which `lens gen -m` takes
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn

from backend.checkpoints.parameters import SIDECAR
from backend.checkpoints.resolve import ModelFiles, resolve_model
from backend.disk import make_folder, write_atomic
from backend.errors import LensError
from backend.lora.own import transformer_sha256
from backend.lora.write import Family, write_lora
from backend.presets import Component, Layout
from train.lora.adapters import factors
from train.lora.config import LoraConfig

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def export(
    config: LoraConfig, files: ModelFiles, network: nn.Module, step: int, say: Callable[[str], None]
) -> tuple[Path, ...]:
    """Write the run's result; returns the files, the one for `lens gen` first. Raises FileError, CheckpointError."""
    if config.tune == "full":
        return _whole(config, files, say)
    places = {
        Family.comfyui: config.run_dir / "lora.safetensors",
        Family.diffusers: config.run_dir / "export" / "diffusers" / "pytorch_lora_weights.safetensors",
        Family.kohya: config.run_dir / "export" / "kohya" / "lora.safetensors",
    }
    for family, path in places.items():
        _write(path, family, config, files, network, step)
    return tuple(places.values())


def _whole(config: LoraConfig, files: ModelFiles, say: Callable[[str], None]) -> tuple[Path, ...]:
    """The transformer as a folder and as a file; first the one that `lens gen -m` is to be given."""
    from train.run.export import export as export_transformer

    out = config.run_dir / "export"
    folder, single = export_transformer(config.run_dir, out, dtype="bfloat16")
    for place in (folder, out):  # steps and guidance of the model that was tuned
        write_atomic(place / SIDECAR, (json.dumps({"variant": files.preset.name}) + "\n").encode())
    best = beside_its_parts(files, folder, single)
    if best is None:
        say(f"before it draws, {single} needs the text encoder and the autoencoder of {config.model} beside it")
    return (folder, single) if best == folder else (single, folder)


def beside_its_parts(files: ModelFiles, folder: Path, single: Path) -> Path | None:
    """That of the two with which `-m` finds the encoder and the autoencoder of `files`. Where it finds others or none,
    links to these are put beside; None: that did not help."""
    for link in (False, True):
        if link:
            with suppress(OSError):  # a file system without links
                _link(files, single.parent)
        for target in (folder, single):
            if _draws_with(target, files):
                return target
    return None


def _draws_with(target: Path, files: ModelFiles) -> bool:
    """Whether `-m target` has the encoder, tokenizer and autoencoder of `files`."""
    try:
        found = resolve_model(str(target))
    except LensError:
        return False
    pairs = ((found.text_encoder, files.text_encoder), (found.tokenizer, files.tokenizer), (found.vae, files.vae))
    return all([path.resolve() for path in ours] == [path.resolve() for path in theirs] for ours, theirs in pairs)


def _link(files: ModelFiles, out: Path) -> None:
    """Links to the frozen parts, in the layout that they have. Raises OSError."""
    if files.layout is Layout.diffusers:
        root = files.vae[0].parent.parent
        links = {out / name: root / name for name in ("model_index.json", "text_encoder", "tokenizer", "vae")}
    else:
        encoder, vae = out / "text_encoders" / files.text_encoder[0].name, out / "vae" / files.vae[0].name
        links = {encoder: files.text_encoder[0], vae: files.vae[0]}
        links |= {out / path.name: path for path in files.tokenizer}
        stated = ((encoder, files.parts.config(Component.text_encoder)), (vae, files.parts.config(Component.vae)))
        links |= {file.with_suffix(".json"): config for file, config in stated if config is not None}
    for link, path in links.items():
        if not path.exists() or (link.exists() and not link.is_symlink()):
            continue
        link.parent.mkdir(exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(path.absolute())


def write_step(config: LoraConfig, files: ModelFiles, network: nn.Module, step: int) -> Path:
    """The LoRA as it is now, under its step's name."""
    path = config.run_dir / "steps" / f"lora-{step:08d}.safetensors"
    _write(path, Family.comfyui, config, files, network, step)
    return path


def _write(path: Path, family: Family, config: LoraConfig, files: ModelFiles, network: nn.Module, step: int) -> None:
    make_folder(path.parent)
    write_lora(
        path, factors(network), family=family, metadata=header(config, files, step),
        dtype=DTYPES[config.export_dtype],
    )  # fmt: skip


def header(config: LoraConfig, files: ModelFiles, step: int) -> Mapping[str, str]:
    """What the file says about itself, beside what its family needs (`rank` and `alpha` are the family's words)."""
    training = {
        "rank": config.rank,
        "alpha": config.alpha,
        "targets": list(config.targets),
        "steps": step,
        "pictures_per_step": config.pictures_per_step,
        "learning_rate": config.learning_rate,
        "quant": str(config.quant),
        "seed": config.seed,
        "ema_decay": config.optim.ema_decay,
        "start_from": None if config.start_from is None else Path(config.start_from).name,
        "trigger": config.trigger,
        "caption": config.caption,
    }
    phrase = config.trigger or config.caption
    return stated(files, step, config.run_dir, training, **({"trigger_phrase": phrase} if phrase else {}))


def stated(
    files: ModelFiles, step: int, run_dir: Path, training: Mapping[str, object], **modelspec: str
) -> dict[str, str]:
    """The header of an adapter of any stage: its base, its step, and all of `training` as JSON.

    The modelspec names are Stability AI's, which ComfyUI, Forge and model managers show.
    """
    base = {"base_model": files.name, "base_sha256": transformer_sha256(files), "version": version("lens")}
    return {
        "base_model": files.name,
        "step": str(step),
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "lens/lora",
        "modelspec.implementation": "lens",
        "modelspec.title": run_dir.resolve().name,
        **{f"modelspec.{name}": text for name, text in modelspec.items()},
        "lens_training": json.dumps({**base, **training}, sort_keys=True, ensure_ascii=False),
    }
