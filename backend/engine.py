"""The networks of one model, kept in memory between requests under the memory plan.

A request loads only what differs from what the one before it left: another LoRA, quantisation, dtype, device or place
reads the transformer anew, another prompt is only encoded, another size or number of steps only folds its modulation.
A picture never depends on what was there before it, not in its last bit.

Where memory runs out, everything is let go and the request goes on under the next leaner plan, once. One caller at a
time: an engine has no lock.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from backend import loading, pipeline
from backend.cache.memory import Memory
from backend.cache.store import Stores
from backend.denoising.compile import check_compiler, compile_blocks
from backend.denoising.denoiser import Denoiser
from backend.denoising.modulation import Folded
from backend.denoising.modulation_store import read_or_fold
from backend.denoising.preview import Projection, find_projection, no_projection
from backend.denoising.stream import StreamedBlocks, making_room, stream_blocks
from backend.errors import first_line
from backend.events import FinishedPicture, Generation, Noticed, OnEvent, PlanMade, Stop
from backend.inputs.begin import last_pass
from backend.kernels.attention import Choices
from backend.kernels.graphs import cuda_graphs
from backend.loaders import TORCH_DTYPES, FileLoader, Loader
from backend.lora.apply import fingerprint, fuse
from backend.lora.names import decide_modes
from backend.memory.device import choose_device, describe_device
from backend.memory.exhausted import give_back, give_back_freed, host_ran_out, ran_out, too_little
from backend.memory.linears import check_device, device_note
from backend.memory.machine import RunPlan, capped, look_at
from backend.memory.plan import (
    EncoderPlace,
    MemoryPlan,
    Place,
    step_down,
)
from backend.memory.resident import ResidentBytes, encodes_beside, resident_bytes
from backend.model.autoencoder import AutoencoderKLFlux2
from backend.model.transformer import LensBlock, LensTransformer2DModel
from backend.pipeline import Grid, Networks, Prepared, Progress, Sigmas, Texts
from backend.presets import Component
from backend.requests import ResolvedRequest
from backend.types import Encoder, GenerationRequest, LoraUse, Phase

if TYPE_CHECKING:
    from PIL import Image

    from backend.text.llama import LlamaModel

SCHEDULES = 4  # folded ones that are kept where memory is not tight: pictures of several sizes take turns
_PACKAGES = ("lens", "torch", "tokenizers", "bitsandbytes", "gguf")  # what draws, as every installation has it


class Engine:
    """Draws requests one after another. Nothing is loaded before the first; `unload` gives everything back."""

    def __init__(
        self, *, stores: Stores | None = None, loader: Callable[[ResolvedRequest], Loader] | None = None
    ) -> None:
        """`stores`: what earlier processes left; None: nothing. `loader`: what makes a request's networks; None: its
        model's files."""
        self.stores = stores or Stores()
        self._loader_of = loader or (lambda resolved: FileLoader(resolved.need_files()))
        self._memory = Memory()
        self._resident = ResidentBytes(0, 0)  # of the networks in memory, as their plan counts them
        self._device = torch.device("cpu")  # where they are
        self._failed: tuple[Phase, bool, int] | None = None  # memory ran out there, the host's?, at so many bytes
        self._llama: tuple[Path, int, LlamaModel] | None = None
        self._on_event: OnEvent = lambda event: None  # of the request at hand

    # ------------------------------------------------------------------------------------------------------- requests

    def draw(
        self, resolved: ResolvedRequest, *, first: int = 0, on_event: OnEvent, stop: Stop = lambda: False
    ) -> Generator[Generation]:
        """Yield one finished picture per seed from index `first` on, in order.

        Raises CancelledError between steps once `stop()` is true, NumericsError for a latent or picture that is not
        finite, CheckpointError for unusable weights, OutOfMemoryError (of backend.errors) where memory ran out.
        """
        request, setup = resolved.request, self._set_up(resolved, on_event)
        reason, stepped_down = setup.planned.reason, False
        with capped(setup.plan, setup.device), self._slots_given_back():
            while True:
                on_event(PlanMade(plan=setup.plan, reason=reason))
                try:
                    for picture in pipeline.draw(setup.networks(), request, setup.progress, first=first, stop=stop):
                        first += 1
                        yield setup.finished(picture)
                    return
                except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is one of these
                    if not ran_out(error):
                        raise
                    # Once: whoever fails twice needs another size or another machine, not a third guess.
                    leaner = None if stepped_down else self._leaner(setup, on_host=host_ran_out(error))
                    if leaner is None:
                        self._release()
                        raise too_little(request, error) from error
                    reason = f"memory ran out ({setup.progress.current}): {first_line(error)}"
                # Only here, where the error has let go of what failed, can its memory be given back.
                setup, stepped_down = replace(setup, plan=leaner, denoiser=None), True
                self._release()

    def prepare(self, resolved: ResolvedRequest, *, on_event: OnEvent) -> tuple[Networks, Prepared]:
        """Everything that comes before the first noise; a `draw` of the same request then finds it in memory.

        Raises what `draw` does, and torch's own errors where memory runs out.
        """
        setup = self._set_up(resolved, on_event)
        on_event(PlanMade(plan=setup.plan, reason=setup.planned.reason))
        networks = setup.networks()
        with capped(setup.plan, setup.device):
            return networks, pipeline.prepare(networks, resolved.request)

    def plan(self, resolved: ResolvedRequest) -> RunPlan:
        """Where everything of a request would lie, and what would compute, once nothing else of ours is in memory.

        A GPU that nobody named and that is too small even for the leanest plan is left alone, for the CPU. Raises
        OutOfMemoryError with the numbers, UsageError, CheckpointError.
        """
        return self._plan(resolved.request, self._loader_of(resolved))

    def _plan(self, request: GenerationRequest, loader: Loader) -> RunPlan:
        device = choose_device(request.device)
        check_device(request.quant, device)
        planned = loader.plan(last_pass(request), self._resident.given_back(look_at(device)))
        if self._failed is not None:  # what has failed once is not tried again
            phase, on_host, taken = self._failed
            if planned.plan.taken(phase, on_host=on_host) >= taken:
                leaner = step_down(planned.model, planned.machine, planned.plan, phase, on_host=on_host)
                planned = replace(planned, plan=leaner or planned.plan)
        return planned

    def _set_up(self, resolved: ResolvedRequest, on_event: OnEvent) -> _Setup:
        """Raises UsageError and CheckpointError, before anything is loaded."""
        request, loader = resolved.request, self._loader_of(resolved)
        planned = self._plan(request, loader)
        device = choose_device(request.device) if planned.reason is None else torch.device("cpu")
        if request.compiled and not planned.plan.streamed:
            check_compiler(device)
        # What of a LoRA does not fit was said by whoever made the request: here it is only left aside.
        loras = decide_modes(request.loras, loader.params.dit, quantised=planned.quant.packed, warn=lambda _: None)
        encoder = loader.encoder(request.encoder)
        self._on_event = on_event
        about = device_note(planned.quant, device)
        for note in (*planned.quant.notes, *([] if about is None else [about])):
            self._notice(note)
        return _Setup(
            engine=self, loader=loader, request=request, planned=planned, plan=planned.plan, device=device,
            dtype=TORCH_DTYPES[planned.dtype], encoder=encoder, loras=loras, progress=Progress(on_event, device),
        )  # fmt: skip

    def _leaner(self, setup: _Setup, *, on_host: bool) -> MemoryPlan | None:
        phase = setup.progress.current
        self._failed = phase, on_host, setup.plan.taken(phase, on_host=on_host)
        return step_down(setup.planned.model, setup.planned.machine, setup.plan, phase, on_host=on_host)

    def _notice(self, text: str) -> None:
        self._on_event(Noticed(text=text))

    # --------------------------------------------------------------------------------------------------------- memory

    @property
    def autoencoder(self) -> AutoencoderKLFlux2 | None:
        """The VAE in memory; None: there is none."""
        return self._memory.value("vae")

    def language_model(self, gguf: Path, context: int) -> LlamaModel:
        """A GGUF opened by llama.cpp, once for all who ask until a picture's transformer needs its memory.

        `context`: tokens of the longest conversation. Closed here: by the next picture, `close_language_model` or
        `unload`. Raises what `LlamaModel` does for a file that it cannot open.
        """
        if self._llama is None or self._llama[0] != gguf or self._llama[1] < context:
            from backend.text.llama import LlamaModel  # llama.cpp, only where somebody asks

            self.close_language_model()
            self._llama = gguf, context, LlamaModel(gguf, context=context, prefixes=self.stores.prefixes)
        return self._llama[2]

    def close_language_model(self) -> None:
        """Give its memory back, if it is open."""
        if self._llama is not None:
            self._llama[2].close()
            self._llama = None

    def unload(self) -> None:
        """Give back all memory, on every device. The next request loads what it needs."""
        self.close_language_model()
        self._memory.drop()
        self._failed = None
        self._release()

    @contextmanager
    def _slots_given_back(self) -> Iterator[None]:
        """After it the slots of streamed blocks are free, also where a request ended in the middle of a pass."""
        try:
            yield
        finally:
            transformer: _Transformer | None = self._memory.value("transformer")
            if transformer is not None and transformer.source is not None:
                transformer.source.release()

    def _release(self) -> None:
        """Let go of the networks; features of the last prompt stay."""
        self._memory.drop("transformer", "graphs", "schedules", "vae")
        self._resident = ResidentBytes(0, 0)
        give_back(self._device)

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.unload()


# One request ---------------------------------------------------------------------------------------------------------


@dataclass
class _Transformer:
    """The network without its modulation layers, and where its blocks come from."""

    network: LensTransformer2DModel
    source: StreamedBlocks[LensBlock] | None  # None: they keep their place on the device


@dataclass(kw_only=True)
class _Setup:
    """One request under one plan: the pipeline's networks, from the engine's memory or loaded into it."""

    engine: Engine
    loader: Loader
    request: GenerationRequest
    planned: RunPlan
    plan: MemoryPlan
    device: torch.device
    dtype: torch.dtype
    encoder: Encoder
    loras: tuple[LoraUse, ...]
    progress: Progress
    denoiser: Denoiser | None = None  # once there is one
    told: bool = False  # that there is no preview

    def networks(self) -> Networks:
        return Networks(
            encode=self.encode, velocity=self.velocity, decode=self.decode, device=self.device,
            arithmetic=self.arithmetic, encode_picture=self.encode_picture, project=self.project,
        )  # fmt: skip

    @property
    def arithmetic(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    @property
    def home(self) -> torch.device:
        """Where the networks are loaded to: the CPU for blocks that are streamed, and the VAE that waits its turn."""
        return torch.device("cpu") if self.plan.streamed else self.device

    def encode(self, request: GenerationRequest) -> Texts:
        """As the features of the last prompt where it is the same; else looked up on the disk or computed."""
        memory, loader = self.engine._memory, self.loader
        reader = self.device if self.plan.reader is EncoderPlace.gpu else torch.device("cpu")
        negative = None if request.guidance == 1.0 else request.negative_prompt
        key = (
            loader.stamp(Component.text_encoder), loader.stamp(Component.tokenizer), loader.params.text,
            loader.params.dit.selected_layer_index, self.encoder, self.dtype, reader, request.prompt, negative,
        )  # fmt: skip
        if memory.has("texts", key):
            with self.progress.phase(Phase.encode):
                texts, remarks = memory.value("texts")
        else:
            if self.encoder is not Encoder.llama:
                self.engine.close_language_model()
            remarks = list[str]()
            texts = loader.encode(
                request, self.encoder, self.dtype, reader, self._phase, stores=self.engine.stores,
                language_model=self.engine.language_model, say=remarks.append,
            )  # fmt: skip
            memory.put("texts", key, (texts, remarks))
        self.engine.close_language_model()  # what comes next needs the memory
        for remark in remarks:
            self.engine._notice(remark)
        if self.plan.tight:
            give_back_freed(self.device)
        return texts

    def _phase(self, name: Phase) -> AbstractContextManager[None]:
        """Before an encoder is opened, networks that leave it no room go."""
        model, resident = self.planned.model, self.engine._resident
        if name is Phase.load_encoder and resident.total and not encodes_beside(model, self.plan, resident):
            self.engine._release()
        return self.progress.phase(name)

    def velocity(self, request: GenerationRequest, texts: Texts, grid: Grid, sigmas: Sigmas) -> Denoiser:
        """The transformer along one schedule, guidance inside. Loads what is not in memory, the VAE with it."""
        engine, memory, plan = self.engine, self.engine._memory, self.plan
        weights = (
            self.loader.stamp(Component.transformer), self.loader.params.dit, self.dtype, self.device,
            fingerprint(self.loras),
        )  # fmt: skip
        compiled = request.compiled and not plan.streamed
        place = (self.home, plan.place if plan.streamed else None, replace(self.planned.quant, notes=()), compiled)
        wanted: dict[str, Hashable] = {
            "schedules": weights,
            "transformer": (weights, place),
            "graphs": (weights, place, plan.graphs),
            "vae": (self.loader.stamp(Component.vae), self.loader.params.vae, self.dtype, self.home),
        }
        if memory.drop_others(wanted):
            engine._resident = ResidentBytes(0, 0)
            give_back(engine._device)
        engine._device = self.device
        schedules: dict[Sigmas, Folded] = memory.get("schedules", weights, dict)
        complete = sigmas in schedules and all(memory.has(name, key) for name, key in wanted.items())
        with nullcontext() if complete else self.progress.phase(Phase.load_transformer):
            this = self._schedule(schedules, sigmas)
            transformer: _Transformer = memory.get(
                "transformer", wanted["transformer"], lambda: self._load_transformer(compiled)
            )
            graphs = memory.get(
                "graphs", wanted["graphs"],
                lambda: cuda_graphs(self.device, 0 if compiled else plan.graphs, engine._notice),
            )  # fmt: skip
            if request.compiled and plan.streamed:
                engine._notice("--compile is ignored: the blocks are streamed")
            self.denoiser = Denoiser(
                transformer.network, this, grid, *texts, guidance=request.guidance, source=transformer.source,
                attention=memory.get("attention", self.device, lambda: Choices(self.device, engine.stores.kernels)),
                graphs=graphs,
            )  # fmt: skip
            memory.get("vae", wanted["vae"], self._load_vae)
        engine._resident = resident_bytes(self.planned.model, plan)
        return self.denoiser

    def _schedule(self, schedules: dict[Sigmas, Folded], sigmas: Sigmas) -> Folded:
        """The modulation of this schedule, now the most recently used one of those in memory."""
        found = schedules.pop(sigmas, None)
        if found is None:
            while len(schedules) >= (1 if self.plan.tight else SCHEDULES):
                del schedules[next(iter(schedules))]
            with self.progress.phase(Phase.fold):
                found = read_or_fold(
                    fuse(self.loader.transformer(), self.loras), self.loader.params.dit, sigmas[:-1], self.dtype,
                    self.device, self.loras, self.engine.stores.schedules, self.loader.transformer_sha256,
                )  # fmt: skip
        schedules[sigmas] = found
        return found

    def _load_transformer(self, compiled: bool) -> _Transformer:
        network = loading.load_for_schedules(
            self.loader.transformer(), self.loader.params.dit, self.dtype, self.home, self.loras, self.planned.quant
        )
        source = None
        if self.plan.streamed:
            source = stream_blocks(network, self.device, packed=self.plan.place is Place.pinned)
        elif compiled:
            compile_blocks(network)
        return _Transformer(network, source)

    def _load_vae(self) -> AutoencoderKLFlux2:
        with self.progress.phase(Phase.load_vae):
            return loading.fill_vae(self.loader.vae(), self.loader.params.vae, self.dtype, self.home)

    @torch.inference_mode()
    def encode_picture(self, picture: Image.Image) -> Tensor:
        """A picture to begin from -> its latent (1, N, C), where the VAE lies."""
        with self.progress.phase(Phase.encode):
            return pipeline.encode(self.engine._memory.value("vae"), picture, self.dtype)

    @torch.inference_mode()
    def decode(self, x_1NC: Tensor, grid: Grid) -> Tensor:
        """Latent -> (1, 3, 16 h, 16 w)."""
        memory = self.engine._memory
        if self.plan.tight:
            give_back_freed(self.device)
        vae = memory.value("vae")
        with making_room(memory.value("transformer").source, vae, self.device):
            return pipeline.decode(vae, x_1NC, grid, self.dtype, self.plan.decode)

    def project(self, x_1NC: Tensor, grid: Grid) -> Image.Image | None:
        """A latent as a small picture; None, which is said: no projection was fitted to its encoder."""
        memory, vae = self.engine._memory, self.engine._memory.value("vae")
        key = (self.loader.stamp(Component.vae), self.device)
        projection: Projection | None = memory.get("projection", key, lambda: find_projection(vae, self.device))
        if projection is not None:
            return projection.picture(x_1NC, *grid)
        if not self.told:
            self.told = True
            self.engine._notice(no_projection(vae))
        return None

    def finished(self, picture: FinishedPicture) -> Generation:
        """The picture with the facts that make it again."""
        assert self.denoiser is not None
        return Generation(
            **vars(picture),
            model=self.loader.identity(),
            dtype=self.arithmetic,
            device=describe_device(self.device),
            encoder=self.encoder,
            loras=self.loras,
            quant=self.planned.quant.approximation,
            compiled=self.request.compiled and not self.plan.streamed,
            attention=str(self.denoiser.backend),
            plan=self.plan,
            template_date=self.loader.params.text.template.date,
            versions={name: version(name) for name in _PACKAGES},
        )
