"""From a complete request to pictures: the numbered recipe. Each phase frees what the next does not need.

Knows nothing about flags, files of output or progress bars: it is given `ModelFiles` and reports events.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version

import torch
from PIL import Image
from torch import Tensor

from backend import latents, sampling
from backend.caches import Store
from backend.errors import CancelledError, NumericsError, UsageError, first_line
from backend.errors import OutOfMemoryError as LensOutOfMemoryError
from backend.identity import identify_model
from backend.loras import settle
from backend.memory import peak_bytes
from backend.model import checkpoint
from backend.model.autoencoder import AutoencoderKLFlux2, decode_latent, latent_statistics
from backend.model.decode_plan import DecodePlan
from backend.model.denoiser import Denoiser
from backend.model.kernels.attention import Choices
from backend.model.kernels.compile import compile_blocks, failing_as_ours
from backend.model.kernels.graphs import cuda_graphs
from backend.model.placement import making_room, stream_blocks
from backend.model.transformer import LensTransformer2DModel
from backend.planning import Planned, capped, choose_arithmetic, look_at, plan_request
from backend.quant_plan import QuantPlan, plan_quant
from backend.quantize import check_device, device_note
from backend.residency import Place, Plan, Reader, step_down
from backend.text.features import FeatureSource
from backend.text.shared import SharedLlama, choose_encoder
from backend.types import (
    DType,
    Encoder,
    Event,
    Generation,
    GenerationRequest,
    LoraUse,
    Noticed,
    OnEvent,
    Phase,
    PhaseDone,
    PhaseStarted,
    PlanMade,
    StepDone,
    Stop,
)
from backend.weights import ModelFiles

_TORCH_DTYPES = {DType.float32: torch.float32, DType.bfloat16: torch.bfloat16}
_MEMORY_WORDS = ("DefaultCPUAllocator: can't allocate", "not enough memory: you tried", "CUDA error: out of memory")
_PACKAGES = ("lens", "torch", "diffusers", "transformers", "tokenizers")


@dataclass(frozen=True)
class TextFeatures:
    """What the transformer reads of one prompt: (1, L, T, F)."""

    features_1LTF: Tensor


@dataclass(frozen=True, kw_only=True)
class _Settled:
    """What a request leaves open, decided."""

    encoder: Encoder
    quant: QuantPlan
    loras: tuple[LoraUse, ...]


class Pipeline:
    """Makes pictures with one model. Cheap to construct: networks are loaded by the phase that needs them."""

    def __init__(
        self,
        files: ModelFiles,
        *,
        dtype: DType = DType.auto,
        device: str = "auto",
        embeddings: Store | None = None,
        schedules: Store | None = None,
        kernels: Store | None = None,
        llama: SharedLlama | None = None,
    ) -> None:
        """`embeddings`, `schedules` and `kernels`: encoded prompts, folded schedules and measured kernels of earlier
        processes; None: computed. `llama`: the model's GGUF where the reasoner has it open already; closed once the
        prompt is encoded."""
        self.files = files
        self.embeddings, self.schedules, self.kernels, self.llama = embeddings, schedules, kernels, llama
        self._wanted = (dtype, device)
        self.device = choose_device(device)
        self.dtype = choose_dtype(dtype, self.device, files)
        self.params = files.preset.params

    def generate(self, request: GenerationRequest, *, on_event: OnEvent, stop: Stop) -> Iterator[Generation]:
        """Yield one finished picture per seed, in order; one load and one text encoding serve all of them.

        Raises CancelledError between steps once `stop()` is true, NumericsError for a non-finite latent,
        CheckpointError for unusable weights, OutOfMemoryError (of backend.errors) where memory ran out.
        """
        planned = self.plan_memory(request)
        settled = self._settle(request)
        plan, texts, done, reason = planned.plan, None, 0, None
        watch, timings = _Watch(on_event), dict[str, float]()
        on_event(PlanMade(plan=plan))
        with capped(plan, self.device):
            while True:
                try:
                    # 1. Text -> features, kept ones where there are. The encoder is gone before the transformer comes.
                    if texts is None:
                        texts = self._encode(request, settled.encoder, plan, timings, watch)
                    for generation in self._draw(request, settled, plan, texts, done, timings, watch, stop):
                        done += 1
                        yield generation
                    return
                except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is one of these
                    if not ran_out(error):
                        raise
                    # Once: whoever fails twice needs another size or another machine, not a third guess.
                    leaner = None
                    if reason is None:
                        leaner = step_down(planned.model, planned.machine, plan, watch.stage)
                    if leaner is None:
                        raise too_little(request, error) from error
                    reason = f"memory ran out ({watch.phase}): {first_line(error)}"
                # Only here, where the error has let go of what failed, can its memory be given back.
                plan = leaner
                give_back(self.device)
                on_event(PlanMade(plan=plan, reason=reason))

    def _draw(
        self,
        request: GenerationRequest,
        settled: _Settled,
        plan: Plan,
        texts: tuple[TextFeatures, TextFeatures | None],
        first: int,
        timings: dict[str, float],
        on_event: OnEvent,
        stop: Stop,
    ) -> Iterator[Generation]:
        """Steps 2 to 5 for the seeds from `first` on. Raises torch's errors where memory runs out."""
        conditional, unconditional = texts
        # 2. The transformer, with all that depends on the prompt and the schedule alone, and the autoencoder.
        h, w = request.height // latents.CELL, request.width // latents.CELL
        sigmas = sampling.schedule(h * w, request.steps)
        home = torch.device("cpu") if plan.streamed else self.device
        with phase(Phase.load_transformer, timings, on_event, self.device):
            transformer, folded = checkpoint.load_transformer(
                self.files, self.dtype, home, settled.loras, settled.quant, sigmas=sigmas[:-1],
                schedules=self.schedules, fold_on=self.device,
            )  # fmt: skip
            source = None
            if plan.streamed:
                source = stream_blocks(transformer, self.device, packed=plan.place is Place.pinned)
            compiled = request.compiled and self._compile(transformer, plan, on_event)
            velocity = Denoiser(
                transformer, folded, (h, w), conditional.features_1LTF,
                None if unconditional is None else unconditional.features_1LTF, guidance=request.guidance,
                source=source, attention=Choices(self.device, self.kernels),
                graphs=cuda_graphs(self.device, 0 if compiled else plan.graphs, lambda t: on_event(Noticed(text=t))),
            )  # fmt: skip
            vae = checkpoint.load_vae(self.files, self.dtype, home)
        identity = identify_model(self.files)

        for index, seed in list(enumerate(request.seeds))[first:]:
            # 3. Noise, the same on every device.
            x = latents.noise(seed, h, w).to(self.device)
            # 4. Denoise. Guidance lives inside the velocity; at 1.0 the unconditional branch does not run.
            mine = dict(timings)
            with phase(Phase.denoise, mine, on_event, self.device, total=request.steps, image=index):
                clock = time.perf_counter()

                def on_step(i: int, x: Tensor, index: int = index) -> None:
                    nonlocal clock
                    if self.device.type == "cuda":
                        torch.cuda.synchronize(self.device)
                    now = time.perf_counter()
                    on_event(
                        StepDone(phase=Phase.denoise, step=i + 1, total=request.steps, image=index, seconds=now - clock)
                    )
                    clock = now
                    # The last step leaves only the decoding: a finished picture is worth keeping.
                    if i + 1 < request.steps and stop():
                        raise CancelledError(f"stopped after step {i + 1} of {request.steps}")

                with torch.inference_mode(), failing_as_ours():
                    x = sampling.denoise(velocity, x, sigmas, on_step)
            if not bool(torch.isfinite(x).all()):
                raise NumericsError(
                    f"seed {seed}: the latent is not finite after {request.steps} steps in {self._dtype_name}",
                    hint="Try --dtype float32; if that fails as well, the weights are damaged: lens models verify.",
                )
            # 5. Latent -> pixels.
            with (
                phase(Phase.decode, mine, on_event, self.device, image=index),
                making_room(source, vae, self.device),
                torch.inference_mode(),
            ):
                image = decode(vae, x, h, w, self.dtype, plan.decode)
            yield Generation(
                image=image,
                request=request,
                index=index,
                seed=seed,
                model=identity,
                sigmas=sigmas,
                dtype=self._dtype_name,
                device=describe_device(self.device),
                encoder=settled.encoder,
                loras=settled.loras,
                quant=settled.quant.approximation,
                compiled=compiled,
                plan=plan,
                template_date=self.params.text.template.date,
                timings=mine,
                versions=package_versions(),
            )
            if index + 1 < len(request.seeds) and stop():
                raise CancelledError(f"stopped after {index + 1} of {len(request.seeds)} pictures")

    def _compile(self, transformer: LensTransformer2DModel, plan: Plan, on_event: OnEvent) -> bool:
        """Whether the blocks will be compiled. Raises UsageError where nothing can be compiled here."""
        if plan.streamed:
            on_event(Noticed(text="--compile is ignored: the blocks are streamed"))
            return False
        compile_blocks(transformer)
        return True

    def _settle(self, request: GenerationRequest) -> _Settled:
        """Raises UsageError and CheckpointError, before anything is loaded."""
        quant = self.plan_quant(request)
        # What of a LoRA does not fit was said by whoever made the request: here it is only left aside.
        loras = settle(request.loras, self.params.dit, quantised=quant.packed, warn=lambda _: None)
        return _Settled(encoder=choose_encoder(request.encoder, self.files), quant=quant, loras=loras)

    def plan_memory(self, request: GenerationRequest) -> Planned:
        """Where everything will lie. A GPU that nobody named and that is too small even for the leanest plan is left
        alone, for the CPU. Raises OutOfMemoryError with the numbers, UsageError, CheckpointError."""
        try:
            return self._plan_memory(request)
        except LensOutOfMemoryError:
            wished = request.profile is not None or request.vram is not None
            if self.device.type == "cpu" or self._wanted[1] != "auto" or wished:
                raise
        self.device = torch.device("cpu")
        self.dtype = choose_dtype(self._wanted[0], self.device, self.files)
        return self._plan_memory(request)

    def _plan_memory(self, request: GenerationRequest) -> Planned:
        dtype = next(name for name, dtype in _TORCH_DTYPES.items() if dtype is self.dtype)
        return plan_request(request, self.files, look_at(self.device), dtype, self.plan_quant(request))

    def plan_quant(self, request: GenerationRequest) -> QuantPlan:
        """How the transformer's linears will be held on this device. Raises CheckpointError or UsageError."""
        check_device(request.quant, self.device)
        return plan_quant(self.files, request.quant, itemsize=self.dtype.itemsize, on_cpu=self.device.type == "cpu")

    def notes(self, request: GenerationRequest) -> list[str]:
        """What a person should know before it runs: one line each."""
        plan = self.plan_quant(request)
        about = device_note(plan, self.device)
        return [*plan.notes, *([] if about is None else [about])]

    @property
    def _dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    def _encode(
        self, request: GenerationRequest, encoder: Encoder, plan: Plan, timings: dict[str, float], on_event: OnEvent
    ) -> tuple[TextFeatures, TextFeatures | None]:
        """Features of the prompt, and of the unconditional branch where guidance is not 1."""
        device = self.device if plan.reader is Reader.gpu else torch.device("cpu")
        source = FeatureSource(
            files=self.files, encoder=encoder, dtype=self.dtype, device=device, store=self.embeddings,
            llama=self.llama,
        )  # fmt: skip
        negative = request.guidance != 1.0 and bool(request.negative_prompt.strip())
        prompts = [request.prompt, *([request.negative_prompt] if negative else [])]
        conditional, *rest = map(
            TextFeatures, source.features(prompts, lambda name: phase(name, timings, on_event, self.device))
        )
        if request.guidance == 1.0:
            return conditional, None
        # A blank negative prompt: no text tokens at all, as in training.
        return conditional, rest[0] if rest else TextFeatures(conditional.features_1LTF[:, :0])


def decode(
    vae: AutoencoderKLFlux2, x_BNC: Tensor, h: int, w: int, dtype: torch.dtype, plan: DecodePlan | None = None
) -> Image.Image:
    """One packed, normalised latent -> a picture. The normalisation is undone in float32. Raises NumericsError.

    `plan`: made for this size; None: the least work.
    """
    z = latents.denormalise(latents.unpack(x_BNC.float(), h, w), *latent_statistics(vae))
    decoded = decode_latent(vae, latents.unpatchify(z).to(dtype), plan)
    if not bool(torch.isfinite(decoded).all()):
        raise NumericsError(
            f"the decoded picture is not finite in {str(dtype).removeprefix('torch.')}",
            hint="Try --dtype float32; if that fails as well, the weights are damaged: lens models verify.",
        )
    return Image.fromarray(latents.to_pixels(decoded)[0].cpu().numpy())


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


def ran_out(error: BaseException) -> bool:
    """Whether memory is what failed. torch's CPU allocator and CUDA's own calls say it in a RuntimeError's words."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _MEMORY_WORDS)


@contextmanager
def out_of_memory_as_error(request: GenerationRequest) -> Iterator[None]:
    """torch's and Python's out-of-memory errors -> the one with an exit code and a hint."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not ran_out(error):
            raise
        raise too_little(request, error) from error


def too_little(request: GenerationRequest, error: BaseException) -> LensOutOfMemoryError:
    return LensOutOfMemoryError(
        f"not enough memory for {request.width}x{request.height} with {request.model}: {first_line(error)}",
        hint="Try a smaller --base, --dtype bfloat16, --quant nf4, --vram with less than the card has, or another "
        "--device.",
    )


def give_back(device: torch.device) -> None:
    """What nobody holds any more, to the system and to the GPU."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def choose_device(name: str) -> torch.device:
    """auto: cuda, else mps, else cpu. Raises UsageError for a device that torch cannot use here."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"unknown device {name!r}", hint="Use auto, cpu, cuda, cuda:N or mps.") from None
    usable = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not usable.get(device.type, False) or (
        device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()
    ):
        raise UsageError(f"the device {name!r} is not available here", hint="See `lens doctor`.")
    return device


def choose_dtype(wanted: DType, device: torch.device, files: ModelFiles) -> torch.dtype:
    """As `backend.planning.choose_arithmetic` says."""
    return _TORCH_DTYPES[choose_arithmetic(wanted, device.type, files)]


def describe_device(device: torch.device) -> str:
    """ "cpu", or "cuda:0 (NVIDIA H200)"."""
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


def package_versions() -> dict[str, str]:
    """Versions of what decides pixels."""
    return {name: version(name) for name in _PACKAGES}
