"""From a request to pictures: the numbered recipe over networks that are in memory.

Knows nothing about files, devices' memory, flags or progress bars: it is given `Networks` and reports events. The
engine (`backend.engine`), a benchmark with random weights and the sheets that training draws all pass through here.

Shapes: N image tokens, C packed channels, L text tokens, T text-encoder layers, F their width.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from PIL import Image
from torch import Tensor

from backend import sampling
from backend.denoising import latents
from backend.denoising.compile import failing_as_ours
from backend.denoising.preview import Watched
from backend.errors import CancelledError, NumericsError
from backend.events import FinishedPicture, OnEvent, PhaseDone, PhaseStarted, PreviewMade, StepDone, Stop
from backend.memory.exhausted import peak_bytes
from backend.model.autoencoder import AutoencoderKLFlux2, latent_statistics
from backend.model.decode import decode_latent
from backend.model.decode_plan import DecodePlan
from backend.sampling import Velocity
from backend.sizes import GRID
from backend.types import GenerationRequest, Phase, Preview, Sampler

Grid = tuple[int, int]  # latent height and width
Sigmas = tuple[float, ...]  # steps + 1 of them, the last 0
Texts = tuple[Tensor, Tensor | None]  # (1, L, T, F) of the prompt; of the unconditional branch, None at guidance 1
_NOT_FINITE = "Try --dtype float32; if that fails as well, the weights are damaged: lens models verify."
PARTS = (Phase.fold, Phase.load_vae)  # within another phase, whose seconds hold theirs


@dataclass(frozen=True, kw_only=True)
class Networks:
    """What a picture passes through, each ready to be called in this order."""

    encode: Callable[[GenerationRequest], Texts]
    velocity: Callable[[GenerationRequest, Texts, Grid, Sigmas], Velocity]  # guidance inside
    decode: Callable[[Tensor, Grid], Tensor]  # (1, N, C) -> (1, 3, 16 h, 16 w), about [-1, 1]
    device: torch.device  # where the latent lies
    arithmetic: str  # such as "float32": for a message
    project: Callable[[Tensor, Grid], Image.Image | None] = lambda x, grid: (
        None
    )  # a latent as a preview; None: it cannot


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """All that serves every picture of a request."""

    texts: Texts
    grid: Grid
    sigmas: Sigmas
    velocity: Velocity
    sampler: Sampler


def draw(
    networks: Networks, request: GenerationRequest, progress: Progress, *, first: int = 0, stop: Stop = lambda: False
) -> Iterator[FinishedPicture]:
    """One finished picture per seed from index `first` on, in order.

    Raises CancelledError between steps once `stop()` is true, NumericsError for a latent or picture that is not finite.
    """
    # 1. Text -> features, and 2. the schedule, with all that depends on these two alone.
    ready = prepare(networks, request)
    for index, seed in list(enumerate(request.seeds))[first:]:
        timings = dict(progress.timings)
        # 3. Noise, the same on every device, becomes a latent step by step.
        x = latents.noise(seed, *ready.grid).to(networks.device)
        with progress.phase(Phase.denoise, total=request.steps, image=index, timings=timings):
            watched = Watched(ready.velocity)
            look = _preview(networks, request, watched, ready.grid)
            on_step = _on_step(progress, request.steps, index, stop, look)
            x = denoise(replace(ready, velocity=watched), x, on_step)
        if not bool(torch.isfinite(x).all()):
            raise NumericsError(
                f"seed {seed}: the latent is not finite after {request.steps} steps in {networks.arithmetic}",
                hint=_NOT_FINITE,
            )
        # 4. Latent -> pixels.
        with progress.phase(Phase.decode, image=index, timings=timings):
            image = to_image(networks.decode(x, ready.grid))
        # 5. The finished picture.
        yield FinishedPicture(
            image=image, request=request, index=index, seed=seed, sigmas=ready.sigmas, timings=timings
        )
        if index + 1 < len(request.seeds) and stop():
            raise CancelledError(f"stopped after {index + 1} of {len(request.seeds)} pictures")


def prepare(networks: Networks, request: GenerationRequest) -> Prepared:
    """The steps that one request takes once, however many pictures it asks for."""
    texts = networks.encode(request)
    grid = request.height // GRID, request.width // GRID
    sigmas = sampling.schedule(grid[0] * grid[1], request.steps)
    velocity = networks.velocity(request, texts, grid, sigmas)
    return Prepared(texts=texts, grid=grid, sigmas=sigmas, velocity=velocity, sampler=request.sampler)


def denoise(ready: Prepared, x_1NC: Tensor, on_step: Callable[[int, Tensor], None] | None = None) -> Tensor:
    """Noise (1, N, C) -> latent, float32. `on_step` as `sampling.denoise` has it."""
    with torch.no_grad(), failing_as_ours():
        return sampling.denoise(ready.velocity, x_1NC, ready.sigmas, on_step, ready.sampler)


def _preview(
    networks: Networks, request: GenerationRequest, watched: Watched, grid: Grid
) -> Callable[[], Image.Image | None]:
    """What makes a preview of the last step, as the request has it."""
    if request.preview is Preview.vae:
        return lambda: to_image(networks.decode(watched.estimate(), grid))
    return lambda: networks.project(watched.estimate(), grid) if request.preview is Preview.proj else None


def _on_step(
    progress: Progress, total: int, image: int, stop: Stop, look: Callable[[], Image.Image | None]
) -> Callable[[int, Tensor], None]:
    clock = time.perf_counter()

    def on_step(i: int, x: Tensor) -> None:
        nonlocal clock
        progress.wait()
        now = time.perf_counter()
        progress.on_event(StepDone(phase=Phase.denoise, step=i + 1, total=total, image=image, seconds=now - clock))
        if i + 1 < total and (picture := look()) is not None:
            progress.on_event(PreviewMade(image=image, step=i + 1, total=total, picture=picture))
        clock = time.perf_counter()
        # The last step leaves only the decoding: a finished picture is worth keeping.
        if i + 1 < total and stop():
            raise CancelledError(f"stopped after step {i + 1} of {total}")

    return on_step


def decode(
    vae: AutoencoderKLFlux2, x_BNC: Tensor, grid: Grid, dtype: torch.dtype, plan: DecodePlan | None = None
) -> Tensor:
    """Packed, normalised latents -> (B, 3, 16 h, 16 w), about [-1, 1]. The normalisation is undone in float32.

    `plan`: made for this size; None: the least work. Raises NumericsError.
    """
    z = latents.denormalise(latents.unpack(x_BNC.float(), *grid), *latent_statistics(vae))
    decoded = decode_latent(vae, latents.unpatchify(z).to(dtype), plan)
    if not bool(torch.isfinite(decoded).all()):
        raise NumericsError(
            f"the decoded picture is not finite in {str(dtype).removeprefix('torch.')}",
            hint=_NOT_FINITE,
        )
    return decoded


def to_image(decoded_1CHW: Tensor) -> Image.Image:
    """The first decoded picture, rounded to bytes."""
    return Image.fromarray(latents.to_pixels(decoded_1CHW)[0].cpu().numpy())


class Progress:
    """Tells a listener which phase runs, and notes the seconds of each."""

    def __init__(self, on_event: OnEvent = lambda event: None, device: torch.device | None = None) -> None:
        """`device`: whose work a phase's end waits for; None: a CPU."""
        self.on_event, self.device = on_event, device or torch.device("cpu")
        self.current = Phase.encode
        self.timings: dict[str, float] = {}  # of the phases that serve every picture

    @contextmanager
    def phase(
        self,
        name: Phase,
        *,
        total: int | None = None,
        image: int | None = None,
        timings: dict[str, float] | None = None,
    ) -> Iterator[None]:
        """Report a phase's start, end, seconds and peak memory. `timings`: where it is noted; None: in our own."""
        around, self.current = self.current, name
        self.on_event(PhaseStarted(phase=name, total=total, image=image))
        start = time.perf_counter()
        yield
        self.wait()
        seconds = time.perf_counter() - start
        if name in PARTS:
            self.current = around
        else:
            noted = self.timings if timings is None else timings
            noted[name] = noted.get(name, 0.0) + seconds
        self.on_event(PhaseDone(phase=name, seconds=seconds, peak_bytes=peak_bytes(self.device), image=image))

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
