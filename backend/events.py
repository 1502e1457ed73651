"""What happens while a request is carried out, as data, and the finished picture. A progress bar, a JSON stream, a
server's stream and a benchmark are listeners.

Light ring: standard library only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backend.errors import LensError
from backend.types import Encoder, Expander, GenerationRequest, LoraUse, ModelIdentity, Phase, Quant

if TYPE_CHECKING:
    from PIL import Image

    from backend.memory.plan import MemoryPlan

# While pictures are drawn ------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class PhaseStarted:
    """`total` is the number of steps to come, None where the phase has none."""

    phase: Phase
    total: int | None = None
    image: int | None = None  # 0-based index into `request.seeds`; None: the phase serves all pictures


@dataclass(frozen=True, kw_only=True)
class StepDone:
    """Step `step` of `total` (1-based) of the denoising of picture `image` is done."""

    phase: Phase
    step: int
    total: int
    image: int
    seconds: float  # wall time of this step


@dataclass(frozen=True, kw_only=True)
class PreviewMade:
    """What picture `image` looks like after step `step` of `total`: the estimate of the finished one, as small as it is
    cheap (`Preview.proj`), or decoded in full (`Preview.vae`)."""

    image: int  # 0-based index into `request.seeds`
    step: int  # 1-based; the last step has none, since the picture itself follows
    total: int
    picture: Image.Image  # RGB


@dataclass(frozen=True, kw_only=True)
class PhaseDone:
    phase: Phase
    seconds: float
    peak_bytes: int  # peak memory so far: device allocator on a GPU, resident set of the process on a CPU
    image: int | None = None


@dataclass(frozen=True, kw_only=True)
class PlanMade:
    """Where everything will lie, before the first phase; again where memory ran out and a leaner plan takes over."""

    plan: MemoryPlan
    reason: str | None = None  # why it replaces the one before; None: it is the first


class Severity(StrEnum):
    """How much a remark matters to a person."""

    warning = "warning"  # what was asked for runs, but in another way
    note = "note"  # worth reading
    detail = "detail"  # for who asks for more


@dataclass(frozen=True, kw_only=True)
class Noticed:
    """Something a person should know, in one line."""

    text: str
    severity: Severity = Severity.warning


# While a request is carried out ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class PromptRewritten:
    """The reasoner's decision to draw: `prompt` in place of what was asked for."""

    prompt: str
    original: str
    expander: Expander
    cached: bool  # True: nobody was asked


@dataclass(frozen=True, kw_only=True)
class PromptRefused:
    """The reasoner's decision not to draw; the RefusedError that names the rule follows."""

    rule: str
    original: str
    expander: Expander
    cached: bool


@dataclass(frozen=True, kw_only=True)
class DrawingStarted:
    """The prompt is decided: this is drawn."""

    request: GenerationRequest


@dataclass(frozen=True, kw_only=True)
class PictureSaved:
    """One picture is whole on the disk, or ready as the bytes of a file."""

    generation: Generation
    record: Mapping[str, Any]
    path: Path | None  # None: it has no file, and whoever listens writes `data`
    data: bytes | None = None

    def row(self) -> dict[str, Any]:
        """The picture for JSON."""
        made = self.generation
        return {
            "path": None if self.path is None else str(self.path),
            "index": made.index,
            "seed": made.seed,
            "width": made.image.width,
            "height": made.image.height,
            "id": self.record["id"],
            "pixel_sha256": self.record["pixel_sha256"],
            "timings": self.record["timings"],
        }


@dataclass(frozen=True, kw_only=True)
class PictureFailed:
    """One picture came to nothing, and the next one is drawn."""

    index: int  # position in request.seeds
    seed: int
    error: LensError


Drawing = PhaseStarted | StepDone | PreviewMade | PhaseDone | PlanMade | Noticed  # what an engine tells
Event = Drawing | PromptRewritten | PromptRefused | DrawingStarted | PictureSaved | PictureFailed
OnEvent = Callable[[Event], None]
Stop = Callable[[], bool]  # polled after every step; True: raise CancelledError


@dataclass(frozen=True, kw_only=True)
class FinishedPicture:
    """One finished picture, and what the recipe knows of it."""

    image: Image.Image
    request: GenerationRequest
    index: int  # position in request.seeds
    seed: int
    sigmas: tuple[float, ...]  # the schedule that ran, steps + 1 values ending in 0
    timings: dict[str, float]  # phase -> seconds; of the phases that ran


@dataclass(frozen=True, kw_only=True)
class Generation(FinishedPicture):
    """A finished picture and the facts needed to make it again."""

    model: ModelIdentity
    dtype: str  # the dtype that ran: "float32" or "bfloat16"
    device: str  # "cpu", "cuda:0 (NVIDIA H200)", ...
    encoder: Encoder = Encoder.exact  # the one that ran, or whose kept features were used: never auto
    loras: tuple[LoraUse, ...] = ()  # with the mode that ran
    quant: Quant | None = None  # what approximated the weights beyond what their file holds; None: nothing did
    plan: MemoryPlan | None = None  # where everything lay; None: not planned
    compiled: bool = False  # whether torch.compile fused the blocks
    attention: str | None = None  # kernel of the transformer's attention, measured to be the fastest; None: not known
    template_date: str  # the frozen date in the conversation template
    versions: dict[str, str]  # package -> version
