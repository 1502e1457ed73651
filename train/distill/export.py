"""What a run leaves: an adapter in ComfyUI's keys, or the whole transformer.

RUN/lora.safetensors                                  form=adapters: `lens gen --lora FILE --steps 4 --guidance 1`
RUN/steps/lora-00000300.safetensors                   as lora.safetensors, at each look at held-out prompts
RUN/export/transformer/, RUN/export/best.safetensors  form=full: `lens gen -m` takes either

What the model learned before (`start_from`) is within the adapter: it goes on the model as it was published.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from backend import presets
from backend.checkpoints.parameters import SIDECAR
from backend.checkpoints.resolve import ModelFiles
from backend.disk import make_folder, write_atomic
from backend.lora.write import Factors, Family, write_lora
from train.distill.config import DistillConfig
from train.lora.files import DTYPES, beside_its_parts, stated
from train.rl.export import cut
from train.run.export import export as export_transformer


def write_adapter(
    path: Path, config: DistillConfig, files: ModelFiles, factors: Mapping[str, Factors], step: int
) -> Path:
    """Write a student's adapter. Raises FileError, CheckpointError."""
    learned = dict(factors)
    if config.export_rank is not None:
        learned = {name: cut(one, config.export_rank) for name, one in learned.items()}
    training = {
        "kind": "distill", "step": step,
        "warm_steps": min(step, config.warm.steps), "rank": config.rank, "alpha": config.alpha,
        "targets": list(config.targets), "seed": config.seed, "steps": config.grid_steps, "guidance": 1.0,
        "taught_guidance": config.student.guidance,
        "start_from": None if config.start_from is None else Path(config.start_from).name,
    }  # fmt: skip
    header = stated(files, step, config.run_dir, training, usage_hint=f"{config.grid_steps} steps, guidance 1")
    make_folder(path.parent)
    write_lora(path, learned, family=Family.comfyui, metadata=header, dtype=DTYPES[config.export_dtype])
    return path


def write_whole(config: DistillConfig, files: ModelFiles) -> Path:
    """Write the best weights of a run of whole networks; returns what `lens gen -m` is to be given.

    It says of itself that it is the distilled sibling of its model, where the registry has one. Raises LensError.
    """
    out = config.run_dir / "export"
    folder, single = export_transformer(config.run_dir / "best", out)
    name = files.preset.name
    sibling = next((n for n in (f"{name}-turbo", f"{name.removesuffix('-base')}-turbo") if n in presets.names()), name)
    for place in (folder, out):
        write_atomic(place / SIDECAR, (json.dumps({"variant": sibling}) + "\n").encode())
    return beside_its_parts(files, folder, single) or single
