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
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from backend.checkpoints.formats import TensorEntry, TensorTable
from backend.checkpoints.packing_plan import BLOCK_LINEAR, QuantPlan, plan_plain
from backend.loaders import TORCH_DTYPES
from backend.memory.device import choose_device
from backend.memory.footprint import Job
from backend.memory.machine import ITEMSIZE, RunPlan, look_at
from backend.memory.plan import MachineMemory, ModelBytes, make_plan
from backend.model.tensors import transformer_shapes
from backend.params import DiTParams, ModelParams, VAEParams
from backend.pipeline import Texts
from backend.presets import Component, Preset
from backend.types import DType, Encoder, GenerationRequest, ModelIdentity, Quant

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

    entries = {name: TensorEntry(shape, partial(read, name, shape)) for name, shape in shapes.items()}
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


@dataclass(frozen=True)
class RandomLoader:
    """Makes networks of random weights (`backend.loaders.Loader`); random features stand in for the text encoder's."""

    preset: Preset
    text_tokens: int
    dtype: DType  # of the arithmetic, in which weights are drawn
    device: torch.device  # where they are drawn

    @property
    def params(self) -> ModelParams:
        return self.preset.params

    def identity(self) -> ModelIdentity:
        return ModelIdentity(name=self.preset.name)

    def stamp(self, part: Component) -> Hashable:
        return ORIGIN, part, self.preset.name, self.dtype, self.device

    def plan(self, request: GenerationRequest, machine: MachineMemory) -> RunPlan:
        """As for the files of such a model, but packed only where that is asked for."""
        quant = _quant(request.quant, self.params.dit)
        job = Job(
            params=self.params,
            width=request.width,
            height=request.height,
            steps=request.steps,
            guided=request.guidance != 1.0,
            text_tokens=self.text_tokens,
            itemsize=ITEMSIZE[self.dtype],
            block_bits=quant.bits,
            bitsandbytes=quant.bitsandbytes,
        )
        model = ModelBytes(job=job, held=quant.scheme or str(self.dtype), mapped=False)
        plan = make_plan(model, machine, profile=request.profile, vram=request.vram)
        return RunPlan(plan=plan, model=model, machine=machine, dtype=self.dtype, quant=quant)

    def encoder(self, wanted: Encoder) -> Encoder:
        return Encoder.exact

    def encode(
        self, request: GenerationRequest, encoder: Encoder, dtype: torch.dtype, device: torch.device, *_: Any, **__: Any
    ) -> Texts:
        """Random features, and no text tokens for the unconditional branch."""
        features = text_features(self.params.dit, self.text_tokens, dtype, device)
        return features, None if request.guidance == 1.0 else features[:, :0]

    def transformer(self) -> TensorTable:
        return transformer_table(self.params.dit, TORCH_DTYPES[self.dtype], self.device)

    def vae(self) -> TensorTable:
        return vae_table(self.params.vae, TORCH_DTYPES[self.dtype], self.device)

    def transformer_sha256(self) -> str:
        raise NotImplementedError("random weights have no file, and nothing that is made of them is kept on the disk")


def random_loader(request: GenerationRequest, preset: Preset, text_tokens: int) -> RandomLoader:
    """Draws where the request's plan wants the networks: on the CPU where blocks are streamed.

    Raises UsageError for a device that is not here, OutOfMemoryError with the numbers where no plan fits.
    """
    device, dtype = choose_device(request.device), request.dtype
    if dtype is DType.auto:  # what the real model of that name would run in here; the published ones are bfloat16
        small = preset.embedded is not None and device.type == "cpu"
        dtype = DType.float32 if small else DType.bfloat16
    loader = RandomLoader(preset, text_tokens, dtype, device)
    streamed = loader.plan(request, look_at(device)).plan.streamed
    return replace(loader, device=torch.device("cpu")) if streamed else loader


def _quant(wanted: Quant, params: DiTParams) -> QuantPlan:
    """Random weights are packed only where that is asked for."""
    shapes = [shape for name, shape in transformer_shapes(params).items() if BLOCK_LINEAR.fullmatch(name)]
    return plan_plain(wanted, sum(map(math.prod, shapes)), sum(rows for rows, _ in shapes))
