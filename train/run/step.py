"""One optimiser step: passes, gradients, the check that all is finite, the move."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from train.run.batch import Batch
from train.run.distributed import Ranks
from train.run.learner import Diverged, Learner, Network

NAMED = 8  # pictures that an error lists

Velocity = Callable[[Tensor, Tensor], Tensor]  # x_t (B, N, C) and t (B,) -> the network's answer (B, N, C)
Formula = Callable[[Velocity, Tensor, Tensor, Tensor], Tensor]  # velocity, x0, eps, t -> (B,), as `flow.losses`
Losses = Callable[[Any, Batch], Tensor]  # a network and a pass -> (B,) the loss of each picture


@dataclass(frozen=True)
class Taken:
    """What one step knows about itself, the same on every rank."""

    loss: float
    grad_norm: float
    beside: dict[str, float]  # the losses beside the main one, by name
    asked_to_stop: bool  # by any rank's signal


NOT_TAKEN = Taken(math.nan, math.nan, {}, asked_to_stop=False)  # before the first step


@dataclass(frozen=True)
class Beside:
    """A loss beside the main one, which a small network of its own reads off the same forward pass."""

    name: str  # in the log
    learner: Learner[nn.Module]
    weight: float
    loss: Callable[[Batch], Tensor | None]  # None: not known of this pass


def transformer_losses(formula: Formula, ranks: Ranks, compute: str) -> Losses:
    """Apply a formula of `train.losses` to a transformer and its passes, computed in `compute`."""
    # Sharded parameters come in the compute precision already; autocast would only slow them down.
    autocast = compute == "bfloat16" and ranks.mesh is None

    def losses(model: nn.Module, batch: Batch) -> Tensor:
        def velocity(x_t: Tensor, t_B: Tensor) -> Tensor:
            with torch.autocast(x_t.device.type, torch.bfloat16, enabled=autocast):
                return model(x_t, t_B, batch.text_BLTF, batch.grid, batch.mask_BL)

        return formula(velocity, batch.x0_BNC, batch.eps_BNC, batch.t_B)

    return losses


def take_step(
    learner: Learner[Network],
    batches: Sequence[Batch],
    losses: Losses,
    rate: float,
    clip: float,
    *,
    beside: Sequence[Beside] = (),
    stop: bool = False,
) -> Taken:
    """One optimiser step on this rank's passes. Raises Diverged, on every rank, before anything changed.

    `clip`: largest norm of the gradient. `stop`: this rank was asked to.
    """
    for one in (learner, *(other.learner for other in beside)):
        one.optimizer.zero_grad()
    each: list[Tensor] = []
    others = [0.0] * len(beside)
    for batch in batches:
        each.append(losses(learner.model, batch))
        loss = (each[-1] * batch.weights_B).sum()
        for i, other in enumerate(beside):
            found = other.loss(batch)
            if found is not None:
                shared = found * batch.weights_B.sum()
                others[i] += float(shared.detach())
                loss = loss + other.weight * shared
        learner.backward(loss)
    mine = sum(float((one.detach() * b.weights_B).sum()) for one, b in zip(each, batches, strict=True))
    loss, stops, *others = learner.ranks.sums([mine, float(stop), *others])
    norm = learner.clip(clip)
    norms = [other.learner.clip(None) for other in beside]
    if not all(math.isfinite(value) for value in (loss, norm, *others, *norms)):
        raise _diverged(loss, norm, each, batches, learner)
    learner.move(rate)
    for other in beside:
        other.learner.move(rate)
    return Taken(loss, norm, {b.name: value for b, value in zip(beside, others, strict=True)}, stops > 0)


def _diverged(
    loss: float, norm: float, losses: Sequence[Tensor], batches: Sequence[Batch], learner: Learner[Network]
) -> Diverged:
    """The error of a step that is not taken, with the pictures that are at fault; forgets the gradients."""
    pairs = zip(losses, batches, strict=True)
    rows = [(n, float(one)) for each, batch in pairs for n, one in zip(batch.names, each.detach(), strict=True)]
    bad = [name for name, one in rows if not math.isfinite(one)]
    suspects = [name for one in learner.ranks.gathered(bad) for name in one]
    every = [name for one in learner.ranks.gathered([name for name, _ in rows]) for name in one]
    shown = list(dict.fromkeys(suspects or every))
    more = f" and {len(shown) - NAMED} more" if len(shown) > NAMED else ""
    whose = "pictures whose loss is not finite" if suspects else "no single loss is at fault; the step's pictures"
    learner.optimizer.zero_grad()
    return Diverged(f"loss {loss:g}, gradient norm {norm:g}; {whose}: {', '.join(shown[:NAMED])}{more}")
