"""A small distillation of a tiny model of random weights, and what the tests of it look at."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from backend.checkpoints.resolve import ModelFiles, resolve_model
from tests.train.changed import changed
from tests.train.fine_tuning import CPU
from train.distill.config import Collapse, DistillConfig, nano_smoke
from train.distill.pictures import Packed
from train.distill.run import make_learners
from train.distill.update import Learners, Passes
from train.run.distributed import Ranks

ALONE = Ranks(CPU)
LITTLE: dict[str, Any] = {"steps": 2, "saving__save_every": 1, "saving__validate_every": 3, "watch__prompts": 1}


def plan(run_dir: Path, model: Path, **fields: Any) -> DistillConfig:
    """Two warm steps, three global ones, on noise. Keys of nested fields have two underscores for the dot."""
    from train.config import RandomData

    config = nano_smoke(run_dir)
    small = {
        "model": str(model), "base": 64, "steps": 3, "rank": 4, "data": RandomData(), "groups": 2,
        "machine.compute": "float32", "learning_rate": 1e-3, "fake.learning_rate": 1e-3, "watch.prompts": 2,
        "watch.preview": 1, "saving.validate_every": 2, "saving.preview_every": 5, "collapse": Collapse(stop=False),
        "export_dtype": "float32", "targets": ("attn.img_qkv", "attn.txt_qkv"),
    }  # fmt: skip
    return changed(config, {**small, **{name.replace("__", "."): value for name, value in fields.items()}})


def ready(config: DistillConfig) -> tuple[ModelFiles, Learners, Passes]:
    """Networks and passes without a loop around them."""
    files = resolve_model(config.model)
    learners = make_learners(config, files, files, ALONE)
    return files, learners, Passes(config, ALONE, Packed(config, files, ALONE, lambda _: None))


def state_of(learners: Learners) -> dict[str, Tensor]:
    """Everything that a checkpoint holds, copied."""
    return {name: tensor.detach().clone() for one in learners.all for name, tensor in one.tensors().items()}


def rows(run_dir: Path) -> list[dict[str, float]]:
    """The log, without what a clock tells."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    timed = ("seconds", "step_seconds", "eta_s")
    return [{key: value for key, value in line.items() if key not in timed} for line in lines]
