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

from backend import latents
from backend.errors import UsageError
from backend.model.autoencoder import AutoencoderKLFlux2, encode_mean, latent_statistics
from backend.model.decode import decode_latent
from backend.model.text_encoder import LensGptOssEncoder
from backend.params import TemplateParams
from backend.sizes import GRID, buckets
from backend.text.harmony import encode_prompt
from train.config import At, PretrainConfig, Stage
from train.run.batch import Grid, Group, Loaded
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


@dataclass(frozen=True)
class Frozen:
    """The networks that are not trained here."""

    vae: AutoencoderKLFlux2
    encoder: LensGptOssEncoder
    tokenizer: Tokenizer


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
    chunk: int, *, seed: int, name: str, base: int, square_share: float, layouts: tuple[float, ...], flat_share: float,
    count: int, tokenizer_json: str, template: TemplateParams, captions: tuple[float, float, float],
    often: Stating,
) -> Drawn:  # fmt: skip
    """One chunk of a round, all in one aspect-ratio bucket; a function of its arguments."""
    rng = random.Random(f"scenes {seed} {base} {name} {chunk}")
    width, height = buckets(base)[4] if rng.random() < square_share else rng.choice(buckets(base))
    tokenizer = _tokenizer(tokenizer_json)
    images, ids, labels, prefix = [], [], [], 0
    for _ in range(count):
        cells = min(width, height) // GRID
        scene = sample_on_grid(rng, cells, aspect=width / height, weights=layouts or None, flat_share=flat_share)
        images.append(np.asarray(render(scene, width, height)))
        labels.append(token_labels(scene, width, height))
        encoded = encode_prompt(tokenizer, template, caption_of(scene, rng, captions, often))
        ids.append(encoded.ids)
        prefix = encoded.prefix
    return Drawn(np.stack(images), ids, prefix, np.stack(labels))


@functools.cache
def _tokenizer(text: str) -> Tokenizer:
    return Tokenizer.from_str(text)


@torch.no_grad()
def encode_images(vae: AutoencoderKLFlux2, images: np.ndarray, device: torch.device) -> Tensor:
    """(B, H, W, 3) uint8 -> (B, N, C) normalised, packed latent means."""
    pixels = torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.autocast(device.type, torch.bfloat16):
        mean = encode_mean(vae, pixels.contiguous(memory_format=torch.channels_last))
    return latents.pack(latents.normalise(latents.patchify(mean.float()), *latent_statistics(vae)))


@torch.no_grad()
def encode_texts(
    encoder: LensGptOssEncoder, ids: list[tuple[int, ...]], prefix: int, take: tuple[int, ...], device: torch.device
) -> list[Tensor]:
    """Features (L, T, F) of each conversation, without its first `prefix` tokens."""
    width = max(len(row) for row in ids)
    batch = torch.zeros(len(ids), width, dtype=torch.long)
    for i, row in enumerate(ids):
        batch[i, : len(row)] = torch.tensor(row)
    with torch.autocast(device.type, torch.bfloat16):
        states = encoder.hidden_states(batch.to(device), take)  # right padding is harmless: attention is causal
    stacked = torch.stack(states, 2)
    return [stacked[i, prefix : len(row)] for i, row in enumerate(ids)]


def encode_round(config: PretrainConfig, stage: Stage, name: str, frozen: Frozen, count: int | None = None) -> Samples:
    """Draw and encode one round, told from others by `name`: latent grid (h, w) -> samples.

    `count`: exactly so many scenes; None: as many whole batches of `encode_batch` as `scenes_per_round` holds.
    """
    device = torch.device(config.device)
    make = functools.partial(
        draw,
        seed=config.seed,
        name=name,
        base=stage.base,
        square_share=stage.square_share,
        layouts=stage.layouts,
        flat_share=stage.flat_share,
        count=config.encode_batch,
        tokenizer_json=frozen.tokenizer.to_str(),
        template=config.template,
        captions=stage.captions,
        often=Stating(stage.coloured_share, stage.placed_share, stage.orderly),
    )
    size = config.encode_batch
    left = config.scenes_per_round // size * size if count is None else count
    out: Samples = {}
    for drawn in Feed(make, start=0, stop=-(-left // size), workers=config.workers):
        if left < size:
            drawn = Drawn(drawn.images[:left], drawn.ids[:left], drawn.prefix, drawn.labels[:left])
        left -= size
        z = encode_images(frozen.vae, drawn.images, device).bfloat16().cpu()
        texts = encode_texts(frozen.encoder, drawn.ids, drawn.prefix, config.params.selected_layer_index, device)
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


def collate(rows: list[Sample], device: torch.device, multiple: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    """Latents (B, N, C), features (B, L, T, F) padded to a multiple of `multiple` tokens, mask (B, L)."""
    longest = max(len(row.text_LTF) for row in rows)
    length = -(-longest // multiple) * multiple
    text = rows[0].text_LTF.new_zeros(len(rows), length, *rows[0].text_LTF.shape[1:])
    mask = torch.zeros(len(rows), length, dtype=torch.bool)
    for i, row in enumerate(rows):
        text[i, : len(row.text_LTF)] = row.text_LTF
        mask[i, : len(row.text_LTF)] = True
    return torch.stack([r.latent_NC for r in rows]).float().to(device), text.to(device), mask.to(device)


def order_of(samples: Samples, stage: Stage, config: PretrainConfig, number: int) -> Batches:
    """All batches of round `number`, pass after pass; one pass more than is used, since part batches are left out."""
    name = f"{config.seed} {stage.base} {number}"
    rng = random.Random(f"order {name}")
    passes = range(config.passes + 1)
    return [row for one in passes for row in batches(samples, stage.batch, rng, f"{name} {one}")]


class SceneSource:
    """Drawn scenes. A group is a batch of the round's order; captions of similar length meet in it."""

    def __init__(
        self, config: PretrainConfig, frozen: Frozen, device: torch.device, networks: str | None = None
    ) -> None:
        """`networks`: the SHA-256 of `frozen`, for checkpoints."""
        self.config, self.frozen, self.device, self.networks = config, frozen, device, networks
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
        x0, text, mask = collate(rows, self.device)
        h, w = group.grid
        names = tuple(f"scene {i} of {w * GRID}x{h * GRID}, round from step {first}" for i in group.refs)
        return Loaded(x0, text, mask, names, torch.stack([row.labels_N2 for row in rows]).to(self.device))

    def held(self, stage: Stage) -> list[tuple[Grid, Loaded]]:
        """HELD scenes (fewer where a round has fewer), the same for every kind of stage at a base."""
        usual = Stage(base=stage.base, steps=stage.steps, batch=stage.batch, learning_rate=stage.learning_rate)
        count = min(HELD, self.config.scenes_per_round)
        at_once = replace(self.config, encode_batch=min(count, self.config.encode_batch))
        drawn = encode_round(at_once, usual, "held out", self.frozen, count)
        return [
            (grid, Loaded(*collate(rows, self.device), names=("held out",) * len(rows)))
            for grid, rows in sorted(drawn.items())
        ]

    def channel_weights(self) -> Tensor:
        """(C,) for the loss, measured on eight scenes; the same on every rank and after a resume."""
        stage = replace(self.config.stages[0], base=128, mix=(), square_share=1.0)
        drawn = encode_round(replace(self.config, scenes_per_round=8, encode_batch=8), stage, "channels", self.frozen)
        ((h, w), rows), *_ = drawn.items()
        statistics = latent_statistics(self.frozen.vae)

        def decode(x_BNC: Tensor) -> Tensor:
            z = latents.denormalise(latents.unpack(x_BNC, h, w), *statistics)
            return decode_latent(self.frozen.vae, latents.unpatchify(z))

        x0 = torch.stack([row.latent_NC for row in rows]).float().to(self.device)
        return loss_weights(sensitivity(decode, x0), self.config.channel_power)

    def _turn_to(self, at: At) -> int:
        """Have the round of a step in memory; returns the step at which it begins."""
        # 9 of 10: part batches are left out, so a pass has a few batches less than its scenes would fill.
        pictures = at.stage.batch * at.stage.groups
        per_round = max(1, self.config.scenes_per_round // pictures * self.config.passes * 9 // 10)
        number = (at.step - at.before) // per_round
        first = at.before + number * per_round
        if first != self._first:
            self._samples = encode_round(self.config, at.stage, f"from {first}", self.frozen)
            self._order = order_of(self._samples, at.stage, self.config, number)
            if not self._order:
                raise UsageError(
                    f"a round of {self.config.scenes_per_round} scenes, drawn {self.config.encode_batch} of a shape at "
                    f"a time, fills no batch of {at.stage.batch}",
                    hint="a larger scenes_per_round or encode_batch, or a smaller batch",
                )
            self._first = first
        return first
