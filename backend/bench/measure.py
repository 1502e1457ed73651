"""Time and memory of every phase of one request, cold and warm, as data; `lens_cli.work.bench` formats it.

What is measured is `backend.engine` at work, by listening to its events. Cold is the first time in this process, with
the weights' files dropped from the system's cache as far as it lets a process drop them; warm is every later time,
loads included, for which the engine is unloaded in between.
"""

from __future__ import annotations

import math
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from backend.bench.compare import Comparison, Ours, compare
from backend.bench.random_weights import random_loader
from backend.bench.timing import Stopwatch, TimeSpread, Took, added, processors, walls
from backend.checkpoints.resolve import ModelFiles
from backend.engine import Engine
from backend.errors import LensError, OutOfMemoryError, UsageError, human_bytes
from backend.events import Event, PlanMade
from backend.loaders import FileLoader, Loader
from backend.memory.device import choose_device, describe_device
from backend.memory.machine import RunPlan, capped
from backend.memory.plan import EncoderPlace, MemoryPlan
from backend.model.tensors import transformer_shapes
from backend.pipeline import Texts
from backend.requests import ResolvedRequest
from backend.types import DType, GenerationRequest, Phase

Say = Callable[[str], None]


class Part(StrEnum):
    """What is timed, in the order in which it happens."""

    imports = "import"  # in processes of their own: what `lens gen` imports before it loads anything
    load_encoder = "load encoder"
    encode = "encode"  # pyright: ignore[reportAssignmentType]  hides str.encode, which nobody calls on a part
    load_transformer = "load transformer"
    fold = "fold"  # modulation of the whole schedule: a part of loading the transformer
    load_vae = "load vae"
    denoise = "denoise"
    step = "step"  # of denoising
    decode = "decode"
    picture = "picture"  # encode, denoise and decode together: what a process that is warm takes


@dataclass(frozen=True, kw_only=True)
class PhaseTimes:
    """Seconds of one part. `cold` None: it has no cold side; `warm` None: it happens once (random weights)."""

    part: Part
    cold: float | None
    warm: TimeSpread | None
    processor: (
        TimeSpread | None
    )  # seconds of all threads, of the warm runs, or of the cold one where that is the only one
    peak_bytes: int | None  # the highest of all its runs; None: of no phase of its own


@dataclass(frozen=True, kw_only=True)
class MeasuredMachine:
    """Where it was measured. What else ran there is not known; the load is the system's own figure."""

    device: str
    processor: str  # instruction set that torch uses on the CPU
    threads: int
    torch: str
    python: str
    system: str
    load: float | None  # processes that wanted to run, mean of the minute before; None: the system does not tell
    peak_since_start: bool  # True: peaks are those since the process started


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One request, measured."""

    request: GenerationRequest
    random_tokens: int | None  # of the random features where the weights are random; None: both are from files
    dtype: str
    machine: MeasuredMachine
    image_tokens: int
    text_tokens: int
    packed: str | None  # how the transformer's linears lie in memory; None: in `dtype`
    parameters: int  # of the transformer
    plan: MemoryPlan  # of memory, with the peak that it predicts
    phases: tuple[PhaseTimes, ...]
    comparison: Comparison | None

    def phase(self, part: Part) -> PhaseTimes | None:
        return next((phase for phase in self.phases if phase.part is part), None)


@dataclass(frozen=True)
class Front:
    """What does not depend on size, steps or guidance: a sweep measures it once a dtype and place of the encoder."""

    phases: tuple[PhaseTimes, ...]
    texts: Texts
    dtype: DType
    reader: EncoderPlace

    def fits(self, request: GenerationRequest, planned: RunPlan) -> bool:
        """Whether `request` would read the same features in the same way, as long as model and prompts are the same."""
        same = (self.dtype, self.reader) == (planned.dtype, planned.plan.reader)
        return same and (request.guidance != 1.0) == (self.texts[1] is not None)


@dataclass(frozen=True)
class _KnownTexts(FileLoader):
    """Makes networks of files, and encodes nothing: the features were measured before."""

    texts: Texts

    def encode(self, *_: Any, **__: Any) -> Texts:
        return self.texts


def measure(
    resolved: ResolvedRequest, *, random_tokens: int | None = None, runs: int, against: bool = False,
    float32_run: bool = True, front: Front | None = None, say: Say,
) -> tuple[Measurement, Front]:  # fmt: skip
    """Measure every part once cold and `runs` times warm, then compare where that is asked for.

    `random_tokens`: of the text, where the weights are random; None: they come from the request's files. `front` of an
    earlier case with the same model, prompt and negative prompt is taken over where its dtype and branches fit. `say`
    gets a line per finished part. Raises UsageError for a comparison with blocks that are streamed, OutOfMemoryError
    where the plan does not hold, and what loading and running the model raise.
    """
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    request = resolved.request
    loader: Loader
    if random_tokens is None:
        loader = FileLoader(resolved.need_files())
    else:
        loader = random_loader(request, resolved.preset, random_tokens)
    planned = Engine(loader=lambda _: loader).plan(resolved)
    if against and planned.plan.streamed:
        raise UsageError(
            "--against reference needs the whole model on the device, and this plan streams it",
            hint="drop --vram or --profile, or measure without --against",
        )
    say(planned.plan.line())
    known = front if front is not None and front.fits(request, planned) else None
    if known is not None and isinstance(loader, FileLoader):
        loader = _KnownTexts(loader.files, known.texts)
    engine = Engine(loader=lambda _: loader)
    watch = Stopwatch(choose_device(request.device) if planned.reason is None else torch.device("cpu"))
    imports = _measure_imports(runs) if front is None else front.phases[0]
    _run(engine, resolved, watch, runs, planned)
    parts = list(_parts(watch, imports, known))
    for part in parts:
        say(_line(part))
    networks, ready = engine.prepare(resolved, on_event=lambda event: None)
    comparison, vae = None, engine.autoencoder
    if against and vae is not None:
        ours = Ours(request=request, loader=loader, networks=networks, ready=ready, vae=vae)
        with capped(planned.plan, networks.device), torch.inference_mode():
            comparison = compare(ours, runs=runs, float32_run=float32_run, say=say)
    measurement = Measurement(
        request=request,
        random_tokens=random_tokens,
        dtype=str(planned.dtype),
        machine=_machine(watch, load),
        image_tokens=ready.grid[0] * ready.grid[1],
        text_tokens=ready.texts[0].shape[1],
        packed=planned.quant.scheme if planned.quant.packed else None,
        parameters=sum(math.prod(shape) for shape in transformer_shapes(loader.params.dit).values()),
        plan=planned.plan,
        phases=(*parts, _picture(parts, cold=random_tokens is None)),
        comparison=comparison,
    )
    engine.unload()
    fronts = tuple(part for part in parts if part.part in (Part.imports, Part.load_encoder, Part.encode))
    return measurement, Front(fronts, ready.texts, planned.dtype, planned.plan.reader)


def _run(engine: Engine, resolved: ResolvedRequest, watch: Stopwatch, runs: int, planned: RunPlan) -> None:
    """Load everything once cold and `runs` times warm, then draw as often. Random weights are drawn once: no file."""

    def listen(event: Event) -> None:
        if isinstance(event, PlanMade) and event.reason != planned.reason:
            raise OutOfMemoryError(str(event.reason), hint="measure a smaller --base, or with --vram")
        watch(event)

    if resolved.files is not None:
        drop_from_cache(resolved.files)
        for _ in range(runs):
            engine.prepare(resolved, on_event=listen)
            engine.unload()
    seeds = resolved.request.seeds[:1] * (runs + 1)
    repeated = replace(resolved, request=replace(resolved.request, seeds=seeds))
    for _ in engine.draw(repeated, on_event=listen):
        pass


def _parts(watch: Stopwatch, imports: PhaseTimes, known: Front | None) -> Iterator[PhaseTimes]:
    """What was timed, in the order of `Part`; the features' parts of `known` where they were measured before."""
    yield from (imports,) if known is None else known.phases
    parts = {Part.load_encoder: Phase.load_encoder, Part.encode: Phase.encode} if known is None else {}
    parts |= {Part.load_transformer: Phase.load_transformer, Part.fold: Phase.fold, Part.load_vae: Phase.load_vae}
    for part, phase in (parts | {Part.denoise: Phase.denoise, Part.decode: Phase.decode}).items():
        took = watch.took.get(phase, [])
        if part is Part.load_transformer:  # the phase loads the autoencoder too
            took = [a.without(b) for a, b in zip(took, watch.took[Phase.load_vae], strict=True)]
        if took:
            yield _times(part, took, watch.most[phase])
        if part is Part.denoise:
            warm = TimeSpread(tuple(second for run in watch.steps[1:] for second in run))
            yield PhaseTimes(part=Part.step, cold=watch.steps[0][0], warm=warm, processor=None, peak_bytes=None)


def _times(part: Part, runs: Sequence[Took], peak: int, *, cold: bool = True) -> PhaseTimes:
    """One part, the first of its runs cold unless `cold` is False."""
    warm = runs[1:] if cold else runs
    return PhaseTimes(
        part=part,
        cold=runs[0].wall if cold else None,
        warm=walls(warm) if warm else None,
        processor=processors(warm or runs),
        peak_bytes=peak,
    )


def _line(part: PhaseTimes) -> str:
    shown = f"{part.warm.median:.3g} s" if part.warm else f"{part.cold:.3g} s the first time"
    peak = "" if part.peak_bytes is None else f", peak memory {human_bytes(part.peak_bytes)}"
    return f"{part.part}: {shown}{peak}"


def _measure_imports(runs: int) -> PhaseTimes:
    took, peaks = zip(*(_import_once() for _ in range(runs)), strict=True)
    return _times(Part.imports, took, max(peaks), cold=False)


_IMPORT = """
import time
start = time.perf_counter()
import backend.engine, backend.model.autoencoder, backend.model.transformer
seconds = time.perf_counter() - start
from backend.memory.exhausted import process_peak_bytes
print(seconds, time.process_time(), process_peak_bytes())
"""


def _import_once() -> tuple[Took, int]:
    """Time and peak bytes of a process that imports what `lens gen` imports, and does nothing else."""
    import backend

    root = str(Path(next(iter(backend.__path__))).parent)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))}
    done = subprocess.run([sys.executable, "-c", _IMPORT], capture_output=True, text=True, env=environment)
    if done.returncode:
        last = next(reversed(done.stderr.strip().splitlines()), f"exit code {done.returncode}")
        raise LensError(f"a fresh process cannot import lens: {last}")
    wall, processor, peak = done.stdout.split()
    return Took(float(wall), float(processor)), int(peak)


def drop_from_cache(files: ModelFiles) -> None:
    """Ask the system to forget what it keeps of the weights' files. What another process has mapped stays."""
    if not hasattr(os, "posix_fadvise"):
        return
    for _, path, _ in files.files():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _picture(phases: Sequence[PhaseTimes], *, cold: bool) -> PhaseTimes:
    """Warm: the sum of encoding, denoising and decoding, run by run. Cold: the first time of everything, imports too;
    None where random weights stand in for files."""
    parts = [p for p in phases if p.part in (Part.encode, Part.denoise, Part.decode)]
    firsts = [p.cold for p in phases if p.part not in (Part.fold, Part.step) and p.cold is not None]
    imports = [p.warm.median for p in phases if p.part is Part.imports and p.warm is not None]
    peaks = [p.peak_bytes for p in phases if p.part is not Part.imports and p.peak_bytes is not None]
    return PhaseTimes(
        part=Part.picture,
        cold=sum(firsts + imports) if cold else None,
        warm=added([p.warm for p in parts if p.warm is not None]),
        processor=added([p.processor for p in parts if p.processor is not None]),
        peak_bytes=max(peaks),
    )


def _machine(watch: Stopwatch, load: float | None) -> MeasuredMachine:
    return MeasuredMachine(
        device=describe_device(watch.peak.device),
        processor=torch.backends.cpu.get_cpu_capability(),
        threads=torch.get_num_threads(),
        torch=version("torch"),
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        load=load,
        peak_since_start=watch.peak.since_start,
    )
