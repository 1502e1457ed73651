"""The optimiser of small networks: Muon for the matrices of the hidden layers, AdamW for everything else.

Muon (Jordan et al. 2024) replaces a matrix's momentum by the nearest matrix with orthonormal rows or columns; scaled
to AdamW's usual update size (Liu et al. 2025, arXiv 2502.16982, section 2.2) it takes AdamW's learning rate and decay.
torch.optim.Muon takes two-dimensional parameters only; experts and fused q, k, v are stacks of matrices.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from train.run.distributed import like, whole

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # the quintic's coefficients, from the same source


def orthogonalise(x_SMN: Tensor, steps: int = 5) -> Tensor:
    """Each matrix (M, N) of a stack -> bfloat16 matrix of the same row and column space, singular values near 1."""
    a, b, c = _NEWTON_SCHULZ
    x = x_SMN.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    x = (x.mT if tall else x).contiguous()
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        poly = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, poly, x, beta=a)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised. `stacks` says into how many matrices a two-dimensional parameter splits (by rows).

    `every`: a parameter moves in every so many steps, in turn with the others, and so many times as far. Its momentum
    gathers every gradient. The products that orthogonalise are a quarter of a step of 16 small pictures on a CPU.

    State per parameter: `momentum`, of the parameter's shape, and `step`.
    """

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float, *, stacks: Mapping[nn.Parameter, int] | None = None,
        momentum: float = 0.95, weight_decay: float = 0.0, every: int = 1,
    ) -> None:  # fmt: skip
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.every = every
        self._stacks = dict(stacks or {})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]  as torch's own
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            same: dict[tuple[int, ...], list[tuple[nn.Parameter, Tensor]]] = defaultdict(list)
            rate = group["lr"] * self.every
            for turn, p in enumerate(parameters):
                state = self.state[p]
                if "momentum" not in state:
                    state["momentum"], state["step"] = torch.zeros_like(p), torch.zeros(())
                state["step"] += 1
                state["momentum"].lerp_(p.grad, 1 - group["momentum"])
                if (int(state["step"]) + turn) % self.every:
                    continue
                # A sharded matrix is orthogonalised whole, on every rank: its rows and columns know of each other.
                nesterov = whole(torch.lerp(p.grad, state["momentum"], group["momentum"]))
                if p.dim() == 4:  # a convolution's kernel is one matrix from all its inputs to its outputs
                    stack = nesterov.reshape(1, len(p), -1)
                else:
                    stack = nesterov.view(self._stacks.get(p, 1), -1, p.shape[-1]) if p.dim() == 2 else nesterov
                same[tuple(stack.shape[1:])].append((p, stack))
            for (m, n), members in same.items():  # one batched product for all matrices of a shape
                updates = orthogonalise(torch.cat([stack for _, stack in members]))
                scale = 0.2 * max(m, n) ** 0.5  # the root mean square of an update as AdamW's
                for (p, _), update in zip(members, updates.split([len(s) for _, s in members]), strict=True):
                    p.mul_(1 - rate * group["weight_decay"])
                    p.add_(like(update.reshape(p.shape).to(p.dtype), p), alpha=-rate * scale)


class Optimizers:
    """Several of torch's optimisers over one network, driven as one. What is frozen has no part in it.

    Its tensors are `<key>.<parameter name>`: `momentum` or `exp_avg` and `exp_avg_sq`, and `step`.
    """

    def __init__(self, model: nn.Module, parts: list[torch.optim.Optimizer]) -> None:
        self.parts = parts
        self._name_of = {p: name for name, p in model.named_parameters()}

    def step(self, learning_rate: float) -> None:
        """Move all parameters that have a gradient."""
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = learning_rate
            part.step()

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, Tensor]:
        """The state, for a checkpoint; nothing of what never had a gradient."""
        return {
            f"{key}.{self._name_of[p]}": value
            for part, _, p in self._parameters()
            for key, value in part.state.get(p, {}).items()
        }

    def empty_tensors(self) -> dict[str, Tensor]:
        """What `tensors` gives after a step, all zeros: to be filled from a checkpoint."""
        out: dict[str, Tensor] = {}
        for part, _, p in self._parameters():
            for key in _moments(part):
                out[f"{key}.{self._name_of[p]}"] = torch.zeros_like(p.detach())
            out[f"step.{self._name_of[p]}"] = torch.zeros(())
        return out

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take over what `tensors` gave, which is emptied: two copies of all moments may not fit.

        What never had a gradient, or had another optimiser, starts anew.
        """
        for part, group, p in self._parameters():
            name, keys = self._name_of[p], _moments(part)
            if any(f"{key}.{name}" not in tensors for key in (*keys, "step")):
                continue
            # A fused or capturable optimizer counts its steps on the parameter's device, any other on the CPU.
            counter = p.device if group.get("fused") or group.get("capturable") else torch.device("cpu")
            part.state[p]["step"] = tensors.pop(f"step.{name}").to(counter)
            for key in keys:
                part.state[p][key] = tensors.pop(f"{key}.{name}").to(p.device, p.dtype)

    def _parameters(self) -> Iterator[tuple[torch.optim.Optimizer, dict[str, Any], nn.Parameter]]:
        for part in self.parts:
            for group in part.param_groups:
                for p in group["params"]:
                    yield part, group, p


def muon_and_adamw(
    model: nn.Module,
    *,
    muon: Callable[[str, nn.Parameter], int] | None = None,
    betas: tuple[float, float],
    weight_decay: float,
    muon_every: int = 1,
) -> Optimizers:
    """Muon over the named matrices and AdamW over the rest, of all that is trained.

    `muon(name, parameter)` is the number of matrices a parameter holds by rows (for stacks of three dimensions: any
    number above 0), or 0 where AdamW takes it; None: AdamW takes all.
    """
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    counts = {p: muon(name, p) if muon else 0 for name, p in named.items()}
    stacks = {p: count for p, count in counts.items() if count}
    rest = [p for p, count in counts.items() if not count]
    groups = [
        {"params": [p for p in rest if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in rest if p.dim() < 2], "weight_decay": 0.0},  # norms, biases, sinks: never decayed
    ]
    parts: list[torch.optim.Optimizer] = []
    if stacks:
        parts.append(Muon(stacks, 0.0, stacks=stacks, weight_decay=weight_decay, every=muon_every))
    parts.append(torch.optim.AdamW([group for group in groups if group["params"]], 0.0, betas, fused=True))
    return Optimizers(model, parts)


def _moments(part: torch.optim.Optimizer) -> tuple[str, ...]:
    return ("momentum",) if isinstance(part, Muon) else ("exp_avg", "exp_avg_sq")
