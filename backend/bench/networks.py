"""Our side of a comparison: the networks of a subject, and a picture made with them as `lens gen` makes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor

from backend import loading, sampling
from backend.bench import random_weights
from backend.bench.subject import Subject, Text
from backend.denoising import modulation
from backend.denoising.compile import compile_blocks, failing_as_ours
from backend.denoising.denoiser import Denoiser
from backend.denoising.modulation import Folded
from backend.denoising.stream import StreamedBlocks, making_room, stream_blocks
from backend.errors import NumericsError
from backend.kernels.attention import Choices
from backend.kernels.graphs import cuda_graphs
from backend.memory.plan import Place
from backend.model.autoencoder import AutoencoderKLFlux2, build_vae
from backend.model.transformer import LensBlock, LensTransformer2DModel
from backend.pipeline import decode_tensor


@dataclass(frozen=True)
class Transformer:
    """The network without its modulation layers, what those say of the schedule, and where its blocks come from."""

    network: LensTransformer2DModel
    folded: Folded
    source: StreamedBlocks[LensBlock] | None  # None: they are on the device


def load_transformer(subject: Subject) -> Transformer:
    """From its files, or drawn at random where it is to lie, the modulation one block at a time.

    Raises CheckpointError, UsageError where the request wants compiled blocks and nothing can be compiled here.
    """
    if subject.files is not None:
        network, folded = loading.load_transformer(
            subject.files, subject.dtype, subject.home, quant=subject.quant, sigmas=subject.sigmas[:-1],
            fold_on=subject.device,
        )  # fmt: skip
    else:
        params, folded = subject.params.dit, fold(subject)
        with torch.device("meta"), loading.Uninitialised():
            network = LensTransformer2DModel(**asdict(params))
        network.drop_modulation()
        unused = tuple(modulation.modulation_names(params))
        table = subject.transformer_table()
        network = loading._fill(network, table, subject.dtype, subject.home, unused, subject.quant)
    source = None
    if subject.plan.streamed:
        source = stream_blocks(network, subject.device, packed=subject.plan.place is Place.pinned)
    elif subject.case.request.compiled:
        compile_blocks(network)
    return Transformer(network, folded, source)


def fold(subject: Subject) -> Folded:
    """The modulation of the request's schedule alone."""
    return modulation.fold(
        subject.transformer_table(), subject.params.dit, subject.sigmas[:-1], subject.dtype, subject.device
    )


def load_vae(subject: Subject) -> AutoencoderKLFlux2:
    """As `load_transformer`."""
    if subject.files is not None:
        return loading.load_vae(subject.files, subject.dtype, subject.home)
    table = random_weights.vae_table(subject.params.vae, subject.dtype, subject.home)
    with torch.device("meta"), loading.Uninitialised():
        network = build_vae(subject.params.vae)
    network = loading._fill(network, table, subject.dtype, subject.home)
    if subject.home.type == "cuda":  # as `checkpoint.load_vae` lays it
        cast(Any, network).to(memory_format=torch.channels_last)
    return network


@dataclass(frozen=True, kw_only=True)
class Ours:
    """Everything between noise and picture. Call it within `torch.inference_mode`."""

    subject: Subject
    transformer: Transformer
    vae: AutoencoderKLFlux2
    text: Text
    say: Callable[[str], None]  # gets what a person should know about the device's kernels

    @cached_property
    def denoiser(self) -> Denoiser:
        """Made by the first picture, which chooses its kernels, and kept for the others, as for all of a request."""
        subject, transformer = self.subject, self.transformer
        graphs = 0 if subject.case.request.compiled else subject.plan.graphs
        return Denoiser(
            transformer.network,
            transformer.folded,
            subject.grid,
            self.text.conditional_1LTF,
            self.text.unconditional_1LTF,
            guidance=subject.case.request.guidance,
            source=transformer.source,
            attention=Choices(subject.device, None),
            graphs=cuda_graphs(subject.device, graphs, self.say),
        )

    def denoise(self, on_step: Callable[[int], None]) -> Tensor:
        """The packed latent (1, N, C) float32. Raises NumericsError, LensError where compiling fails."""
        with failing_as_ours():
            x = sampling.denoise(self.denoiser, self.subject.noise(), self.subject.sigmas, lambda i, x: on_step(i))
        if not bool(torch.isfinite(x).all()):
            raise NumericsError("the latent is not finite", hint="try --dtype float32")
        return x

    def decode(self, x_1NC: Tensor) -> Tensor:
        """(1, 3, H, W), about [-1, 1]. Raises NumericsError."""
        subject = self.subject
        with making_room(self.transformer.source, self.vae, subject.device):
            return decode_tensor(self.vae, x_1NC, *subject.grid, subject.dtype, subject.plan.decode)
