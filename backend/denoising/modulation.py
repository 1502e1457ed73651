"""What the time says to every block, computed once for a whole schedule instead of at every step of every picture.

Modulation depends on sigma and the weights alone, so its layers, a third of the published parameters (2.7 GB in
bfloat16), need not be loaded: they are read one block at a time, and what remains is 1.77 MB a step. Every sigma is a
product of its own with one row, which is what a loop at batch 1 computes: the numbers are the same to the last bit.

Shapes: S steps, D width, W = 12 D a block (six image parts, six text parts) and 2 D of the final norm at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from backend.checkpoints.formats import TensorTable
from backend.model.transformer import BlockModulation, time_features
from backend.params import DiTParams


@dataclass(frozen=True)
class Folded:
    """The modulation of a schedule. One row holds a step, so that a step is one run of bytes."""

    sigmas: tuple[float, ...]  # one a step: the schedule without the 0 at its end
    table_SW: Tensor
    dim: int  # D

    def block(self, step: int, index: int) -> BlockModulation:
        """(1, 6 D) for each stream of block `index`; views."""
        start, width = 12 * self.dim * index, 6 * self.dim
        row = self.table_SW[step : step + 1, start : start + 2 * width]
        return BlockModulation(row[:, :width], row[:, width:])

    def final(self, step: int) -> Tensor:
        """(1, 2 D) of the final norm; a view."""
        return self.table_SW[step : step + 1, -2 * self.dim :]


def table_width(params: DiTParams) -> int:
    """W: numbers a step."""
    return (12 * params.num_layers + 2) * params.dim


def modulation_names(params: DiTParams) -> list[str]:
    """The tensors that this file reads and nothing else needs, by their public names."""
    layers = ["time_text_embed.timestep_embedder.linear_1", "time_text_embed.timestep_embedder.linear_2"]
    for index in range(params.num_layers):
        layers += [f"transformer_blocks.{index}.{stream}_mod.1" for stream in ("img", "txt")]
    return [f"{layer}.{part}" for layer in (*layers, "norm_out.linear") for part in ("weight", "bias")]


@torch.no_grad()
def fold(
    table: TensorTable, params: DiTParams, sigmas: Sequence[float], dtype: torch.dtype, device: torch.device | str
) -> Folded:
    """From files: no more than one block's modulation weights are in memory or on the device at any time."""

    def read(name: str) -> Tensor:
        return table.tensor(name, dtype).to(device)

    times = [time_features(torch.tensor([sigma], device=device)).to(dtype) for sigma in sigmas]
    embedder = "time_text_embed.timestep_embedder"
    hidden = [F.silu(row) for row in _rows(read, f"{embedder}.linear_1", times)]
    # Every modulation begins with a SiLU of the time embedding.
    rows = [F.silu(row) for row in _rows(read, f"{embedder}.linear_2", hidden)]
    out = torch.empty(len(rows), table_width(params), dtype=dtype, device=device)
    start = 0
    for index in range(params.num_layers):
        for stream in ("img", "txt"):
            part = out[:, start : (start := start + 6 * params.dim)]
            part.copy_(torch.cat(_rows(read, f"transformer_blocks.{index}.{stream}_mod.1", rows)))
        table.release()
    out[:, start:] = torch.cat(_rows(read, "norm_out.linear", rows))
    return Folded(tuple(sigmas), out, params.dim)


def _rows(read: Callable[[str], Tensor], layer: str, rows: Sequence[Tensor]) -> list[Tensor]:
    """The linear layer of one row after the other: a product of several rows would round otherwise."""
    weight, bias = read(f"{layer}.weight"), read(f"{layer}.bias")
    return [F.linear(row, weight, bias) for row in rows]
