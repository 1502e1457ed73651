"""Our side of a comparison: the networks of a subject, and a picture made with them as `lens gen` makes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property

import torch
from torch import Tensor

from backend import latents, sampling
from backend.bench import random_weights
from backend.bench.subject import Subject, Text
from backend.errors import NumericsError
from backend.model import checkpoint, modulation
from backend.model.autoencoder import AutoencoderKLFlux2, build_vae, decode_latent, latent_statistics
from backend.model.denoiser import Denoiser
from backend.model.modulation import Folded
from backend.model.transformer import LensTransformer2DModel


def load_transformer(subject: Subject) -> tuple[LensTransformer2DModel, Folded]:
    """Without its modulation layers, and what they say of the request's schedule: from its files, or drawn at random on
    the device itself, the modulation one block at a time. Raises CheckpointError.
    """
    if subject.files is not None:
        return checkpoint.load_transformer(
            subject.files, subject.dtype, subject.device, quant=subject.quant, sigmas=subject.sigmas[:-1]
        )
    params, table = subject.params.dit, subject.transformer_table()
    folded = fold(subject)
    with torch.device("meta"), checkpoint.Uninitialised():
        network = LensTransformer2DModel(**asdict(params))
    network.drop_modulation()
    unused = tuple(modulation.modulation_names(params))
    return checkpoint._fill(network, table, subject.dtype, subject.device, unused, subject.quant), folded


def fold(subject: Subject) -> Folded:
    """The modulation of the request's schedule alone."""
    return modulation.fold(
        subject.transformer_table(), subject.params.dit, subject.sigmas[:-1], subject.dtype, subject.device
    )


def load_vae(subject: Subject) -> AutoencoderKLFlux2:
    """As `load_transformer`."""
    if subject.files is not None:
        return checkpoint.load_vae(subject.files, subject.dtype, subject.device)
    table = random_weights.vae_table(subject.params.vae, subject.dtype, subject.device)
    with torch.device("meta"), checkpoint.Uninitialised():
        network = build_vae(subject.params.vae)
    return checkpoint._fill(network, table, subject.dtype, subject.device)


@dataclass(frozen=True, kw_only=True)
class Ours:
    """Everything between noise and picture. Call it within `torch.inference_mode`."""

    subject: Subject
    transformer: LensTransformer2DModel
    folded: Folded
    vae: AutoencoderKLFlux2
    text: Text

    @cached_property
    def denoiser(self) -> Denoiser:
        """Made by the first picture and kept for the others, as `lens gen` does for all seeds of a request."""
        return Denoiser(
            self.transformer,
            self.folded,
            self.subject.grid,
            self.text.conditional_1LTF,
            self.text.unconditional_1LTF,
            guidance=self.subject.case.request.guidance,
        )

    def denoise(self, on_step: Callable[[int], None]) -> Tensor:
        """The packed latent (1, N, C) float32. Raises NumericsError."""
        x = sampling.denoise(self.denoiser, self.subject.noise(), self.subject.sigmas, lambda i, x: on_step(i))
        if not bool(torch.isfinite(x).all()):
            raise NumericsError("the latent is not finite", hint="try --dtype float32")
        return x

    def decode(self, x_1NC: Tensor) -> Tensor:
        """(1, 3, H, W), about [-1, 1]. Raises NumericsError."""
        z = latents.denormalise(latents.unpack(x_1NC.float(), *self.subject.grid), *latent_statistics(self.vae))
        decoded = decode_latent(self.vae, latents.unpatchify(z).to(self.subject.dtype))
        if not bool(torch.isfinite(decoded).all()):
            raise NumericsError("the decoded picture is not finite", hint="try --dtype float32")
        return decoded
