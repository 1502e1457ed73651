"""What becomes of a request: every picture on the disk, what failed, and what that means for whoever asked.

Light ring: Pillow arrives with the first picture.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backend.disk import make_folder
from backend.errors import CancelledError, LensError, PartialBatchError
from backend.events import Generation, PictureFailed, PictureSaved
from backend.picture.outputs import OutputPlan
from backend.requests import ResolvedRequest
from backend.types import GenerationRequest

if TYPE_CHECKING:
    from backend.memory.plan import MemoryPlan


@dataclass(kw_only=True)
class Outcome:
    """What became of a request."""

    resolved: ResolvedRequest  # as it was drawn, the prompt rewritten
    pictures: list[PictureSaved] = field(default_factory=list[PictureSaved])
    failures: list[PictureFailed] = field(default_factory=list[PictureFailed])
    stopped: LensError | None = None  # what ended the run before its last picture
    plan: MemoryPlan | None = None  # the last one made; None: none was

    def error(self) -> LensError | None:
        """The one error that decides the exit code; None: all pictures are there."""
        total = len(self.resolved.request.seeds)
        if isinstance(self.stopped, CancelledError):
            return CancelledError(f"stopped: {len(self.pictures)} of {total} pictures finished")
        cause = self.stopped or (self.failures[0].error if self.failures else None)
        if cause is None or len(self.pictures) in (0, total):  # all: they are saved, and nobody could be told
            return cause
        return PartialBatchError(f"{total - len(self.pictures)} of {total} pictures failed: {cause}", hint=cause.hint)

    def data(self) -> dict[str, Any]:
        """The outcome for JSON."""
        return {
            "images": [picture.row() for picture in self.pictures],
            "plan": self.plan.data() if self.plan is not None else None,
            "failed": [
                {"index": item.index, "seed": item.seed, "code": item.error.code, "message": str(item.error)}
                for item in self.failures
            ],
        }


def come_from(request: GenerationRequest, parent_id: str | None, relation: str | None) -> tuple[str | None, str | None]:
    """(id, relation) of the picture that a request's pictures come from, for their records and the history.

    Where it was made from no other, that of ours which it begins from. Raises FileError where that cannot be read.
    """
    from backend.picture.images import read_metadata

    if parent_id is not None:
        return parent_id, relation or ("variation" if request.around is not None else None)
    if request.init is None:
        return None, relation
    known = (read_metadata(Path(request.init.path)).record or {}).get("id")
    return (known, relation or "init") if isinstance(known, str) else (None, relation)


def save_picture(made: Generation, output: OutputPlan, now: datetime, parent_id: str | None) -> PictureSaved:
    """A picture that is now on the disk, or the bytes of its file. Raises FileError."""
    from backend.picture import metadata
    from backend.picture.credentials import sign
    from backend.picture.images import encode, pixel_sha256, save_image

    if output.template is None:
        record = metadata.make_record(made, pixels=pixel_sha256(made.image), parent_id=parent_id)
        shown = record if output.metadata else None
        data = encode(made.image, output.format, quality=output.quality, record=shown)
        data = sign(data, output.format, record) if output.credentials else data
        return PictureSaved(generation=made, record=record, path=None, data=data)
    wished: Path = output.path(made.request, made.index, now)
    make_folder(wished.parent)
    path, record = save_image(
        made,
        wished,
        format=output.format,
        quality=output.quality,
        with_metadata=output.metadata,
        parent_id=parent_id,
        signed=output.credentials,
    )
    return PictureSaved(generation=made, record=record, path=path)
