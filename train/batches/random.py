"""Noise of the right shapes as a source of batches: times a step without data or frozen networks."""

from __future__ import annotations

import random
from collections.abc import Hashable

import torch

from backend.sizes import GRID, buckets
from train.config import At, PretrainConfig, Stage
from train.run.batch import Grid, Group, Loaded


class RandomSource:
    """Pictures and captions of random numbers. Their loss means nothing."""

    def __init__(self, config: PretrainConfig, device: torch.device) -> None:
        self.config, self.device = config, device

    def groups(self, at: At) -> list[tuple[Grid, list[Hashable]]]:
        out: list[tuple[Grid, list[Hashable]]] = []
        for number in range(at.stage.groups):
            rng = random.Random(f"random {self.config.seed} {at.step} {number}")
            base = rng.choices(at.stage.bases, [base.weight for base in at.stage.bases])[0]
            width, height = bucket(base.base, at.stage.square_share, rng)
            refs: list[Hashable] = [(number, i) for i in range(base.batch)]
            out.append(((height // GRID, width // GRID), refs))
        return out

    def load(self, at: At, group: Group) -> Loaded:
        params, (h, w) = self.config.params, group.grid
        text = (self.config.caption_tokens, len(params.selected_layer_index), params.enc_hidden_dim)
        x0, features, labels = [], [], []
        for place in group.places:  # one at a time: what a picture is does not depend on how a step is shared out
            generator = torch.Generator(self.device).manual_seed((self.config.seed * 1009 + at.step) * 100_003 + place)
            x0.append(torch.randn((h * w, params.in_channels), generator=generator, device=self.device))
            features.append(torch.randn(text, generator=generator, device=self.device).bfloat16())
            labels.append(torch.randint(0, 2, (h * w, 2), generator=generator, device=self.device))
        return Loaded(
            x0_BNC=torch.stack(x0),
            text_BLTF=torch.stack(features),
            mask_BL=torch.ones((len(x0), text[0]), dtype=torch.bool, device=self.device),
            names=tuple(f"random picture {place} of step {at.step}" for place in group.places),
            labels_BN2=torch.stack(labels),
        )

    def held(self, stage: Stage) -> list[tuple[Grid, Loaded]]:
        return []


def bucket(base: int, square_share: float, rng: random.Random) -> tuple[int, int]:
    """(W, H) of one of a base's nine buckets: square with probability `square_share`, else any of the nine."""
    sizes = buckets(base)
    return sizes[4] if rng.random() < square_share else rng.choice(sizes)
