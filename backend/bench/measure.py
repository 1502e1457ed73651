"""Time and memory of every phase of one request, cold and warm, as data; `lens_cli.work.bench` formats it.

Cold is the first time in this process, with the weights' files dropped from the system's cache as far as it lets a
process drop them; warm is every later time, loads included. One phase runs at a time and nothing of an earlier one
stays that `lens gen` would have freed, so a phase's peak is what that phase needs.
"""

from __future__ import annotations

import gc
import math
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar, cast

import torch
from torch import Tensor

from backend import latents
from backend.bench import networks
from backend.bench.case import Case
from backend.bench.compare import Comparison, compare
from backend.bench.subject import Subject, Text, open_subject
from backend.bench.timing import Clock, Marks, Peak, Spread, Took, added, processors, timed, walls
from backend.checkpoints.resolve import ModelFiles
from backend.errors import LensError, UsageError
from backend.memory.device import describe_device
from backend.memory.machine import capped
from backend.memory.plan import EncoderPlace, MemoryPlan
from backend.types import Phase
from backend.words import human_bytes

Result = TypeVar("Result")
Say = Callable[[str], None]


class Part(StrEnum):
    """What is timed, in the order in which it happens."""

    imports = "import"  # in processes of their own: what `lens gen` imports before it loads anything
    load_encoder = "load encoder"
    encode = "encode"  # pyright: ignore[reportAssignmentType]  hides str.encode, which nobody calls on a part
    load_transformer = "load transformer"
    fold = "fold"  # modulation of the whole schedule: a part of loading the transformer, measured once more
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
    warm: Spread | None
    processor: Spread | None  # seconds of all threads, of the warm runs, or of the cold one where that is the only one
    peak_bytes: int | None  # the highest of all its runs; None: of no phase of its own


@dataclass(frozen=True, kw_only=True)
class Machine:
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
    """One case, measured."""

    case: Case
    dtype: str
    machine: Machine
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
    text: Text
    dtype: torch.dtype
    reader: EncoderPlace

    def fits(self, subject: Subject) -> bool:
        """Whether `subject` would read the same features in the same way, as long as model and prompts are the same."""
        guided = subject.case.request.guidance != 1.0
        same = (self.dtype, self.reader) == (subject.dtype, subject.plan.reader)
        return same and guided == (self.text.unconditional_1LTF is not None)


def measure(
    case: Case, *, runs: int, against: bool = False, float32_run: bool = True, front: Front | None = None, say: Say
) -> tuple[Measurement, Front]:
    """Measure every part once cold and `runs` times warm, then compare where that is asked for.

    `front` of an earlier case with the same model, prompt and negative prompt is taken over where its dtype and
    branches fit. `say` gets a line per finished part. Raises UsageError for a comparison with blocks that are streamed,
    and what loading and running the model raise.
    """
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    subject = open_subject(case)
    if against and subject.plan.streamed:
        raise UsageError(
            "--against reference needs the whole model on the device, and this plan streams it",
            hint="drop --vram or --profile, or measure without --against",
        )
    bench = _Bench(subject, runs, say)
    say(subject.plan.line())
    with capped(subject.plan, subject.device):
        front, phases, comparison = _measure(bench, front, against=against, float32_run=float32_run)
    measurement = Measurement(
        case=case,
        dtype=str(subject.dtype).removeprefix("torch."),
        machine=_machine(subject, load, bench.peak.since_start),
        image_tokens=subject.grid[0] * subject.grid[1],
        text_tokens=front.text.tokens,
        packed=subject.quant.scheme if subject.quant.packed else None,
        parameters=sum(math.prod(entry.shape) for entry in subject.transformer_table().entries.values()),
        plan=subject.plan,
        phases=(*phases, _picture(phases, cold=not case.random)),
        comparison=comparison,
    )
    return measurement, front


def _measure(
    bench: _Bench, front: Front | None, *, against: bool, float32_run: bool
) -> tuple[Front, tuple[PhaseTimes, ...], Comparison | None]:
    """One phase after the other, as `lens gen` has them."""
    subject = bench.subject
    if front is None or not front.fits(subject):
        front = _measure_front(bench, front)
        bench.phases.clear()
    transformer = bench.load(Part.load_transformer, lambda: networks.load_transformer(subject))
    bench.load(Part.fold, lambda: networks.fold(subject))
    vae = bench.load(Part.load_vae, lambda: networks.load_vae(subject))
    ours = networks.Ours(subject=subject, transformer=transformer, vae=vae, text=front.text, say=bench.say)
    comparison = None
    with torch.inference_mode():
        latent = bench.denoise(ours)
        bench.repeat(Part.decode, lambda: latents.to_pixels(ours.decode(latent)).cpu())
        if against:
            comparison = compare(ours, runs=bench.runs, float32_run=float32_run, say=bench.say)
    return front, (*front.phases, *bench.phases), comparison


class _Bench:
    """Collects the phases of one case."""

    def __init__(self, subject: Subject, runs: int, say: Say) -> None:
        self.subject, self.runs, self.say = subject, runs, say
        self.peak = Peak(subject.device)
        self.phases: list[PhaseTimes] = []

    def note(self, part: Part, runs: Sequence[Took], peak: int, *, cold: bool = True) -> None:
        """Keep what one part took, the first of its runs cold unless `cold` is False."""
        warm = runs[1:] if cold else runs
        spread = walls(warm) if warm else None
        self.phases.append(
            PhaseTimes(
                part=part,
                cold=runs[0].wall if cold else None,
                warm=spread,
                processor=processors(warm or runs),
                peak_bytes=peak,
            )
        )
        shown = f"{spread.median:.3g} s" if spread else f"{runs[0].wall:.3g} s the first time"
        self.say(f"{part}: {shown}, peak memory {human_bytes(peak)}")

    def repeat(self, part: Part, work: Callable[[], Result], *, times: int | None = None) -> Result:
        """Run `work` once cold and then again, `times` in all; what one run gives is gone before the next."""
        self.peak.reset()
        runs: list[Took] = []
        result: Result | None = None
        for _ in range(self.runs + 1 if times is None else times):
            result = None
            gc.collect()
            result, took = timed(self.subject.device, work)
            runs.append(took)
        self.note(part, runs, self.peak.read())
        return cast(Result, result)

    def load(self, part: Part, work: Callable[[], Result]) -> Result:
        """`repeat` from files that are in nobody's cache the first time. Random weights are drawn once: no file."""
        if self.subject.files is None:
            return self.repeat(part, work, times=1)
        drop_from_cache(self.subject.files)
        return self.repeat(part, work)

    def denoise(self, ours: networks.Ours) -> Tensor:
        """The whole schedule and its single steps; the latent of the last run."""
        marks: list[Marks] = []

        def once() -> Tensor:
            marks.append(Marks(self.subject.device))
            marks[-1].mark()
            return ours.denoise(lambda i: marks[-1].mark())

        latent = self.repeat(Part.denoise, once)
        steps = [mark.seconds() for mark in marks]
        warm = Spread(tuple(second for run in steps[1:] for second in run))
        self.phases.append(PhaseTimes(part=Part.step, cold=steps[0][0], warm=warm, processor=None, peak_bytes=None))
        return latent


def _measure_front(bench: _Bench, earlier: Front | None) -> Front:
    """Imports where no earlier case has measured them, and the text encoder where there is one."""
    subject = bench.subject
    if earlier is not None:
        bench.phases += [phase for phase in earlier.phases if phase.part is Part.imports]
    else:
        took, peaks = zip(*(_import_once() for _ in range(bench.runs)), strict=True)
        bench.note(Part.imports, took, max(peaks), cold=False)
    spent: dict[Phase, list[Took]] = {}
    highest: dict[Phase, int] = {}

    @contextmanager
    def hook(phase: Phase) -> Iterator[None]:
        bench.peak.reset()
        clock = Clock(subject.device)
        yield
        spent.setdefault(phase, []).append(clock.read())
        highest[phase] = max(highest.get(phase, 0), bench.peak.read())

    if subject.files is not None:
        drop_from_cache(subject.files)
    with torch.inference_mode():
        text = subject.text(hook)
        for _ in range(bench.runs if subject.files is not None else 0):
            text = subject.text(hook)
    for part, phase in ((Part.load_encoder, Phase.load_encoder), (Part.encode, Phase.encode)):
        if phase in spent:
            bench.note(part, spent[phase], highest[phase])
    return Front(tuple(bench.phases), text, subject.dtype, subject.plan.reader)


_IMPORT = """
import time
start = time.perf_counter()
import backend.pipeline, backend.model.autoencoder, backend.model.transformer
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


def _machine(subject: Subject, load: float | None, since_start: bool) -> Machine:
    return Machine(
        device=describe_device(subject.device),
        processor=torch.backends.cpu.get_cpu_capability(),
        threads=torch.get_num_threads(),
        torch=version("torch"),
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        load=load,
        peak_since_start=since_start,
    )
