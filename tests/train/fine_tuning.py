"""Short runs of fine-tuning on a tiny model, and what the tests of it look at."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.train.changed import changed
from train.config import Machine, Optim, Saving
from train.lora.config import LoraConfig

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parent.parent.parent


def plan(run_dir: Path, pictures: Path, model: Path, cache: Path, **fields: Any) -> LoraConfig:
    """Keys of nested fields have two underscores for the dot: `saving__keep=1`."""
    config = LoraConfig(
        run_dir=run_dir, pictures=pictures, model=str(model), cache=cache, rank=4, alpha=8.0, bases=(64,), steps=6,
        batch=3, learning_rate=1e-2, previews=0, optim=Optim(warmup=2),
        machine=Machine(device="cpu", compute="float32", compile=False),
        saving=Saving(validate_every=3, preview_every=500, save_every=2, log_every=1),
    )  # fmt: skip
    return changed(config, {name.replace("__", "."): value for name, value in fields.items()})


def rows(run_dir: Path) -> list[dict[str, float]]:
    """The log, without what a clock tells."""
    timed = ("seconds", "pictures_per_s", "tflops", "eta_s")
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in timed} for line in lines]


def velocity(network: torch.nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    x, text = torch.randn(2, 16, 128, generator=generator), torch.randn(2, 5, 2, 64, generator=generator)
    with torch.no_grad():
        return network(x, torch.tensor([0.3, 0.8]), text, (4, 4))
