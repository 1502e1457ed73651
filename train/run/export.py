"""A run's transformer as files that other programs load: diffusers' folder and one safetensors file."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from backend.checkpoints.config_files import TRANSFORMER_METADATA_KEY
from backend.checkpoints.write_packed import diffusers_config
from backend.disk import make_folder, replacing, write_atomic, write_error
from backend.errors import CheckpointError, FileError, UsageError
from backend.params import DiTParams
from train import overrides
from train.run import checkpoints
from train.run.distributed import Ranks

WEIGHTS = ("ema", "model")  # averaged, or as the optimiser last left them
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
DIFFUSERS_FILE = "diffusion_pytorch_model.safetensors"


def export(run_dir: Path, out: Path, *, weights: str | None = None, dtype: str = "bfloat16") -> list[Path]:
    """Write the newest checkpoint's transformer; returns the folder and the file.

    `weights`: one of WEIGHTS; None: the average where the run keeps one. Needs memory for the whole network twice.
    Raises CheckpointError (no checkpoint, a damaged one), UsageError, FileError.
    """
    if dtype not in DTYPES:
        raise UsageError(f"unknown dtype {dtype!r}", hint=f"one of {', '.join(DTYPES)}")
    found = checkpoints.latest(run_dir, Ranks(torch.device("cpu")))
    if found is None:
        raise CheckpointError(f"{run_dir}: no checkpoint here", hint="the folder of a run: what --run-dir named")
    if found.state.get("tune") == "lora":
        raise UsageError(
            f"{run_dir} trained adapters, not a transformer", hint=f"they are in {run_dir / 'lora.safetensors'}"
        )
    params = overrides.from_json(DiTParams, found.state["params"], "params")
    averaged = any(name.startswith("ema.") for name in found.names)
    part = weights or ("ema" if averaged else "model")
    if part not in WEIGHTS or (part == "ema" and not averaged):
        raise UsageError(
            f"no weights {part!r} in this run", hint=f"one of {', '.join(WEIGHTS if averaged else WEIGHTS[1:])}"
        )
    state = {name: tensor.to(DTYPES[dtype]) for name, tensor in checkpoints.read_whole(found, part).items()}
    broken = next((name for name, tensor in state.items() if not torch.isfinite(tensor).all()), None)
    if broken is not None:
        raise CheckpointError(f"not written: {broken!r} is not finite in {dtype}")
    config = diffusers_config(params)
    folder, single = out / "transformer", out / f"{run_dir.resolve().name}.safetensors"
    make_folder(folder)
    _save(state, folder / DIFFUSERS_FILE, config)
    write_atomic(folder / "config.json", (json.dumps(config, indent=2, sort_keys=True) + "\n").encode())
    _same_bytes(folder / DIFFUSERS_FILE, single)
    return [folder, single]


def _save(state: dict[str, torch.Tensor], path: Path, config: dict[str, object]) -> None:
    header = {"format": "pt", TRANSFORMER_METADATA_KEY: json.dumps(config, sort_keys=True)}
    with replacing(path) as temporary:
        try:
            save_file({name: tensor.contiguous() for name, tensor in state.items()}, temporary, metadata=header)
        except SafetensorError as error:  # what it makes of a full disk
            raise FileError(f"cannot write {path}: {error}", hint="is the disk full?") from error


def _same_bytes(source: Path, target: Path) -> None:
    """A second name of the file where the file system has such, else a copy."""
    temporary = target.with_name(f".{target.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
        os.replace(temporary, target)
    except OSError as error:
        raise write_error(target, error) from error
    finally:
        temporary.unlink(missing_ok=True)
