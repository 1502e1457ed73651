"""Rounds of training data: scenes drawn and encoded once by the frozen networks, then seen several times.

Everything derives from (seed, round): a resumed run draws what an uninterrupted one would have. `SceneSource` is the
source of batches (`train.run.batch`); every rank draws and encodes the whole round, which for small networks is cheaper
than to send it around.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Hashable
from dataclasses import dataclass, replace

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from backend.denoising import latents
from backend.errors import UsageError
from backend.model.autoencoder import latent_statistics
from backend.model.decode import decode_latent
from backend.params import TemplateParams
from backend.sizes import GRID, buckets
from backend.text.harmony import encode_prompt
from train.batches.encoders import Frozen, encode_images, encode_texts
from train.config import At, SceneData, SceneMix, Stage
from train.run.batch import Grid, Group, Loaded, padded
from train.run.feed import Feed
from train.world.align import token_labels
from train.world.dialogues import caption_of
from train.world.drawing import render
from train.world.grid import sample_on_grid
from train.world.scene_text import Stating
from train.world.sensitivity import loss_weights, sensitivity

HELD = 128  # scenes of the validation loss

Samples = dict[Grid, list["Sample"]]
Batches = list[tuple[Grid, list[int]]]  # of a round: grid and indices of its samples


@dataclass
class Sample:
    latent_NC: Tensor  # bfloat16, normalised and packed
    text_LTF: Tensor  # bfloat16
    labels_N2: Tensor  # uint8: what covers each token (train.world.align)


@dataclass
class Drawn:
    """What a drawing process hands over: pictures of one size and the token ids of their captions."""

    images: np.ndarray  # (B, H, W, 3) uint8
    ids: list[tuple[int, ...]]
    prefix: int
    labels: np.ndarray  # (B, N, 2) uint8


def draw(
    chunk: int, *, seed: int, name: str, base: int, square_share: float, mix: SceneMix, count: int,
    tokenizer_json: str, template: TemplateParams,
) -> Drawn:  # fmt: skip
    """One chunk of a round, all in one aspect-ratio bucket; a function of its arguments."""
    rng = random.Random(f"scenes {seed} {base} {name} {chunk}")
    width, height = buckets(base)[4] if rng.random() < square_share else rng.choice(buckets(base))
    tokenizer = _tokenizer(tokenizer_json)
    weights = None if mix.layouts is None else mix.layouts.weights
    often = Stating(mix.coloured_share, mix.placed_share, mix.orderly)
    images, ids, labels, prefix = [], [], [], 0
    for _ in range(count):
        cells = min(width, height) // GRID
        scene = sample_on_grid(rng, cells, aspect=width / height, weights=weights, flat_share=mix.flat_share)
        images.append(np.asarray(render(scene, width, height)))
        labels.append(token_labels(scene, width, height))
        encoded = encode_prompt(tokenizer, template, caption_of(scene, rng, mix.captions, often))
        ids.append(encoded.ids)
        prefix = encoded.prefix
    return Drawn(np.stack(images), ids, prefix, np.stack(labels))


@functools.cache
def _tokenizer(text: str) -> Tokenizer:
    return Tokenizer.from_str(text)


@dataclass(frozen=True)
class Scenes:
    """All that decides the scenes of a run but the stage."""

    data: SceneData
    seed: int
    workers: int  # processes that draw
    template: TemplateParams
    blocks: tuple[int, ...]  # of the text encoder, that are read
    device: torch.device


def encode_round(
    scenes: Scenes, stage: Stage, mix: SceneMix, name: str, frozen: Frozen, count: int | None = None
) -> Samples:
    """Draw and encode one round, told from others by `name`: latent grid (h, w) -> samples.

    `count`: exactly so many scenes; None: as many whole batches of `encode_batch` as `per_round` holds.
    """
    size = scenes.data.encode_batch
    make = functools.partial(
        draw,
        seed=scenes.seed,
        name=name,
        base=stage.base,
        square_share=stage.square_share,
        mix=mix,
        count=size,
        tokenizer_json=frozen.tokenizer.to_str(),
        template=scenes.template,
    )
    left = scenes.data.per_round // size * size if count is None else count
    out: Samples = {}
    for drawn in Feed(make, start=0, stop=-(-left // size), workers=scenes.workers):
        if left < size:
            drawn = Drawn(drawn.images[:left], drawn.ids[:left], drawn.prefix, drawn.labels[:left])
        left -= size
        z = encode_images(frozen.vae, drawn.images, scenes.device).bfloat16().cpu()
        texts = encode_texts(frozen.encoder, drawn.ids, drawn.prefix, scenes.blocks, scenes.device)
        grid = (drawn.images.shape[1] // GRID, drawn.images.shape[2] // GRID)
        out.setdefault(grid, []).extend(
            Sample(latent, text.bfloat16().cpu().clone(), labels)
            for latent, text, labels in zip(z, texts, torch.from_numpy(drawn.labels), strict=True)
        )
    return out


def batches(samples: Samples, batch: int, rng: random.Random, name: str) -> Batches:
    """One pass over a round: (grid, indices) of full batches whose captions are of similar length, in random order.

    What fills no batch of its shape is left out, other scenes in every pass, which `name` tells from others.
    """
    out: Batches = []
    for grid in sorted(samples):
        rows = samples[grid]
        # Jitter keeps the same captions from meeting every pass; similar lengths keep padding small.
        order = sorted(range(len(rows)), key=lambda i: len(rows[i].text_LTF) + rng.uniform(0, 12))
        # At random, not the end of the order: that is always the longest captions.
        rest = len(order) % batch
        left_out = set(random.Random(f"left out {name} {grid}").sample(range(len(rows)), rest))
        order = [i for i in order if i not in left_out]
        out += [(grid, order[i : i + batch]) for i in range(0, len(order), batch)]
    rng.shuffle(out)
    return out


def collate(rows: list[Sample], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Latents (B, N, C), features (B, L, T, F) and their mask (B, L), on the device."""
    text, mask = padded([row.text_LTF for row in rows])
    return torch.stack([r.latent_NC for r in rows]).float().to(device), text.to(device), mask.to(device)


def order_of(samples: Samples, stage: Stage, scenes: Scenes, number: int) -> Batches:
    """All batches of round `number`, pass after pass; one pass more than is used, since part batches are left out."""
    name = f"{scenes.seed} {stage.base} {number}"
    rng = random.Random(f"order {name}")
    passes = range(scenes.data.passes + 1)
    return [row for one in passes for row in batches(samples, stage.batch, rng, f"{name} {one}")]


class SceneSource:
    """Drawn scenes. A group is a batch of the round's order; captions of similar length meet in it."""

    def __init__(self, scenes: Scenes, frozen: Frozen, networks: str | None = None) -> None:
        """`networks`: the SHA-256 of `frozen`, for checkpoints."""
        self.scenes, self.frozen, self.networks = scenes, frozen, networks
        self._first: int | None = None  # step at which the round in memory began
        self._samples: Samples = {}
        self._order: Batches = []

    def groups(self, at: At) -> list[tuple[Grid, list[Hashable]]]:
        first = self._turn_to(at)
        start, order = (at.step - first) * at.stage.groups, self._order
        chosen = [order[(start + i) % len(order)] for i in range(at.stage.groups)]
        return [(grid, list[Hashable](index)) for grid, index in chosen]

    def load(self, at: At, group: Group) -> Loaded:
        first = self._turn_to(at)
        rows = [self._samples[group.grid][i] for i in group.refs if isinstance(i, int)]
        h, w = group.grid
        names = tuple(f"scene {i} of {w * GRID}x{h * GRID}, round from step {first}" for i in group.refs)
        labels = torch.stack([row.labels_N2 for row in rows]).to(self.scenes.device)
        return Loaded(*collate(rows, self.scenes.device), names, labels)

    def held(self, stage: Stage) -> list[tuple[Grid, Loaded]]:
        """HELD scenes (fewer where a round has fewer), the same for every kind of stage at a base."""
        usual = Stage(base=stage.base, steps=stage.steps, batch=stage.batch, learning_rate=stage.learning_rate)
        count = min(HELD, self.scenes.data.per_round)
        drawn = encode_round(
            self._drawing(encode_batch=min(count, self.scenes.data.encode_batch)), usual, SceneMix(), "held out",
            self.frozen, count,
        )  # fmt: skip
        return [
            (grid, Loaded(*collate(rows, self.scenes.device), names=("held out",) * len(rows)))
            for grid, rows in sorted(drawn.items())
        ]

    def channel_weights(self, first: Stage) -> Tensor | None:
        """(C,) for the loss, measured on eight scenes of the run's first stage; the same on every rank and after a
        resume. None: every channel the same."""
        if not self.scenes.data.channel_power:
            return None
        stage = replace(first, base=128, square_share=1.0)
        drawing = self._drawing(per_round=8, encode_batch=8)
        drawn = encode_round(drawing, stage, self.scenes.data.mix(0), "channels", self.frozen)
        ((h, w), rows), *_ = drawn.items()
        statistics = latent_statistics(self.frozen.vae)

        def decode(x_BNC: Tensor) -> Tensor:
            z = latents.denormalise(latents.unpack(x_BNC, h, w), *statistics)
            return decode_latent(self.frozen.vae, latents.unpatchify(z))

        x0 = torch.stack([row.latent_NC for row in rows]).float().to(self.scenes.device)
        return loss_weights(sensitivity(decode, x0), self.scenes.data.channel_power)

    def _drawing(self, **fields: int) -> Scenes:
        return replace(self.scenes, data=replace(self.scenes.data, **fields))

    def _turn_to(self, at: At) -> int:
        """Have the round of a step in memory; returns the step at which it begins."""
        data = self.scenes.data
        # 9 of 10: part batches are left out, so a pass has a few batches less than its scenes would fill.
        pictures = at.stage.batch * at.stage.groups
        rounds = max(1, data.per_round // pictures * data.passes * 9 // 10)  # steps of one
        number = (at.step - at.before) // rounds
        first = at.before + number * rounds
        if first != self._first:
            self._samples = encode_round(self.scenes, at.stage, data.mix(at.place), f"from {first}", self.frozen)
            self._order = order_of(self._samples, at.stage, self.scenes, number)
            if not self._order:
                raise UsageError(
                    f"a round of {data.per_round} scenes, drawn {data.encode_batch} of a shape at "
                    f"a time, fills no batch of {at.stage.batch}",
                    hint="a larger data.per_round or data.encode_batch, or a smaller batch",
                )
            self._first = first
        return first
