"""What is to be done for a job, complete, and the order that a worker gets of it.

Light ring: standard library only; the reasoner arrives with the first rewrite.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from backend.fields import object_from
from backend.picture.outputs import OutputPlan
from backend.types import GenerationRequest

if TYPE_CHECKING:
    from backend.reasoner.refine import RewritePlan


@dataclass(frozen=True, kw_only=True)
class Task:
    """On the disk from the moment that its client hears of the job."""

    request: GenerationRequest
    output: OutputPlan  # without a template: its pictures wait in the spool
    rewrite: RewritePlan | None = None  # None: the prompt is drawn as it stands
    parent_id: str | None = None  # of the record that it was made from
    relation: str | None = None  # how, for the history
    asked: str  # ISO 8601, local: one time for all names of a job
    notes: tuple[str, ...] = ()  # what was asked for and cannot be honoured

    @property
    def time(self) -> datetime:
        return datetime.fromisoformat(self.asked)

    def data(self) -> dict[str, Any]:
        """JSON, which `task_from` reads back."""
        return asdict(self)

    def order(self, job: str, first: int) -> dict[str, Any]:
        """What a worker is told: the pictures from the index `first` on."""
        request = replace(self.request, seeds=self.request.seeds[first:])
        return {
            "do": "draw", "job": job, "request": asdict(request), "format": str(self.output.format),
            "quality": self.output.quality, "metadata": self.output.metadata, "parent_id": self.parent_id,
            "rewrite": None if self.rewrite is None else asdict(self.rewrite),
        }  # fmt: skip


def task_from(data: Mapping[str, Any]) -> Task:
    """A task of the queue."""
    from backend.reasoner.refine import RewritePlan

    return Task(
        request=object_from(data["request"], GenerationRequest), output=object_from(data["output"], OutputPlan),
        rewrite=None if data["rewrite"] is None else object_from(data["rewrite"], RewritePlan),
        parent_id=data["parent_id"], relation=data["relation"], asked=data["asked"], notes=tuple(data["notes"]),
    )  # fmt: skip
