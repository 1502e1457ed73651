"""What happens while a picture is made, as data, and the finished picture. A progress bar, a JSON stream, a server's
stream and a benchmark are listeners.

Light ring: standard library only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from backend.types import Encoder, GenerationRequest, LoraUse, ModelIdentity, Phase, Quant

if TYPE_CHECKING:
    from PIL import Image

    from backend.memory.plan import MemoryPlan


@dataclass(frozen=True, kw_only=True)
class PhaseStarted:
    """`total` is the number of steps to come, None where the phase has none."""

    phase: Phase
    total: int | None = None
    image: int | None = None  # 0-based index into `request.seeds`; None: the phase serves all pictures


@dataclass(frozen=True, kw_only=True)
class StepDone:
    """Step `step` of `total` (1-based) of the denoising of picture `image`."""

    phase: Phase
    step: int
    total: int
    image: int
    seconds: float  # wall time of this step


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


@dataclass(frozen=True, kw_only=True)
class Noticed:
    """Something a person should know: what was asked for runs, but in another way."""

    text: str


Event = PhaseStarted | StepDone | PhaseDone | PlanMade | Noticed
OnEvent = Callable[[Event], None]
Stop = Callable[[], bool]  # polled after every step; True: raise CancelledError


@dataclass(frozen=True, kw_only=True)
class Generation:
    """One finished picture and the facts needed to make it again."""

    image: Image.Image
    request: GenerationRequest
    index: int  # position in request.seeds
    seed: int
    model: ModelIdentity
    sigmas: tuple[float, ...]  # the schedule that ran, steps + 1 values ending in 0
    dtype: str  # the dtype that ran: "float32" or "bfloat16"
    device: str  # "cpu", "cuda:0 (NVIDIA H200)", ...
    encoder: Encoder = Encoder.exact  # the one that ran, or whose kept features were used: never auto
    loras: tuple[LoraUse, ...] = ()  # with the mode that ran
    quant: Quant | None = None  # what approximated the weights beyond what their file holds; None: nothing did
    plan: MemoryPlan | None = None  # where everything lay; None: not planned
    compiled: bool = False  # whether torch.compile fused the blocks
    attention: str | None = None  # kernel of the transformer's attention, measured to be the fastest; None: not known
    template_date: str  # the frozen date in the conversation template
    timings: dict[str, float]  # phase -> seconds
    versions: dict[str, str]  # package -> version
