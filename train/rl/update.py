"""The training phase of an epoch: which pairs of a picture and a time, in which gradient step, and what a step does.

Everything is a function of (seed, epoch, group, picture, time): a run that is killed here begins the epoch's training
again from its checkpoint, and comes to the same numbers.

Legend: G groups, K pictures of a group; B pairs of one pass, N image tokens, C packed channels.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from backend.model.transformer import LensTransformer2DModel
from train.losses import flow, nft
from train.rl.chance import shuffled
from train.rl.config import RLConfig
from train.rl.rollout import PromptGroup, guided, noise_seed, sigmas_of
from train.rl.views import Views
from train.run.batch import Grid, padded
from train.run.distributed import Ranks
from train.run.learner import Learner


@dataclass(frozen=True)
class Pair:
    """A picture at one of the rollout's times."""

    place: int  # of its group
    index: int  # in the group
    time: int  # among the rollout's steps


@dataclass(frozen=True)
class EpochPictures:
    """What an epoch's training works on."""

    number: int
    groups: Sequence[PromptGroup]
    latents: Sequence[Tensor]  # (K, N, C) of each group
    r_GK: Tensor  # probability of being optimal
    counted_GK: Tensor  # bool
    texts: Mapping[str, Tensor]  # prompt -> (L, T, F)


@dataclass
class StepTaken:
    """What one gradient step knows about itself: means over its pairs."""

    same: bool  # current and old were one policy when it began
    pairs: int = 0
    policy: float = 0.0  # loss
    kl: float = 0.0
    deviation: float = 0.0  # mean |v - v_old|^2
    norm_ratio: float = 0.0  # |v| / |v_ref|
    hinge: float = 0.0
    grad_norm: float = 0.0


SUMMED = ("policy", "kl", "deviation", "norm_ratio", "hinge")  # each rank has its pairs' part of these


def pairs(config: RLConfig, counted_GK: Tensor, epoch: int) -> list[list[Pair]]:
    """The pairs of each gradient step. A picture with all its times is in one step; steps have as many, give or take
    one; a step without a pair is left out."""
    pictures = [(int(g), int(k)) for g, k in counted_GK.nonzero().tolist()]
    order = shuffled(pictures, "pictures", config.seed, epoch)
    steps = [order[i :: config.nft.gradient_steps] for i in range(config.nft.gradient_steps)]
    return [[pair for g, k in step for pair in _times(config, epoch, g, k)] for step in steps if step]


def _times(config: RLConfig, epoch: int, place: int, index: int) -> list[Pair]:
    drawn = shuffled(range(config.rollout.steps), "times", config.seed, epoch, place, index)[: config.nft.times]
    return [Pair(place, index, time) for time in drawn]


def passes(config: RLConfig, epoch: EpochPictures, step: Sequence[Pair]) -> list[list[Pair]]:
    """Cut a step into passes of pairs of one shape, at most `machine.micro_batch` each."""
    by_grid: dict[Grid, list[Pair]] = defaultdict(list)
    for pair in step:
        by_grid[epoch.groups[pair.place].grid].append(pair)
    size = config.machine.micro_batch or len(step)
    return [row[i : i + size] for row in by_grid.values() for i in range(0, len(row), size)]


@dataclass(frozen=True)
class Pass:
    """One pass on the device."""

    x0_BNC: Tensor
    x_t_BNC: Tensor
    t_B: Tensor
    r_B: Tensor
    text_BLTF: Tensor
    mask_BL: Tensor
    grid: Grid


def load(config: RLConfig, epoch: EpochPictures, row: Sequence[Pair], device: torch.device) -> Pass:
    """The pairs of a pass with their noise."""
    grid = epoch.groups[row[0].place].grid
    sigmas = sigmas_of(grid, config.rollout.steps)
    x0 = torch.stack([epoch.latents[pair.place][pair.index] for pair in row])
    eps = torch.stack([_noise(config, epoch.number, pair, x0.shape[1:]) for pair in row])
    t_B = torch.tensor([sigmas[pair.time] for pair in row])
    text, mask = padded([epoch.texts[epoch.groups[pair.place].prompt.prompt] for pair in row])
    return Pass(
        x0_BNC=x0.to(device),
        x_t_BNC=flow.interpolate(x0, eps, t_B).to(device),
        t_B=t_B.to(device),
        r_B=torch.stack([epoch.r_GK[pair.place, pair.index] for pair in row]).to(device),
        text_BLTF=text.to(device),
        mask_BL=mask.to(device),
        grid=grid,
    )


def _noise(config: RLConfig, epoch: int, pair: Pair, shape: torch.Size) -> Tensor:
    seed = noise_seed("pair", config.seed, epoch, pair.place, pair.index, pair.time)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def take_step(
    config: RLConfig,
    views: Views,
    learner: Learner[LensTransformer2DModel],
    epoch: EpochPictures,
    step: Sequence[Pair],
    rate: float,
) -> StepTaken:
    """One gradient step, of which this rank computes its share. Raises Diverged before anything has changed."""
    every, ranks = config.nft.reference_every, learner.ranks
    asked = {pair for place, pair in enumerate(step) if place % every == 0}  # those whose reference is asked
    said = StepTaken(same=views.same, pairs=len(step))
    learner.optimizer.zero_grad()
    for row in passes(config, epoch, share(step, ranks)):
        rows = [i for i, pair in enumerate(row) if pair in asked]
        _backward(config, views, learner, load(config, epoch, row, ranks.device), rows, len(step), len(asked), said)
    said.grad_norm = learner.apply(rate, config.optim.clip)
    for name, value in zip(SUMMED, ranks.sums([getattr(said, name) for name in SUMMED]), strict=True):
        setattr(said, name, value)
    return said


def share(step: Sequence[Pair], ranks: Ranks) -> Sequence[Pair]:
    """The pairs of a step that this rank computes: a piece without gaps, so that every rank asks the reference as often
    as the others."""
    return step[len(step) * ranks.rank // ranks.world : len(step) * (ranks.rank + 1) // ranks.world]


def _backward(
    config: RLConfig, views: Views, learner: Learner[LensTransformer2DModel], batch: Pass, rows: list[int], count: int,
    asked: int, said: StepTaken,
) -> None:  # fmt: skip
    """Add one pass to the gradients and to `said`. `count`, `asked`: pairs of the step, and those with a reference."""
    loss_of, network = config.nft, learner.model

    def velocity(part: slice | list[int]) -> Tensor:
        return guided(
            network, batch.x_t_BNC[part], batch.t_B[part], batch.text_BLTF[part], batch.mask_BL[part], batch.grid,
            loss_of.guidance, config.machine.compute,
        )  # fmt: skip

    # Old and reference first: they exchange what the backward pass of the current policy reads.
    v_old = v_ref = None
    if not said.same:
        with views.old():
            v_old = velocity(slice(None))
    if rows:
        with views.reference():
            v_ref = velocity(rows)
    v = velocity(slice(None))
    # On-policy the two are equal by definition, and a forward pass is saved.
    old = v.detach() if v_old is None else v_old
    policy = nft.policy_losses(
        v, old, batch.x_t_BNC, batch.x0_BNC, batch.t_B, batch.r_B, beta=loss_of.beta, clip=loss_of.advantage_clip,
        adaptive=loss_of.adaptive,
    )  # fmt: skip
    loss = policy.sum() / count
    if v_ref is not None:
        kl, hinge = nft.kl_losses(v[rows], v_ref), nft.norm_hinge_losses(v[rows], v_ref)
        loss = loss + (loss_of.kl_weight * kl.sum() + loss_of.norm_hinge * hinge.sum()) / asked
        said.kl += float(kl.detach().sum()) / asked
        said.hinge += float(hinge.detach().sum()) / asked
        said.norm_ratio += float(nft.norm_ratio(v[rows], v_ref).sum()) / asked
    said.policy += float(policy.detach().sum()) / count
    said.deviation += float(nft.kl_losses(v.detach(), old).sum()) / count
    learner.backward(loss)
