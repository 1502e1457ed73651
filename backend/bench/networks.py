"""Our side of a comparison: the networks of a subject, and a picture made with them as `lens gen` makes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from backend import sampling
from backend.bench import random_weights
from backend.bench.subject import Subject, Text
from backend.errors import NumericsError
from backend.model import checkpoint
from backend.model.autoencoder import AutoencoderKLFlux2, build_vae
from backend.model.transformer import LensTransformer2DModel


def load_transformer(subject: Subject) -> LensTransformer2DModel:
    """From its files, or filled with random numbers on the device itself. Raises CheckpointError."""
    if subject.files is not None:
        return checkpoint.load_transformer(subject.files, subject.dtype, subject.device)
    table = random_weights.transformer_table(subject.params.dit, subject.device)
    with torch.device("meta"), checkpoint.Uninitialised():
        network = LensTransformer2DModel(**asdict(subject.params.dit))
    return checkpoint._fill(network, table, subject.dtype, subject.device)


def load_vae(subject: Subject) -> AutoencoderKLFlux2:
    """As `load_transformer`."""
    if subject.files is not None:
        return checkpoint.load_vae(subject.files, subject.dtype, subject.device)
    table = random_weights.vae_table(subject.params.vae, subject.device)
    with torch.device("meta"), checkpoint.Uninitialised():
        network = build_vae(subject.params.vae)
    return checkpoint._fill(network, table, subject.dtype, subject.device)


@dataclass(frozen=True)
class Denoiser:
    """Everything between noise and the finished latent."""

    subject: Subject
    transformer: LensTransformer2DModel
    text: Text

    def __call__(self, on_step: Callable[[int], None]) -> Tensor:
        """The packed latent (1, N, C) float32. Raises NumericsError."""
        subject, guidance = self.subject, self.subject.case.request.guidance

        def velocity(x: Tensor, sigma: float) -> Tensor:
            t = torch.full((1,), sigma, device=subject.device)
            x = x.to(subject.dtype)
            c = self.transformer(x, t, self.text.conditional_1LTF, subject.grid)
            if self.text.unconditional_1LTF is None:
                return c
            u = self.transformer(x, t, self.text.unconditional_1LTF, subject.grid)
            return sampling.guide(c, u, guidance)

        x = sampling.denoise(velocity, subject.noise(), subject.sigmas, lambda i, x: on_step(i))
        if not bool(torch.isfinite(x).all()):
            raise NumericsError("the latent is not finite", hint="try --dtype float32")
        return x
