"""Random weights of any model's shape, for measuring speed and memory where no checkpoint is.

Each tensor is a function of its name, the seed, the dtype and the device, and is drawn where and when it is needed: a
network of 4.1 billion parameters never exists in float32 or on another device first, and a tensor that was dropped
can be drawn again. The scales keep activations of order one through 48 blocks, with gates that let every block
contribute; they are not those of trained weights (whose residual stream reaches 3e7), and neither speed nor memory
depends on them.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from backend.checkpoints.formats import Entry, TensorTable
from backend.model.tensors import transformer_shapes
from backend.params import DiTParams, VAEParams

ORIGIN = "random weights"
MODULATION_GAIN = 0.3  # of modulation rows: scales and gates of a few tenths


def transformer_table(params: DiTParams, dtype: torch.dtype, device: torch.device, seed: int = 0) -> TensorTable:
    """Every tensor of the transformer as a file of `dtype` would hold it, none of them drawn yet."""
    return _table(transformer_shapes(params), dtype, device, seed, params)


def vae_table(params: VAEParams, dtype: torch.dtype, device: torch.device, seed: int = 0) -> TensorTable:
    """Every tensor of the autoencoder, none of them drawn yet."""
    from backend.loading import Uninitialised
    from backend.model.autoencoder import build_vae

    with torch.device("meta"), Uninitialised():
        shapes = {name: tuple(tensor.shape) for name, tensor in build_vae(params).state_dict().items()}
    return _table(shapes, dtype, device, seed, None)


def text_features(params: DiTParams, tokens: int, dtype: torch.dtype, device: torch.device, seed: int = 0) -> Tensor:
    """(1, L, T, F) in place of an encoder's: the transformer normalises them, so their scale does not matter."""
    shape = (1, tokens, len(params.selected_layer_index), params.enc_hidden_dim)
    return _draw("text features", shape, device, seed, dtype)


def _table(
    shapes: Mapping[str, tuple[int, ...]],
    dtype: torch.dtype,
    device: torch.device,
    seed: int,
    params: DiTParams | None,
) -> TensorTable:
    def read(name: str, shape: tuple[int, ...], wanted: torch.dtype) -> Tensor:
        drawn = random_tensor(name, shape, device, seed, dtype)
        return drawn.to(wanted) if drawn.is_floating_point() else drawn

    entries = {name: Entry(shape, partial(read, name, shape)) for name, shape in shapes.items()}
    return TensorTable(ORIGIN, entries, params)


def random_tensor(name: str, shape: tuple[int, ...], device: torch.device, seed: int, dtype: torch.dtype) -> Tensor:
    """Linear and convolution weights: normal, 1 / sqrt(inputs). Norms near 1, biases near 0, variances 1."""
    if name.endswith("num_batches_tracked"):
        return torch.ones(shape, dtype=torch.int64, device=device)
    if name.endswith("running_var"):
        return torch.ones(shape, dtype=dtype, device=device)
    drawn = _draw(name, shape, device, seed, dtype)
    if len(shape) > 1:
        gain = MODULATION_GAIN if "_mod." in name or name.startswith("norm_out.") else 1.0
        return drawn.mul_(gain / math.sqrt(math.prod(shape[1:])))
    if name.endswith(".bias") or name.endswith("running_mean"):
        return drawn.mul_(0.02)
    return drawn.mul_(0.1).add_(1.0)


def _draw(name: str, shape: tuple[int, ...], device: torch.device, seed: int, dtype: torch.dtype) -> Tensor:
    """Standard normal numbers, drawn in `dtype` on `device`. crc32: unlike hash(), the same in every process."""
    generator = torch.Generator(device).manual_seed((seed << 32) + zlib.crc32(name.encode()))
    return torch.empty(shape, dtype=dtype, device=device).normal_(generator=generator)
