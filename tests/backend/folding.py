"""The folded schedule of a network that is in memory: what `lens gen` folds from files, for networks that have none."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from backend.checkpoints.formats import TensorEntry, TensorTable
from backend.denoising.modulation import Folded, fold
from backend.model.transformer import LensTransformer2DModel


def fold_network(network: LensTransformer2DModel, sigmas: Sequence[float]) -> Folded:
    """`network` has its modulation layers."""

    def entry(tensor: torch.Tensor) -> TensorEntry:
        return TensorEntry(tuple(tensor.shape), tensor.to)

    table = TensorTable("memory", {name: entry(tensor) for name, tensor in network.named_parameters()})
    weight = network.img_in.weight
    return fold(table, network.params, sigmas, weight.dtype, weight.device)
