"""Where batches come from, and how the ranks share a step.

A *source* plans a step for all ranks at once: a list of groups, each of pictures of one shape. The plan is a function
of (config, step) alone, so it is the same on every rank, on any number of ranks, and after a resume. `share` gives each
rank its part; only that part is read and encoded.

The random numbers of a picture (its time, noise and dropout) derive from (seed, step, its place in the step). So the
global batch decides what a step computes, not the number of ranks nor the size of a pass.

Shapes: B pictures, N image tokens, C packed channels, L text tokens, T text-encoder layers, F features.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from train.config import At, Noise, Stage
from train.losses import flow
from train.run.distributed import Ranks

Grid = tuple[int, int]  # height and width of a latent, in tokens


@dataclass(frozen=True)
class Group:
    """Pictures of one shape that pass the network together."""

    grid: Grid
    refs: tuple[Hashable, ...]  # what the source finds them by
    places: tuple[int, ...]  # of each in the step
    weights: tuple[float, ...]  # of each in the step's loss; over all groups of all ranks they sum to 1

    def part(self, start: int, stop: int) -> Group:
        return Group(self.grid, self.refs[start:stop], self.places[start:stop], self.weights[start:stop])


@dataclass
class Loaded:
    """Pictures and captions as the frozen networks see them, on the device."""

    x0_BNC: Tensor  # float32, normalised and packed
    text_BLTF: Tensor
    mask_BL: Tensor  # True for real tokens
    names: tuple[str, ...]  # what a person finds each picture by
    labels_BN2: Tensor | None = None  # what covers each token (train.world.align); None: not known


@dataclass
class Batch:
    """One pass: pictures with their noise and times."""

    x0_BNC: Tensor
    eps_BNC: Tensor
    t_B: Tensor
    text_BLTF: Tensor
    mask_BL: Tensor  # all False for a dropped caption
    grid: Grid
    weights_B: Tensor
    names: tuple[str, ...]
    labels_BN2: Tensor | None = None


class BatchSource(Protocol):
    """A stream of training data. Both methods are functions of their arguments, in any order of calls."""

    def groups(self, at: At) -> list[tuple[Grid, list[Hashable]]]:
        """The step's groups, the same on every rank."""
        ...

    def load(self, at: At, group: Group) -> Loaded:
        """Read and encode this rank's group."""
        ...

    def held(self, stage: Stage) -> list[tuple[Grid, Loaded]]:
        """Pictures that are never trained on, for the validation loss; [] where there are none."""
        ...


def padded(texts: list[Tensor], multiple: int = 16) -> tuple[Tensor, Tensor]:
    """Features (L, T, F) each -> (B, L, T, F) and mask (B, L): a multiple of `multiple` long, so shapes recur."""
    longest = max(1, *(len(text) for text in texts))
    length = -(-longest // multiple) * multiple
    out = texts[0].new_zeros(len(texts), length, *texts[0].shape[1:])
    mask = torch.zeros(len(texts), length, dtype=torch.bool, device=out.device)
    for i, text in enumerate(texts):
        out[i, : len(text)] = text
        mask[i, : len(text)] = True
    return out, mask


# ----------------------------------------------------------------------------------------------------------- sharing


def share(
    groups: Sequence[tuple[Grid, Sequence[Hashable]]], *, rank: int, world: int, micro_batch: int | None, average: str
) -> list[Group]:
    """This rank's passes of a step. Every rank gets the same number: FSDP's collectives must meet.

    Fewer groups than ranks: each is cut into as many parts as bring work to all. A rank with fewer passes than another
    repeats one picture with weight 0.
    """
    total, count = sum(len(refs) for _, refs in groups), len(groups)
    marked: list[Group] = []
    place = 0
    for grid, refs in groups:
        weight = 1 / total if average == "sample" else 1 / (count * len(refs))
        places = tuple(range(place, place + len(refs)))
        marked.append(Group(grid, tuple(refs), places, (weight,) * len(refs)))
        place += len(refs)
    if count < world:
        marked = [part for group in marked for part in _cut(group, -(-len(group.refs) * count // world) or 1)]
    passes: list[list[Group]] = [[] for _ in range(world)]
    for i, group in enumerate(marked):
        passes[i % world] += _cut(group, micro_batch or len(group.refs))
    mine, most = passes[rank], max(len(one) for one in passes)
    idle = replace((mine or marked)[0].part(0, 1), weights=(0.0,))
    return mine + [idle] * (most - len(mine))


def _cut(group: Group, size: int) -> list[Group]:
    return [group.part(i, i + size) for i in range(0, len(group.refs), size)]


# ------------------------------------------------------------------------------------------------------------- noise


def noised(noise: Noise, seed: int, at: At, group: Group, loaded: Loaded) -> Batch:
    """Give each picture its time and noise, and each caption its chance to be dropped."""
    x0 = loaded.x0_BNC
    mu = flow.training_mu(x0.shape[1]) + at.stage.time_offset
    rows = [_draws(noise, seed, at.step, place, mu, tuple(x0.shape[1:])) for place in group.places]
    t, eps, kept = (torch.stack(parts) for parts in zip(*rows, strict=True))
    return Batch(
        x0_BNC=x0,
        eps_BNC=eps.to(x0.device),
        t_B=t.to(x0.device),
        text_BLTF=loaded.text_BLTF,
        mask_BL=loaded.mask_BL & kept.to(x0.device)[:, None],
        grid=group.grid,
        weights_B=torch.tensor(group.weights, device=x0.device),
        names=loaded.names,
        labels_BN2=loaded.labels_BN2,
    )


def _draws(
    noise: Noise, seed: int, step: int, place: int, mu: float, shape: tuple[int, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """Time, noise and whether the caption is kept, of one picture of a step."""
    digest = hashlib.blake2b(f"{seed} {step} {place}".encode(), digest_size=7).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little"))
    t = flow.sample_times(1, mu, generator, noise.time_std)[0]
    kept = torch.rand((), generator=generator) >= noise.dropout
    return t, torch.randn(shape, generator=generator), kept


def passes(
    source: BatchSource, at: At, ranks: Ranks, noise: Noise, *, seed: int, micro_batch: int | None, average: str
) -> list[Batch]:
    """This rank's passes of a step: planned for all, its own part read, encoded and given its noise."""
    groups = share(source.groups(at), rank=ranks.rank, world=ranks.world, micro_batch=micro_batch, average=average)
    return [noised(noise, seed, at, group, source.load(at, group)) for group in groups]
