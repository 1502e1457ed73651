"""From a complete request to pictures: the numbered recipe. Each phase frees what the next does not need.

Knows nothing about flags, files of output or progress bars: it is given `ModelFiles` and reports events.
"""

from __future__ import annotations

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
from backend.errors import CancelledError, NumericsError, UsageError
from backend.errors import OutOfMemoryError as LensOutOfMemoryError
from backend.identity import identify_model
from backend.loras import settle
from backend.memory import peak_bytes
from backend.model import checkpoint
from backend.model.autoencoder import AutoencoderKLFlux2, decode_latent, latent_statistics
from backend.model.denoiser import Denoiser
from backend.quant_plan import QuantPlan, plan_quant
from backend.quantize import check_device, device_note
from backend.text.features import FeatureSource
from backend.text.shared import SharedLlama, choose_encoder
from backend.types import (
    DType,
    Encoder,
    Generation,
    GenerationRequest,
    OnEvent,
    Phase,
    PhaseDone,
    PhaseStarted,
    StepDone,
    Stop,
)
from backend.weights import ModelFiles

_TORCH_DTYPES = {DType.float32: torch.float32, DType.bfloat16: torch.bfloat16}
_PACKAGES = ("lens", "torch", "diffusers", "transformers", "tokenizers")


@dataclass(frozen=True)
class TextFeatures:
    """What the transformer reads of one prompt: (1, L, T, F)."""

    features_1LTF: Tensor


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
        llama: SharedLlama | None = None,
    ) -> None:
        """`embeddings` and `schedules`: encoded prompts and folded schedules of earlier processes; None: computed.
        `llama`: the model's GGUF where the reasoner has it open already; closed once the prompt is encoded."""
        self.files = files
        self.embeddings, self.schedules, self.llama = embeddings, schedules, llama
        self.device = choose_device(device)
        self.dtype = choose_dtype(dtype, self.device, files)
        self.params = files.preset.params

    def generate(self, request: GenerationRequest, *, on_event: OnEvent, stop: Stop) -> Iterator[Generation]:
        """Yield one finished picture per seed, in order; one load and one text encoding serve all of them.

        Raises CancelledError between steps once `stop()` is true, NumericsError for a non-finite latent,
        CheckpointError for unusable weights, OutOfMemoryError (of backend.errors) where memory ran out.
        """
        encoder = choose_encoder(request.encoder, self.files)
        # What of a LoRA does not fit was said by whoever made the request: here it is only left aside.
        quant = self.plan_quant(request)
        loras = settle(request.loras, self.params.dit, quantised=quant.packed, warn=lambda _: None)
        timings: dict[str, float] = {}
        with out_of_memory_as_error(request):
            # 1. Text -> features, kept ones where there are. The encoder is gone before the transformer arrives.
            conditional, unconditional = self._encode(request, encoder, timings, on_event)
            # 2. The transformer, with all that depends on the prompt and the schedule alone, and the autoencoder.
            h, w = request.height // latents.CELL, request.width // latents.CELL
            sigmas = sampling.schedule(h * w, request.steps)
            with phase(Phase.load_transformer, timings, on_event, self.device):
                transformer, folded = checkpoint.load_transformer(
                    self.files, self.dtype, self.device, loras, quant, sigmas=sigmas[:-1], schedules=self.schedules
                )
                velocity = Denoiser(
                    transformer, folded, (h, w), conditional.features_1LTF,
                    None if unconditional is None else unconditional.features_1LTF, guidance=request.guidance,
                )  # fmt: skip
                vae = checkpoint.load_vae(self.files, self.dtype, self.device)
            identity = identify_model(self.files)

            for index, seed in enumerate(request.seeds):
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
                            StepDone(
                                phase=Phase.denoise, step=i + 1, total=request.steps, image=index, seconds=now - clock
                            )
                        )
                        clock = now
                        # The last step leaves only the decoding: a finished picture is worth keeping.
                        if i + 1 < request.steps and stop():
                            raise CancelledError(f"stopped after step {i + 1} of {request.steps}")

                    with torch.inference_mode():
                        x = sampling.denoise(velocity, x, sigmas, on_step)
                if not bool(torch.isfinite(x).all()):
                    raise NumericsError(
                        f"seed {seed}: the latent is not finite after {request.steps} steps in {self._dtype_name}",
                        hint="Try --dtype float32; if that fails as well, the weights are damaged: lens models verify.",
                    )
                # 5. Latent -> pixels.
                with phase(Phase.decode, mine, on_event, self.device, image=index), torch.inference_mode():
                    image = decode(vae, x, h, w, self.dtype)
                yield Generation(
                    image=image,
                    request=request,
                    index=index,
                    seed=seed,
                    model=identity,
                    sigmas=sigmas,
                    dtype=self._dtype_name,
                    device=describe_device(self.device),
                    encoder=encoder,
                    loras=loras,
                    quant=quant.approximation,
                    template_date=self.params.text.template.date,
                    timings=mine,
                    versions=package_versions(),
                )
                if index + 1 < len(request.seeds) and stop():
                    raise CancelledError(f"stopped after {index + 1} of {len(request.seeds)} pictures")

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
        self, request: GenerationRequest, encoder: Encoder, timings: dict[str, float], on_event: OnEvent
    ) -> tuple[TextFeatures, TextFeatures | None]:
        """Features of the prompt, and of the unconditional branch where guidance is not 1."""
        source = FeatureSource(
            files=self.files, encoder=encoder, dtype=self.dtype, device=self.device, store=self.embeddings,
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


def decode(vae: AutoencoderKLFlux2, x_BNC: Tensor, h: int, w: int, dtype: torch.dtype) -> Image.Image:
    """One packed, normalised latent -> a picture. The normalisation is undone in float32. Raises NumericsError."""
    z = latents.denormalise(latents.unpack(x_BNC.float(), h, w), *latent_statistics(vae))
    decoded = decode_latent(vae, latents.unpatchify(z).to(dtype))
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


@contextmanager
def out_of_memory_as_error(request: GenerationRequest) -> Iterator[None]:
    """torch's and Python's out-of-memory errors -> the one with an exit code and a hint."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise LensOutOfMemoryError(
            f"not enough memory for {request.width}x{request.height} with {request.model}: {first_line(error)}",
            hint="Try a smaller --base, --dtype bfloat16, or another --device.",
        ) from error


def first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


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
    """auto: bfloat16 on an accelerator; on a CPU float32, except for a transformer stored in bfloat16.

    A bfloat16 checkpoint gains nothing from float32 arithmetic but twice the memory; a float32 or 8-bit one would lose.
    """
    if wanted is not DType.auto:
        return _TORCH_DTYPES[wanted]
    if device.type != "cpu":
        return torch.bfloat16
    return torch.bfloat16 if _stored_in_bfloat16(files) else torch.float32


def _stored_in_bfloat16(files: ModelFiles) -> bool:
    from backend.model.headers import read_summary

    tensors = [t for path in files.transformer for t in read_summary(path).tensors.values()]
    return sum(t.nbytes for t in tensors if t.dtype == "BF16") > sum(t.nbytes for t in tensors) / 2


def describe_device(device: torch.device) -> str:
    """ "cpu", or "cuda:0 (NVIDIA H200)"."""
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


def package_versions() -> dict[str, str]:
    """Versions of what decides pixels."""
    return {name: version(name) for name in _PACKAGES}
