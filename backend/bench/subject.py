"""What is measured: one model, from files or from random weights, made ready for one request.

The networks are those of `lens gen`, loaded by the same functions; only their weights may be random, and then random
features stand in for the text encoder's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from backend import latents, presets, sampling
from backend.bench import random_weights
from backend.bench.case import Case
from backend.checkpoints import formats
from backend.checkpoints.formats import TensorTable
from backend.checkpoints.packing_plan import BLOCK_LINEAR, QuantPlan, plan_plain
from backend.checkpoints.resolve import ModelFiles, resolve_model
from backend.loading import check_device
from backend.memory.device import choose_device
from backend.memory.footprint import Job
from backend.memory.machine import ITEMSIZE, look_at, plan_request
from backend.memory.plan import EncoderPlace, Machine, MemoryPlan, ModelBytes, make_plan
from backend.model.tensors import transformer_shapes
from backend.params import DiTParams, ModelParams
from backend.pipeline import TORCH_DTYPES
from backend.sizes import GRID
from backend.text.features import FeatureSource
from backend.text.shared_llama import choose_encoder
from backend.types import DType, Phase, Quant

PhaseHook = Callable[[Phase], AbstractContextManager[None]]


@dataclass(frozen=True)
class Text:
    """What the transformer reads: (1, L, T, F) of the prompt, and of the unconditional branch where it runs."""

    conditional_1LTF: Tensor
    unconditional_1LTF: Tensor | None

    @property
    def tokens(self) -> int:
        return self.conditional_1LTF.shape[1]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model on a device, nothing loaded yet."""

    case: Case
    params: ModelParams
    files: ModelFiles | None  # None: random weights
    device: torch.device
    dtype: torch.dtype
    grid: tuple[int, int]  # latent height and width
    sigmas: tuple[float, ...]
    quant: QuantPlan
    plan: MemoryPlan  # of memory: as `lens gen` makes it for this device

    @property
    def home(self) -> torch.device:
        """Where the networks are loaded to: the CPU for blocks that are streamed, and the VAE that waits its turn."""
        return torch.device("cpu") if self.plan.streamed else self.device

    def text(self, hook: PhaseHook) -> Text:
        """Features of the request, computed (never looked up); `hook` wraps the phases that happen."""
        request = self.case.request
        if self.files is None:
            features = random_weights.text_features(self.params.dit, self.case.text_tokens, self.dtype, self.device)
            return Text(features, None if request.guidance == 1.0 else features[:, :0])
        encoder = choose_encoder(request.encoder, self.files)
        reader = self.device if self.plan.reader is EncoderPlace.gpu else torch.device("cpu")
        source = FeatureSource(files=self.files, encoder=encoder, dtype=self.dtype, device=reader)
        return Text(*source.branches(request, hook))

    def transformer_table(self) -> TensorTable:
        """Every tensor of the transformer under its public name, none read yet."""
        if self.files is None:
            return random_weights.transformer_table(self.params.dit, self.dtype, self.home)
        return formats.open_transformer(self.files.transformer)

    def noise(self) -> Tensor:
        """(1, N, C) float32 of the request's first seed."""
        return latents.noise(self.case.request.seeds[0], *self.grid).to(self.device)


def open_subject(case: Case) -> Subject:
    """Resolve files, device and dtype. Raises what `resolve_model` raises, UsageError for a device that is not here,
    OutOfMemoryError with the numbers where no plan fits."""
    request = case.request
    device = choose_device(request.device)
    check_device(request.quant, device)
    machine = look_at(device)
    if case.random:
        preset, files = presets.get(request.model), None
        dtype = _random_dtype(request.dtype, device, small=preset.embedded is not None)
        quant = _random_quant(request.quant, preset.params.dit)
        plan = _random_plan(case, preset.params, machine, dtype, quant)
    else:
        files = resolve_model(request.model)
        preset = files.preset
        planned = plan_request(request, files, machine)
        dtype, quant, plan = planned.dtype, planned.quant, planned.plan
    h, w = request.height // GRID, request.width // GRID
    return Subject(
        case=case,
        params=preset.params,
        files=files,
        device=device,
        dtype=TORCH_DTYPES[dtype],
        grid=(h, w),
        sigmas=sampling.schedule(h * w, request.steps),
        quant=quant,
        plan=plan,
    )


def _random_dtype(wanted: DType, device: torch.device, *, small: bool) -> DType:
    """auto: what the real model of that name would run in here; the published ones are stored in bfloat16."""
    if wanted is not DType.auto:
        return wanted
    return DType.float32 if small and device.type == "cpu" else DType.bfloat16


def _random_quant(wanted: Quant, params: DiTParams) -> QuantPlan:
    """Random weights are packed only where that is asked for."""
    shapes = [shape for name, shape in transformer_shapes(params).items() if BLOCK_LINEAR.fullmatch(name)]
    return plan_plain(wanted, sum(map(math.prod, shapes)), sum(rows for rows, _ in shapes))


def _random_plan(case: Case, params: ModelParams, machine: Machine, dtype: DType, quant: QuantPlan) -> MemoryPlan:
    request = case.request
    job = Job(
        params=params,
        width=request.width,
        height=request.height,
        steps=request.steps,
        guided=request.guidance != 1.0,
        text_tokens=case.text_tokens,
        itemsize=ITEMSIZE[dtype],
        block_bits=quant.bits,
        bitsandbytes=quant.bitsandbytes,
    )
    model = ModelBytes(job=job, held=quant.scheme or str(dtype), mapped=False)
    return make_plan(model, machine, profile=request.profile, vram=request.vram)
