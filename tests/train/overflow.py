"""A network whose loss is no number once a weight is large, as real ones overflow that learn too fast."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from backend.model.transformer import LensTransformer2DModel
from train.run.batch import Batch
from train.run.step import Trained


def overflows_beyond(limit: float, patch: pytest.MonkeyPatch) -> None:
    """`limit`: largest number that a trained weight may be."""
    usual = Trained.losses

    def losses(self: Trained, model: LensTransformer2DModel, batch: Batch) -> Tensor:
        largest = max(float(p.detach().abs().max()) for p in model.parameters() if p.requires_grad)
        return usual(self, model, batch) * (torch.inf if largest > limit else 1.0)

    patch.setattr(Trained, "losses", losses)
