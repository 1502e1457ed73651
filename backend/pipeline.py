"""From a complete request to pictures: the numbered recipe. Each phase frees what the next does not need.

Knows nothing about flags, files of output or progress bars: it is given `ModelFiles` and reports events.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version

import torch
from PIL import Image
from torch import Tensor

from backend import latents, loading, sampling
from backend.cache.store import Stores
from backend.checkpoints.identity import identify_model
from backend.checkpoints.packing_plan import QuantPlan
from backend.checkpoints.resolve import ModelFiles
from backend.denoising.compile import check_compiler, compile_blocks, failing_as_ours
from backend.denoising.denoiser import Denoiser
from backend.denoising.stream import StreamedBlocks, making_room, stream_blocks
from backend.errors import CancelledError, NumericsError, first_line
from backend.events import Event, Generation, Noticed, OnEvent, PhaseDone, PhaseStarted, PlanMade, StepDone, Stop
from backend.kernels.attention import Choices
from backend.kernels.graphs import cuda_graphs
from backend.loading import check_device, device_note
from backend.lora.names import settle
from backend.memory.device import choose_device, describe_device
from backend.memory.exhausted import give_back, host_ran_out, peak_bytes, ran_out, too_little
from backend.memory.machine import Planned, capped, choose_arithmetic, look_at, plan_run
from backend.memory.plan import EncoderPlace, MemoryPlan, Place, step_down
from backend.model.autoencoder import AutoencoderKLFlux2, latent_statistics
from backend.model.decode import decode_latent
from backend.model.decode_plan import DecodePlan
from backend.model.transformer import LensBlock
from backend.sizes import GRID
from backend.text.features import FeatureSource
from backend.text.shared_llama import SharedLlama, choose_encoder
from backend.types import DType, Encoder, GenerationRequest, LoraUse, Phase

TORCH_DTYPES = {DType.float32: torch.float32, DType.bfloat16: torch.bfloat16}
_PACKAGES = ("lens", "torch", "diffusers", "transformers", "tokenizers")
Texts = tuple[Tensor, Tensor | None]  # features of both branches of guidance; see `FeatureSource.branches`


@dataclass(frozen=True, kw_only=True)
class _Run:
    """One request on its way, with what it leaves open decided, and who is told."""

    request: GenerationRequest
    encoder: Encoder
    quant: QuantPlan
    loras: tuple[LoraUse, ...]
    watch: _Watch
    stop: Stop
    timings: dict[str, float]  # seconds of the phases that serve every picture


@dataclass(frozen=True, kw_only=True)
class _Loaded:
    """The networks under one plan, with all that depends on the prompt and the schedule alone."""

    velocity: Denoiser
    vae: AutoencoderKLFlux2
    source: StreamedBlocks[LensBlock] | None  # None: the networks keep their place on the device
    grid: tuple[int, int]  # latent height and width
    sigmas: tuple[float, ...]
    compiled: bool


class Pipeline:
    """Makes pictures with one model. Cheap to construct: networks are loaded by the phase that needs them."""

    def __init__(
        self,
        files: ModelFiles,
        *,
        dtype: DType = DType.auto,
        device: str = "auto",
        stores: Stores | None = None,
        llama: SharedLlama | None = None,
    ) -> None:
        """`stores`: what earlier processes left; None: nothing. `llama`: the model's GGUF where the reasoner has it
        open already; closed once the prompt is encoded."""
        self.files, self.stores, self.llama = files, stores or Stores(), llama
        self._wanted = (dtype, device)
        self._chosen = choose_device(device)
        self.device = self._chosen  # of the last plan: the CPU where a GPU that nobody named is too full
        self.dtype = choose_dtype(dtype, self.device, files)
        self.params = files.preset.params

    def generate(self, request: GenerationRequest, *, on_event: OnEvent, stop: Stop) -> Iterator[Generation]:
        """Yield one finished picture per seed, in order; one load and one text encoding serve all of them.

        Raises CancelledError between steps once `stop()` is true, NumericsError for a non-finite latent,
        CheckpointError for unusable weights, OutOfMemoryError (of backend.errors) where memory ran out.
        """
        planned = self.plan_memory(request)
        run = self._settle(request, planned, _Watch(on_event), stop)
        plan, reason, texts, done, stepped_down = planned.plan, planned.reason, None, 0, False
        for note in self._notes(planned.quant):
            on_event(Noticed(text=note))
        with capped(plan, self.device):
            while True:
                on_event(PlanMade(plan=plan, reason=reason))
                try:
                    # 1. Text -> features, kept ones where there are. The encoder is gone before the transformer comes.
                    if texts is None:
                        texts = self._encode(run, plan)
                    for generation in self._draw(run, plan, texts, done):
                        done += 1
                        yield generation
                    return
                except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is one of these
                    if not ran_out(error):
                        raise
                    # Once: whoever fails twice needs another size or another machine, not a third guess.
                    leaner = None
                    if not stepped_down:
                        leaner = step_down(
                            planned.model, planned.machine, plan, run.watch.stage, on_host=host_ran_out(error)
                        )
                    if leaner is None:
                        raise too_little(request, error) from error
                    reason = f"memory ran out ({run.watch.phase}): {first_line(error)}"
                # Only here, where the error has let go of what failed, can its memory be given back.
                plan, stepped_down = leaner, True
                give_back(self.device)

    def _draw(self, run: _Run, plan: MemoryPlan, texts: Texts, first: int) -> Iterator[Generation]:
        """Steps 2 to 5 for the seeds from `first` on. Raises torch's errors where memory runs out."""
        request = run.request
        # 2. The transformer, with all that depends on the prompt and the schedule alone, and the autoencoder.
        loaded = self._load(run, plan, texts)
        identity = identify_model(self.files)
        for index, seed in list(enumerate(request.seeds))[first:]:
            timings = dict(run.timings)
            # 3. Noise, the same on every device.
            x = latents.noise(seed, *loaded.grid).to(self.device)
            # 4. Denoise. Guidance lives inside the velocity; at 1.0 the unconditional branch does not run.
            x = self._denoise(run, loaded, x, index, timings)
            # 5. Latent -> pixels.
            image = self._decode(run, loaded, plan, x, index, timings)
            yield Generation(
                image=image,
                request=request,
                index=index,
                seed=seed,
                model=identity,
                sigmas=loaded.sigmas,
                dtype=self._dtype_name,
                device=describe_device(self.device),
                encoder=run.encoder,
                loras=run.loras,
                quant=run.quant.approximation,
                compiled=loaded.compiled,
                attention=str(loaded.velocity.backend),
                plan=plan,
                template_date=self.params.text.template.date,
                timings=timings,
                versions=package_versions(),
            )
            if index + 1 < len(request.seeds) and run.stop():
                raise CancelledError(f"stopped after {index + 1} of {len(request.seeds)} pictures")

    def _encode(self, run: _Run, plan: MemoryPlan) -> Texts:
        """Features of the prompt, and of the unconditional branch where guidance is not 1."""
        device = self.device if plan.reader is EncoderPlace.gpu else torch.device("cpu")
        source = FeatureSource(
            files=self.files, encoder=run.encoder, dtype=self.dtype, device=device, store=self.stores.embeddings,
            prefixes=self.stores.prefixes, llama=self.llama, say=lambda text: run.watch(Noticed(text=text)),
        )  # fmt: skip
        return source.branches(run.request, lambda name: phase(name, run.timings, run.watch, self.device))

    def _load(self, run: _Run, plan: MemoryPlan, texts: Texts) -> _Loaded:
        request = run.request
        h, w = request.height // GRID, request.width // GRID
        sigmas = sampling.schedule(h * w, request.steps)
        home = torch.device("cpu") if plan.streamed else self.device
        with phase(Phase.load_transformer, run.timings, run.watch, self.device):
            transformer, folded = loading.load_transformer(
                self.files, self.dtype, home, run.loras, run.quant, sigmas=sigmas[:-1], schedules=self.stores.schedules,
                fold_on=self.device,
            )  # fmt: skip
            source, compiled = None, False
            if plan.streamed:
                source = stream_blocks(transformer, self.device, packed=plan.place is Place.pinned)
                if request.compiled:
                    run.watch(Noticed(text="--compile is ignored: the blocks are streamed"))
            elif request.compiled:
                compile_blocks(transformer)
                compiled = True
            graphs = cuda_graphs(
                self.device, 0 if compiled else plan.graphs, lambda text: run.watch(Noticed(text=text))
            )
            velocity = Denoiser(
                transformer, folded, (h, w), *texts, guidance=request.guidance, source=source,
                attention=Choices(self.device, self.stores.kernels), graphs=graphs,
            )  # fmt: skip
            vae = loading.load_vae(self.files, self.dtype, home)
        return _Loaded(velocity=velocity, vae=vae, source=source, grid=(h, w), sigmas=sigmas, compiled=compiled)

    def _denoise(self, run: _Run, loaded: _Loaded, x: Tensor, index: int, timings: dict[str, float]) -> Tensor:
        """Noise (1, N, C) -> latent. Raises CancelledError, NumericsError."""
        request, total = run.request, run.request.steps

        def on_step(i: int, x: Tensor) -> None:
            nonlocal clock
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            now = time.perf_counter()
            run.watch(StepDone(phase=Phase.denoise, step=i + 1, total=total, image=index, seconds=now - clock))
            clock = now
            # The last step leaves only the decoding: a finished picture is worth keeping.
            if i + 1 < total and run.stop():
                raise CancelledError(f"stopped after step {i + 1} of {total}")

        with phase(Phase.denoise, timings, run.watch, self.device, total=total, image=index):
            clock = time.perf_counter()
            with torch.inference_mode(), failing_as_ours():
                x = sampling.denoise(loaded.velocity, x, loaded.sigmas, on_step)
        if not bool(torch.isfinite(x).all()):
            raise NumericsError(
                f"seed {request.seeds[index]}: the latent is not finite after {total} steps in {self._dtype_name}",
                hint="Try --dtype float32; if that fails as well, the weights are damaged: lens models verify.",
            )
        return x

    def _decode(
        self, run: _Run, loaded: _Loaded, plan: MemoryPlan, x: Tensor, index: int, timings: dict[str, float]
    ) -> Image.Image:
        with (
            phase(Phase.decode, timings, run.watch, self.device, image=index),
            making_room(loaded.source, loaded.vae, self.device),
            torch.inference_mode(),
        ):
            return decode(loaded.vae, x, *loaded.grid, self.dtype, plan.decode)

    def _settle(self, request: GenerationRequest, planned: Planned, watch: _Watch, stop: Stop) -> _Run:
        """Raises UsageError and CheckpointError, before anything is loaded."""
        if request.compiled and not planned.plan.streamed:
            check_compiler(self.device)
        # What of a LoRA does not fit was said by whoever made the request: here it is only left aside.
        loras = settle(request.loras, self.params.dit, quantised=planned.quant.packed, warn=lambda _: None)
        return _Run(
            request=request, encoder=choose_encoder(request.encoder, self.files), quant=planned.quant, loras=loras,
            watch=watch, stop=stop, timings={},
        )  # fmt: skip

    def plan_memory(self, request: GenerationRequest) -> Planned:
        """Where everything will lie, and what will compute. A GPU that nobody named and that is too small even for the
        leanest plan is left alone, for the CPU. Raises OutOfMemoryError with the numbers, UsageError, CheckpointError.
        """
        dtype, name = self._wanted
        check_device(request.quant, self._chosen)
        planned = plan_run(replace(request, dtype=dtype, device=name), self.files, look_at(self._chosen))
        self.device = self._chosen if planned.reason is None else torch.device("cpu")
        self.dtype = TORCH_DTYPES[planned.dtype]
        return planned

    def _notes(self, quant: QuantPlan) -> list[str]:
        """What a person should know about the packing before it runs: one line each."""
        about = device_note(quant, self.device)
        return [*quant.notes, *([] if about is None else [about])]

    @property
    def _dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")


def decode(
    vae: AutoencoderKLFlux2, x_BNC: Tensor, h: int, w: int, dtype: torch.dtype, plan: DecodePlan | None = None
) -> Image.Image:
    """One packed, normalised latent -> a picture. The normalisation is undone in float32. Raises NumericsError.

    `plan`: made for this size; None: the least work.
    """
    return Image.fromarray(latents.to_pixels(decode_tensor(vae, x_BNC, h, w, dtype, plan))[0].cpu().numpy())


def decode_tensor(
    vae: AutoencoderKLFlux2, x_BNC: Tensor, h: int, w: int, dtype: torch.dtype, plan: DecodePlan | None = None
) -> Tensor:
    """The same before it is rounded to bytes: (B, 3, 16 h, 16 w), about [-1, 1]. Raises NumericsError."""
    z = latents.denormalise(latents.unpack(x_BNC.float(), h, w), *latent_statistics(vae))
    decoded = decode_latent(vae, latents.unpatchify(z).to(dtype), plan)
    if not bool(torch.isfinite(decoded).all()):
        raise NumericsError(
            f"the decoded picture is not finite in {str(dtype).removeprefix('torch.')}",
            hint="Try --dtype float32; if that fails as well, the weights are damaged: lens models verify.",
        )
    return decoded


@contextmanager
def phase(
    name: Phase, timings: dict[str, float], on_event: OnEvent, device: torch.device, *, total: int | None = None,
    image: int | None = None,
) -> Iterator[None]:  # fmt: skip
    """Report a phase's start, end, seconds and peak memory, and note its seconds."""
    on_event(PhaseStarted(phase=name, total=total, image=image))
    start = time.perf_counter()
    yield
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - start
    timings[name] = timings.get(name, 0.0) + seconds
    on_event(PhaseDone(phase=name, seconds=seconds, peak_bytes=peak_bytes(device), image=image))


class _Watch:
    """Passes events on and remembers which phase is running."""

    def __init__(self, on_event: OnEvent) -> None:
        self._on_event = on_event
        self.phase = Phase.encode

    def __call__(self, event: Event) -> None:
        if isinstance(event, PhaseStarted):
            self.phase = event.phase
        self._on_event(event)

    @property
    def stage(self) -> str:
        """The part of the plan's prediction that this phase belongs to."""
        if self.phase is Phase.decode:
            return "decode"
        return "denoise" if self.phase in (Phase.load_transformer, Phase.denoise) else "encode"


def choose_dtype(wanted: DType, device: torch.device, files: ModelFiles) -> torch.dtype:
    """As `backend.memory.machine.choose_arithmetic` says."""
    return TORCH_DTYPES[choose_arithmetic(wanted, device.type, files)]


def package_versions() -> dict[str, str]:
    """Versions of what decides pixels."""
    return {name: version(name) for name in _PACKAGES}
