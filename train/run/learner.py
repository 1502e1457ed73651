"""One network, the optimiser that moves it, and the average of its weights where there is one.

A stage has as many learners as networks it trains (a student, its fake score, a critic's heads), each under a name,
which is the prefix of its tensors in a checkpoint. What is not trained needs none. One process or many: gradients of
sharded weights are averaged by FSDP in the backward pass, the others here.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Generator
from typing import Generic, TypeVar

from torch import Tensor, nn

from backend.errors import CheckpointError, NumericsError
from train.run import checkpoints
from train.run.distributed import Ranks, whole
from train.run.ema import EMA
from train.run.optim import Optimizers

Network = TypeVar("Network", bound=nn.Module)


class Diverged(NumericsError):
    """A loss or a gradient that is not finite, seen before the step."""


class Learner(Generic[Network]):
    """A network that learns."""

    def __init__(
        self,
        model: Network,
        optimizer: Optimizers,
        ranks: Ranks,
        *,
        name: str = "",
        ema_decay: float | None = None,
        average: Network | None = None,
    ) -> None:
        """`average`: a second network of the same weights that holds the average and is shown; None: with `ema_decay`
        only the averaged numbers are kept, and the network has them while it is shown."""
        self.model, self.optimizer, self.ranks = model, optimizer, ranks
        self.prefix = f"{name}." if name else ""
        self.average = average
        self.ema = None if ema_decay is None else EMA(average or model, ema_decay, own=average is None)

    # ------------------------------------------------------------------------------------------------------ one step

    def backward(self, loss: Tensor) -> None:
        """Add to the gradients. `loss`: this rank's share of a sum over all ranks; FSDP takes means."""
        (loss * self.ranks.world).backward()

    def clip(self, limit: float | None) -> float:
        """Average the gradients over the ranks and clip them to `limit` (None: not); returns the norm before that.

        All ranks must call.
        """
        self.ranks.average(self.model.parameters())
        norm = nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])
        if limit is not None:
            nn.utils.clip_grads_with_norm_(self.model.parameters(), limit, norm)
        return float(whole(norm))

    def move(self, rate: float) -> None:
        """Take the optimiser's step, and let the average follow."""
        self.optimizer.step(rate)
        if self.ema is not None:
            self.ema.update(self.model)

    def apply(self, rate: float, limit: float | None) -> float:
        """`clip` and `move`; returns the norm. Raises Diverged on every rank, before anything has changed."""
        norm = self.clip(limit)
        if not math.isfinite(norm):
            raise Diverged(f"gradient norm {norm:g}")
        self.move(rate)
        return norm

    @contextlib.contextmanager
    def shown(self) -> Generator[Network]:
        """The network with its averaged weights, where there are such, else as it is."""
        if self.average is not None or self.ema is None:
            yield self.average or self.model
            return
        with self.ema.shown(self.model):
            yield self.model

    # ---------------------------------------------------------------------------------------------------------- disk

    def tensors(self) -> dict[str, Tensor]:
        """The whole state, as a checkpoint names it."""
        return {
            **self._learned(),
            **({} if self.ema is None else self._named("ema", self.ema.shadow)),
            **self._named("optimizer", self.optimizer.tensors()),
        }

    def state(self) -> dict[str, int]:
        """What a checkpoint notes beside its tensors."""
        return {f"{self.prefix}ema_updates": 0 if self.ema is None else self.ema.updates}

    def known(self, found: checkpoints.Found) -> bool:
        """Whether a checkpoint has this network: one that learns beside another may have begun later."""
        return any(name.startswith(f"{self.prefix}model.") for name in found.names)

    def restore(self, found: checkpoints.Found) -> None:
        """Take over a checkpoint. Raises CheckpointError."""
        networks = self._learned()
        extra = [name for name in found.names if name.startswith(f"{self.prefix}model.") and name not in networks]
        if extra:
            raise CheckpointError(
                f"{found.folder}: this run's network has no {extra[0].removeprefix(f'{self.prefix}model.')!r}"
            )
        averaged = self.ema is not None and any(name.startswith(f"{self.prefix}ema.") for name in found.names)
        if self.ema is not None and averaged:
            networks |= self._named("ema", self.ema.shadow)
            self.ema.updates = int(found.state.get(f"{self.prefix}ema_updates", 0))
        checkpoints.read(found, networks, self.ranks)
        if self.ema is not None and not averaged:
            self.ema.begin(self.model)  # a run may begin to average later
        self._restore_moments(found)

    def _learned(self) -> dict[str, Tensor]:
        """All that is trained of the network: the whole of it but where it came with frozen parts."""
        return self._named("model", {name: p for name, p in self.model.named_parameters() if p.requires_grad})

    def _named(self, part: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {f"{self.prefix}{part}.{name}": tensor for name, tensor in tensors.items()}

    def _restore_moments(self, found: checkpoints.Found) -> None:
        front = f"{self.prefix}optimizer."
        empty = self._named("optimizer", self.optimizer.empty_tensors())
        other = [name for name in found.names if name.startswith(front) and name not in empty]
        if other:
            raise CheckpointError(
                f"{found.folder}: the run began with another optimiser ({other[0]})",
                hint="optim.muon as it began, or a new run from its weights: --set start_from=… --run-dir …",
            )
        there = {name: tensor for name, tensor in empty.items() if name in found.names}
        checkpoints.read(found, there, self.ranks)
        self.optimizer.restore({name.removeprefix(front): tensor for name, tensor in there.items()})
