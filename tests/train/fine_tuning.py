"""Short runs of fine-tuning on a tiny model, and what the tests of it look at."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from train.lora.config import LoraConfig

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parent.parent.parent


def plan(run_dir: Path, pictures: Path, model: Path, cache: Path, **fields: object) -> LoraConfig:
    usual: dict[str, object] = {
        "rank": 4, "alpha": 8.0, "bases": (64,), "steps": 6, "batch": 3, "learning_rate": 1e-2, "warmup": 2,
        "device": "cpu", "previews": 0, "validate_every": 3, "save_every": 2, "log_every": 1, "compute": "float32",
    }  # fmt: skip
    return LoraConfig(run_dir=run_dir, pictures=pictures, model=str(model), cache=cache, **(usual | fields))  # pyright: ignore[reportArgumentType]


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
