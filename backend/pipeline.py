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

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from backend import sampling
from backend.denoising import latents
from backend.denoising.compile import failing_as_ours
from backend.denoising.preview import Watched
from backend.denoising.start import Start, drawn_places, noise_of, steps_left
from backend.errors import CancelledError, NumericsError
from backend.events import FinishedPicture, OnEvent, PhaseDone, PhaseStarted, PreviewMade, StepDone, Stop
from backend.inputs.begin import last_pass
from backend.inputs.canvas import Canvas, enlarge, open_canvas
from backend.memory.exhausted import peak_bytes
from backend.model.autoencoder import AutoencoderKLFlux2, encode_mean, latent_statistics
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
    encode_picture: Callable[[Image.Image], Tensor] | None = None  # RGB -> (1, N, C); None: no request has one
    project: Callable[[Tensor, Grid], Image.Image | None] = lambda x, grid: (
        None
    )  # a latent as a preview; None: it cannot


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """All that serves every picture of a request."""

    request: GenerationRequest
    texts: Texts
    grid: Grid
    sigmas: Sigmas
    velocity: Velocity
    sampler: Sampler
    start: Start | None = None  # the picture that the latent begins from; None: noise alone
    canvas: Canvas | None = None  # that picture, where it came with the request

    @property
    def ran(self) -> Sigmas:
        """The part of the schedule that runs."""
        if self.start is None:
            return self.sigmas
        return self.sigmas[len(self.sigmas) - 1 - steps_left(len(self.sigmas) - 1, self.start.strength) :]


@dataclass(frozen=True)
class Told:
    """Who is told of one picture, and whether it shall go on."""

    progress: Progress
    index: int  # of its seed
    timings: dict[str, float]
    stop: Stop


def draw(
    networks: Networks, request: GenerationRequest, progress: Progress, *, first: int = 0, stop: Stop = lambda: False
) -> Iterator[FinishedPicture]:
    """One finished picture per seed from index `first` on, in order.

    Raises CancelledError between steps once `stop()` is true, NumericsError for a latent or picture that is not finite.
    """
    # 1. Text -> features, 2. the schedule, and 3. the picture to begin from: all that no seed changes.
    ready = prepare(networks, request)
    canvas = ready.canvas
    larger = None if request.hires is None else prepare(networks, last_pass(request))
    for index, seed in list(enumerate(request.seeds))[first:]:
        told = Told(progress, index, dict(progress.timings), stop)
        # 4. Noise, the same on every device, becomes a latent step by step, and pixels.
        image = _pass(networks, ready, seed, told)
        # 5. The same once more, larger, from the picture that is there now.
        if larger is not None:
            width, height = larger.request.width, larger.request.height
            image = _pass(networks, begin(networks, larger, enlarge(image, width, height)), seed, told)
        # 6. The finished picture, with every byte that a mask keeps.
        image = image if canvas is None else canvas.restore(image)
        yield FinishedPicture(
            image=image, request=request, index=index, seed=seed, sigmas=ready.ran, timings=told.timings
        )
        if index + 1 < len(request.seeds) and stop():
            raise CancelledError(f"stopped after {index + 1} of {len(request.seeds)} pictures")


def prepare(networks: Networks, request: GenerationRequest) -> Prepared:
    """The steps that one request takes once, however many pictures it asks for."""
    texts = networks.encode(request)
    grid = request.height // GRID, request.width // GRID
    sigmas = sampling.schedule(grid[0] * grid[1], request.steps)
    velocity = networks.velocity(request, texts, grid, sigmas)
    ready = Prepared(request=request, texts=texts, grid=grid, sigmas=sigmas, velocity=velocity, sampler=request.sampler)
    if request.init is None:
        return ready
    canvas = open_canvas(request)
    return replace(begin(networks, ready, canvas.picture, canvas.cells()), canvas=canvas)


def begin(networks: Networks, ready: Prepared, picture: Image.Image, cells: Image.Image | None = None) -> Prepared:
    """The same, from a picture of its size. `cells`: the places of the latent that are drawn; None: all."""
    assert networks.encode_picture is not None and ready.request.strength is not None
    drawn = None if cells is None else drawn_places(torch.from_numpy(np.array(cells))).to(networks.device)
    x0 = networks.encode_picture(picture).to(networks.device)
    return replace(ready, start=Start(x0_1NC=x0, strength=ready.request.strength, drawn_1NC=drawn))


def _pass(networks: Networks, ready: Prepared, seed: int, told: Told) -> Image.Image:
    """One picture along one schedule. Raises as `draw` does."""
    progress, request = told.progress, ready.request
    x, velocity, sigmas = noise_of(request, seed, *ready.grid).to(networks.device), ready.velocity, ready.sigmas
    if ready.start is not None:
        x, velocity, sigmas = ready.start.begin(x, velocity, sigmas)
    watched, total = Watched(velocity), len(sigmas) - 1
    with progress.phase(Phase.denoise, total=total, image=told.index, timings=told.timings):
        on_step = _on_step(told, total, _preview(networks, request, watched, ready.grid))
        x = denoise(replace(ready, velocity=watched, sigmas=sigmas), x, on_step)
    if not bool(torch.isfinite(x).all()):
        raise NumericsError(
            f"seed {seed}: the latent is not finite after {total} steps in {networks.arithmetic}", hint=_NOT_FINITE
        )
    with progress.phase(Phase.decode, image=told.index, timings=told.timings):
        return to_image(networks.decode(x, ready.grid))


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


def _on_step(told: Told, total: int, look: Callable[[], Image.Image | None]) -> Callable[[int, Tensor], None]:
    progress, image = told.progress, told.index
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
        if i + 1 < total and told.stop():
            raise CancelledError(f"stopped after step {i + 1} of {total}")

    return on_step


def encode(vae: AutoencoderKLFlux2, picture: Image.Image, dtype: torch.dtype) -> Tensor:
    """An RGB picture -> its packed, normalised latent (1, N, C) in float32, which `decode` takes back."""
    device = vae.bn.running_mean.device if vae.bn.running_mean is not None else None
    pixels = torch.from_numpy(np.array(picture)).to(device).permute(2, 0, 1)[None].float() / 127.5 - 1
    mean = encode_mean(vae, pixels.to(dtype)).float()
    return latents.pack(latents.normalise(latents.patchify(mean), *latent_statistics(vae)))


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
