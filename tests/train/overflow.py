"""A network whose loss is no number once a weight is large, as real ones overflow that learn too fast."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from train.run import step
from train.run.batch import Batch
from train.run.step import Losses


def overflows_beyond(limit: float, patch: pytest.MonkeyPatch) -> None:
    """`limit`: largest number that a trained weight may be."""
    usual = step.take_step

    def take_step(learner: Any, batches: Any, losses: Losses, *arguments: Any, **options: Any) -> step.Taken:
        def overflowing(model: torch.nn.Module, batch: Batch) -> Tensor:
            largest = max(float(p.detach().abs().max()) for p in model.parameters() if p.requires_grad)
            return losses(model, batch) * (torch.inf if largest > limit else 1.0)

        return usual(learner, batches, overflowing, *arguments, **options)

    for stage in ("train.pretrain", "train.lora.run"):
        patch.setattr(f"{stage}.take_step", take_step)
