"""Where the networks of one model come from, as an engine asks for them: its files, or numbers drawn at random."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch

from backend import loading
from backend.cache.store import Stores
from backend.checkpoints.formats import TensorTable
from backend.checkpoints.identity import identify_model
from backend.checkpoints.resolve import ModelFiles
from backend.lora.own import own_loras, transformer_sha256
from backend.memory.machine import RunPlan, plan_run
from backend.memory.plan import MachineMemory
from backend.params import ModelParams
from backend.pipeline import Texts
from backend.presets import Component
from backend.text.choose_encoder import choose_encoder
from backend.text.features import FeatureSource
from backend.types import DType, Encoder, GenerationRequest, ModelIdentity, Phase

if TYPE_CHECKING:
    from backend.text.llama import LlamaModel

TORCH_DTYPES = {DType.float32: torch.float32, DType.bfloat16: torch.bfloat16}
PhaseHook = Callable[[Phase], AbstractContextManager[None]]


class Loader(Protocol):
    """Makes the networks of one model: from its files (`FileLoader`), or at random (`backend.bench.random_weights`)."""

    @property
    def params(self) -> ModelParams: ...

    def identity(self) -> ModelIdentity: ...

    def stamp(self, part: Component) -> Hashable:
        """What tells the weights of a part from all others, those of the same file before it was replaced included."""
        ...

    def plan(self, request: GenerationRequest, machine: MachineMemory) -> RunPlan: ...

    def encoder(self, wanted: Encoder) -> Encoder:
        """What computes the features: never auto."""
        ...

    def encode(
        self, request: GenerationRequest, encoder: Encoder, dtype: torch.dtype, device: torch.device, phase: PhaseHook,
        *, stores: Stores, language_model: Callable[[Path, int], LlamaModel], say: Callable[[str], None],
    ) -> Texts:  # fmt: skip
        """As `FeatureSource.branches`. `language_model` opens a GGUF; `say` is told of what is not read of a prompt."""
        ...

    def transformer(self) -> TensorTable: ...

    def vae(self) -> TensorTable: ...

    def transformer_sha256(self) -> str:
        """The SHA-256 of the transformer's files, which keys what is computed from them and kept on the disk."""
        ...


@dataclass(frozen=True)
class FileLoader:
    """Makes networks of a model's files."""

    files: ModelFiles

    @property
    def params(self) -> ModelParams:
        return self.files.preset.params

    def identity(self) -> ModelIdentity:
        return identify_model(self.files)

    def stamp(self, part: Component) -> Hashable:
        stats = [(path, path.stat()) for path in self.files.parts.files(part)]
        return (*((path, stat.st_size, stat.st_mtime_ns) for path, stat in stats), *self._adapters(part))

    def _adapters(self, part: Component) -> tuple[Hashable, ...]:
        uses = own_loras(self.files) if part is Component.transformer else ()
        return tuple((use.sha256, use.scale) for use in uses)

    def plan(self, request: GenerationRequest, machine: MachineMemory) -> RunPlan:
        return plan_run(request, self.files, machine)

    def encoder(self, wanted: Encoder) -> Encoder:
        return choose_encoder(wanted, self.files)

    def encode(
        self, request: GenerationRequest, encoder: Encoder, dtype: torch.dtype, device: torch.device, phase: PhaseHook,
        *, stores: Stores, language_model: Callable[[Path, int], LlamaModel], say: Callable[[str], None],
    ) -> Texts:  # fmt: skip
        def llama() -> LlamaModel:
            return language_model(self.files.text_encoder[0], self.params.text.template.max_tokens)

        source = FeatureSource(
            files=self.files, encoder=encoder, dtype=dtype, device=device, store=stores.embeddings, llama=llama, say=say
        )
        return source.branches(request, phase)

    def transformer(self) -> TensorTable:
        return loading.open_transformer_table(self.files)

    def vae(self) -> TensorTable:
        return loading.open_vae_table(self.files)

    def transformer_sha256(self) -> str:
        return transformer_sha256(self.files)
