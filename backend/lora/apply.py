"""LoRAs on a transformer: fused into the weights while they are read, or live beside quantised linears.

*Fused*: W + strength * factor * delta in float32, cast once afterwards, whatever format W is stored in. Several LoRAs
add up. The network that comes out is an ordinary one: nothing runs slower.

*Live*: a quantised weight has steps that are coarser than most updates, so an update fused before quantising is partly
rounded away. The low-rank product then stays beside the linear: y = linear(x) + up (down x). Only the linears that
quantisation acts on get this; everything else (modulation, img_in, txt_in, proj_out) is fused in every mode.

Legend: O outputs, I inputs, R rank (of all live LoRAs of a linear together).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backend.checkpoints.formats import TensorEntry, TensorTable
from backend.checkpoints.tensor_files import TensorFiles
from backend.errors import CheckpointError
from backend.lora.keys import Update, UpdateKind, read_lora
from backend.types import LoraMode, LoraUse

EPS = torch.finfo(torch.float32).eps


def fuse(table: TensorTable, uses: Sequence[LoraUse]) -> TensorTable:
    """Put the LoRAs into the tensors of a table, but for what runs live (`live_updates`).

    Nothing is computed before a tensor is read. Raises CheckpointError as `lora_keys.read_lora` does.
    """
    changes: dict[str, list[_Change]] = {}
    for change in _changes(table, uses):
        if not change.live:
            changes.setdefault(change.update.target, []).append(change)
    if not changes:
        return table
    fused = {name: _with_changes(table.entries[name], todo) for name, todo in changes.items()}
    return replace(table, entries={**table.entries, **fused})


def live_updates(table: TensorTable, uses: Sequence[LoraUse]) -> dict[str, tuple[LowRank, ...]]:
    """Module name -> what runs beside that linear: the low-rank updates of the uses whose mode is live."""
    found: dict[str, tuple[LowRank, ...]] = {}
    for change in _changes(table, uses):
        if change.live:
            module = change.update.target.removesuffix(".weight")
            low_rank = LowRank(change.tensor("down"), change.tensor("up"), change.scale)
            found[module] = (*found.get(module, ()), low_rank)
    return found


def attach(network: nn.Module, updates: Mapping[str, Sequence[LowRank]], dtype: torch.dtype) -> None:
    """Put every linear that `updates` names, of whatever kind, behind a `LiveLora`, in place."""
    for name, several in updates.items():
        network.set_submodule(name, LiveLora(network.get_submodule(name), several, dtype))


def fingerprint(uses: Sequence[LoraUse]) -> str:
    """SHA-256 that changes with everything about the LoRAs that changes a weight; "" where none acts.

    Whatever is computed from the transformer's weights and kept (folded schedules, prompts after txt_in) has it in its
    key.
    """
    facts = [[use.sha256, use.scale, str(use.mode)] for use in uses if use.scale]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest() if facts else ""


# Live ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LowRank:
    """scale * up @ down, in float32."""

    down_RI: Tensor
    up_OR: Tensor
    scale: float  # alpha / rank times the strength


class LiveLora(nn.Module):
    """linear(x) + up (down x): all LoRAs of one linear as one pair of matrices, their scales inside `up`."""

    def __init__(self, linear: nn.Module, updates: Sequence[LowRank], dtype: torch.dtype) -> None:
        """`dtype` of the arithmetic, which a quantised linear does not tell."""
        super().__init__()
        self.linear = linear
        device = next(chain(linear.parameters(), linear.buffers())).device  # a quantised one has buffers only
        self.down_RI: Tensor
        self.up_OR: Tensor
        self.register_buffer("down_RI", torch.cat([u.down_RI for u in updates]).to(device, dtype))
        self.register_buffer("up_OR", torch.cat([u.scale * u.up_OR for u in updates], dim=1).to(device, dtype))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + F.linear(F.linear(x, self.down_RI), self.up_OR)


# Fused ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Change:
    """One update of one LoRA, and how strongly it acts."""

    files: TensorFiles
    update: Update
    use: LoraUse

    @property
    def live(self) -> bool:
        return self.use.mode is LoraMode.live and self.update.can_be_live

    @property
    def scale(self) -> float:
        return self.use.scale * self.update.factor

    def tensor(self, role: str) -> Tensor:
        """A stored factor in float32. Raises CheckpointError where it is not finite."""
        return self._stored(self.update.stored[role])

    def added_to(self, total: Tensor, weight: Tensor) -> Tensor:
        """`total` (the weight and other changes) and this change; `weight` is what the checkpoint holds. Float32."""
        if self.update.magnitude is not None:
            return torch.add(total, self._decomposed(weight) - weight, alpha=self.use.scale)
        if self.update.kind is UpdateKind.low_rank:
            return torch.addmm(total, self.tensor("up"), self.tensor("down"), alpha=self.scale)
        return torch.add(total, self._delta(), alpha=self.scale)

    def _delta(self) -> Tensor:
        """The change at factor 1."""
        match self.update.kind:
            case UpdateKind.low_rank:
                return self.tensor("up") @ self.tensor("down")
            case UpdateKind.lokr:
                return torch.kron(self._matrix("lokr_w1"), self._matrix("lokr_w2"))
            case UpdateKind.loha:
                return self._matrix("hada_w1") * self._matrix("hada_w2")
            case UpdateKind.full:
                return self.tensor("diff")

    def _matrix(self, name: str) -> Tensor:
        """A factor that is whole, or a product of two."""
        if name in self.update.stored:
            return self.tensor(name)
        return self.tensor(f"{name}_a") @ self.tensor(f"{name}_b")

    def _decomposed(self, weight: Tensor) -> Tensor:
        """DoRA at full strength: magnitude * V / |V|, V = W + factor * delta, a norm an output (or, rarely, an input).

        Source: arXiv 2402.09353, equation 5. Less strength goes a part of the way from W to it, as in ComfyUI; at 0
        nothing changes, though the magnitudes need not be W's own.
        """
        assert self.update.magnitude is not None
        magnitude = self._stored(self.update.magnitude)
        direction = torch.add(weight, self._delta(), alpha=self.update.factor)
        per_input = magnitude.ndim == 2 and magnitude.shape[0] == 1 and weight.shape[0] != 1
        norm = direction.norm(dim=0 if per_input else 1, keepdim=True)
        return direction * (magnitude.reshape(norm.shape) / norm.clamp_min(EPS))

    def _stored(self, name: str) -> Tensor:
        tensor = self.files.floats(name, torch.float32)
        if not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{self.files.origin}: {name!r} is not finite", hint="the file is damaged")
        return tensor


def _changes(table: TensorTable, uses: Sequence[LoraUse]) -> Iterator[_Change]:
    """Every update of every LoRA that acts; a strength of 0 is as if the LoRA were not there."""
    shapes = {name: entry.shape for name, entry in table.entries.items()}
    for use in uses:
        if use.scale:
            files = TensorFiles([Path(use.path)])
            for update in read_lora(Path(use.path), shapes).updates:
                yield _Change(files, update, use)


def _with_changes(entry: TensorEntry, changes: Sequence[_Change]) -> TensorEntry:
    def read(dtype: torch.dtype) -> Tensor:
        weight = entry.read(torch.float32)
        total = weight  # never changed in place: it may be a view of the file's pages, which are read again
        for change in changes:
            total = change.added_to(total, weight)
        return total.to(dtype)

    return TensorEntry(entry.shape, read)
