"""What a plan's networks take between requests, and what fits beside them.

Light ring: standard library only.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from backend.memory import footprint
from backend.memory.plan import EncoderPlace, MachineMemory, MemoryPlan, ModelBytes, Place, pinned_bytes


@dataclass(frozen=True)
class ResidentBytes:
    """What the networks of a plan take between requests."""

    card: int
    host: int  # that no file backs

    @property
    def total(self) -> int:
        return self.card + self.host

    def given_back(self, machine: MachineMemory) -> MachineMemory:
        """The machine as it would be without them."""
        card_free = min(machine.card, machine.card_free + self.card)
        return replace(machine, card_free=card_free, host_free=machine.host_free + self.host)


def resident_bytes(model: ModelBytes, plan: MemoryPlan) -> ResidentBytes:
    """Count what transformer and VAE take after a picture, when the slots of streamed blocks are given back."""
    w = footprint.weights(model.job)
    if plan.device == "cpu":
        return ResidentBytes(card=0, host=w.vae + w.folded + (0 if model.mapped else w.outer + w.blocks))
    if plan.place is Place.resident:
        pool = footprint.denoising(model.job, plan.device) if plan.graphs else 0
        return ResidentBytes(card=w.transformer + w.vae + pool, host=0)
    pinned = model.job.params.dit.num_layers * pinned_bytes(w.block) if plan.place is Place.pinned else 0
    return ResidentBytes(card=w.outer + w.folded, host=pinned + w.vae)


def encodes_beside(model: ModelBytes, plan: MemoryPlan, resident: ResidentBytes) -> bool:
    """Whether a prompt can be encoded while `resident` networks stay where they are."""
    params = model.job.params.text
    encoding = footprint.encoding(params, params.template.max_tokens, model.job.itemsize)
    host = model.job.process + resident.host + (0 if plan.reader is EncoderPlace.gpu else encoding)
    return host <= plan.host_free and (plan.device == "cpu" or plan.peak.encode + resident.card <= plan.budget)
