"""The memory plan: before anything is loaded, where each network lies, what is streamed, and how much that takes.

A ladder of placements, from the fastest to the leanest; the plan is the first whose predicted peak fits. So more memory
never gives a slower placement, and after a failed allocation there is always a next step. Every placement computes
the same picture: exact streaming moves bytes only, and decoding in strips changes the order of float additions. What
is approximate (quantised weights, llama.cpp's features) is the request's choice and never the plan's.

Light ring: standard library only; what the machine has is measured elsewhere and passed in.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from backend.errors import OutOfMemoryError, UsageError, human_bytes
from backend.memory import footprint
from backend.memory.footprint import GB, Job
from backend.model.decode_plan import DecodePlan
from backend.types import Phase

SLOTS = 3  # device memory of streamed blocks, in blocks: one runs, one arrives, one has a start
LEANER = 200_000_000  # bytes


class Place(StrEnum):
    """Where the transformer's blocks lie between their turns."""

    resident = "resident"  # on the device
    pinned = "pinned"  # in page-locked host memory, streamed through a few slots of the device
    mapped = "mapped"  # in their file, streamed likewise: where the host has no memory to lock


class EncoderPlace(StrEnum):
    """What reads the prompt, and where."""

    gpu = "gpu"  # exact, one layer on the GPU at a time
    cpu = "cpu"  # exact, one layer at a time
    llama = "llama"  # llama.cpp on the CPU; near-exact, so only where it was asked for


@dataclass(frozen=True, kw_only=True)
class Profile:
    """A class of cards."""

    name: str
    card: int  # bytes of the card
    share: float  # of the card that a plan may fill: the rest is the desktop's, and room for fragments
    graphs: int  # CUDA graphs that are kept; each holds buffers of one shape


def _row(name: str, gigabytes: float, share: float, graphs: int) -> Profile:
    return Profile(name=name, card=round(gigabytes * GB), share=share, graphs=graphs)


PROFILES = (
    #    name     GB     share  graphs
    _row("cpu",     0.0, 0.000, 0),
    _row("4GB",     4.0, 0.875, 0),
    _row("6GB",     6.0, 0.875, 0),
    _row("8GB",     8.0, 0.875, 1),
    _row("12GB",   12.0, 0.875, 2),
    _row("16GB",   16.0, 0.875, 2),
    _row("24GB",   24.0, 0.900, 4),
    _row("80GB",   80.0, 0.950, 8),
    _row("141GB", 141.0, 0.950, 8),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class MachineMemory:
    """What there is at the moment. Bytes."""

    device: str  # "cuda", "mps" or "cpu": where the transformer is to run
    card: int = 0  # memory of the GPU; with mps it is the machine's
    card_free: int = 0  # of it, before this process has touched the GPU
    host_free: int  # of the machine, what the system would give without swapping
    graphs: bool = True  # CUDA graphs may be made
    streams: bool = True  # blocks may be streamed to the GPU


@dataclass(frozen=True, kw_only=True)
class PeakBytes:
    """Predicted bytes at the fullest moment of each phase: on a GPU of its memory, the context included; on a CPU of
    the process's resident set."""

    encode: int
    denoise: int
    decode: int

    @property
    def most(self) -> int:
        return max(self.encode, self.denoise, self.decode)

    def at(self, phase: Phase) -> int:
        """The prediction that a phase belongs to."""
        if phase is Phase.decode:
            return self.decode
        return self.encode if phase in (Phase.rewrite, Phase.load_encoder, Phase.encode) else self.denoise


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """Where everything lies in one run."""

    profile: str  # the class of the card, or "cpu"
    device: str  # "cuda", "mps" or "cpu"
    place: Place
    reader: EncoderPlace
    decode: DecodePlan  # how the VAE runs
    strips: int  # in how many of them its largest stage does
    graphs: int  # CUDA graphs kept; 0: none are made
    held: str  # format of the blocks' weights, such as "bf16"
    blocks: int  # their bytes
    peak: PeakBytes
    host: int  # bytes of host memory that cannot be read again from a file
    host_free: int  # bytes of host memory there are
    budget: int  # bytes of the GPU that the plan may fill; 0 without one
    cap: int | None = None  # bytes the process may take of the GPU at all (--vram); None: what is there

    @property
    def streamed(self) -> bool:
        return self.device == "cuda" and self.place is not Place.resident

    @property
    def fits(self) -> bool:
        return self.host <= self.host_free and (self.device == "cpu" or self.peak.most <= self.budget)

    def taken(self, phase: Phase, *, on_host: bool) -> int:
        """Bytes of the memory that a phase can run out of: the device's, or the host's beside a GPU."""
        return self.host if on_host and self.device != "cpu" else self.peak.at(phase)

    @property
    def tight(self) -> bool:
        """Whether the phases would not all fit side by side: then each gives back what it freed, which torch's
        allocator would keep. Elsewhere giving back only costs time."""
        together = self.peak.encode + self.peak.denoise + self.peak.decode
        return self.device != "cpu" and together > self.budget

    def line(self) -> str:
        """The plan for a person, in one line."""
        size = human_bytes(self.blocks)
        where = {
            Place.resident: f"resident {self.held} {size}",
            Place.pinned: f"{self.held} {size} streamed from pinned memory, {SLOTS} blocks on the card",
            Place.mapped: f"{self.held} {size} streamed from its file, {SLOTS} blocks on the card",
        }[self.place]
        if self.device == "cpu":
            where = f"{self.held} {size} {'in its mapped file' if self.place is Place.mapped else 'in memory'}"
        reader = {
            EncoderPlace.gpu: "encoder a layer at a time on the GPU",
            EncoderPlace.cpu: "encoder a layer at a time on the CPU",
            EncoderPlace.llama: "encoder llama.cpp on the CPU",
        }[self.reader]
        parts = [self.profile, f"transformer {where}", reader]
        again = f" at {self.decode.work:.2f} times the work" if self.decode.recomputes else ""
        parts.append(f"VAE {'whole' if self.strips == 1 else f'in {self.strips} strips'}{again}")
        parts += ["CUDA graphs"] if self.graphs else []
        return " · ".join([*parts, f"peak about {human_bytes(self.peak.most)}"])

    def data(self) -> dict[str, Any]:
        plain = {key: value for key, value in asdict(self).items() if key != "decode"}
        decode = {"peak_bytes": self.decode.peak_bytes, "work": round(self.decode.work, 3)}
        return {**plain, "decode": decode, "line": self.line(), "peak_bytes": self.peak.most, "fits": self.fits}

    def pixels(self) -> dict[str, str | int]:
        """The part that may change a picture's last bits: for its record. Streaming never does."""
        return {"encoder_on": "gpu" if self.reader is EncoderPlace.gpu else "cpu", "vae_strips": self.strips}


@dataclass(frozen=True, kw_only=True)
class ModelBytes:
    """What is known about the weights of a run before they are read."""

    job: Job
    held: str  # see `MemoryPlan.held`
    mapped: bool  # the blocks' weights are used as they lie in their file: no memory of their own
    llama: bool = False  # the request asks for llama.cpp's features


def make_plan(
    model: ModelBytes, machine: MachineMemory, *, profile: str | None = None, vram: int | None = None
) -> MemoryPlan:
    """The fastest placement that fits what is free; or a card of the class `profile`, or `vram` bytes of this one.

    A profile is a person's word: its leanest placement is taken even if it does not fit. Raises OutOfMemoryError with
    the numbers where nothing fits, UsageError for a profile or an amount that cannot be met on this machine.
    """
    row, budget = _budget(machine, profile, vram)
    rungs = list(_rungs(model, machine, row, budget, cap=vram))
    found = next((plan for plan in rungs if plan.fits), None)
    if found is not None:
        return found
    leanest = min(rungs, key=lambda plan: (plan.peak.most, plan.host))
    if profile is not None:
        return leanest
    raise too_small(model.job, leanest)


def step_down(
    model: ModelBytes, machine: MachineMemory, plan: MemoryPlan, phase: Phase, *, on_host: bool = False
) -> MemoryPlan | None:
    """The next leaner placement after memory ran out in `phase`; None: there is none.

    Leaner by a step worth a second try, where it failed: LEANER bytes or an eighth. `on_host`: it was the host that
    had no more, such as memory to pin. What is saved on the GPU must have room on the host.
    """
    row = find_profile(plan.profile)
    rungs = list(_rungs(model, machine, row, plan.budget, cap=plan.cap))
    after = next(index for index, rung in enumerate(rungs) if rung == plan) + 1

    taken = plan.taken(phase, on_host=on_host)
    most = max(taken - LEANER, taken * 7 // 8)
    room = max(plan.host, plan.host_free)
    leaner = (rung for rung in rungs[after:] if rung.taken(phase, on_host=on_host) <= most)
    return next((rung for rung in leaner if rung.host <= room), None)


def too_small(job: Job, leanest: MemoryPlan) -> OutOfMemoryError:
    """The error with its numbers: what the leanest placement needs, what there is, and what would help."""
    on_gpu = leanest.device != "cpu" and leanest.peak.most > leanest.budget
    needs, free = (leanest.peak.most, leanest.budget) if on_gpu else (leanest.host, leanest.host_free)
    hint = "make a smaller picture, or close other programs"
    if on_gpu:
        hint += ", or --device cpu"
    elif leanest.place is not Place.mapped:
        hint += "; weights stored in the --dtype that they are used in are read from their file and need less"
    return OutOfMemoryError(
        f"{job.width}x{job.height} needs about {human_bytes(needs)} of memory{' on the GPU' if on_gpu else ''} even in "
        f"the leanest plan; {human_bytes(free)} can be had",
        hint=hint,
    )


def _budget(machine: MachineMemory, profile: str | None, vram: int | None) -> tuple[Profile, int]:
    """(the class, bytes that a plan may fill). Raises UsageError."""
    if profile is not None and vram is not None:
        raise UsageError("--profile and --vram exclude each other", hint="--vram picks the profile by itself")
    if machine.device == "cpu":
        if vram is not None:
            raise UsageError(
                "--vram is about a GPU, and this run is on the CPU",
                hint="drop it; --dry-run shows the plan for a card that is not here",
            )
        row = find_profile(profile or "cpu")
        if row.card:
            raise UsageError(
                f"--profile {row.name} is about a GPU, and this run is on the CPU",
                hint="--profile cpu plans for none; --dry-run shows the plan for a card that is not here",
            )
        return row, 0
    if vram is not None and vram > machine.card:
        raise UsageError(
            f"--vram {human_bytes(vram)} is more than the card has: {human_bytes(machine.card)}", hint="drop it"
        )
    if profile is not None:
        row = find_profile(profile)
        return row, round(row.card * row.share)
    card = vram or machine.card
    row = max((row for row in PROFILES if row.card <= max(card, PROFILES[1].card)), key=lambda row: row.card)
    if vram is not None:
        return row, round(vram * row.share)
    # What others hold is already gone from what is free, so less need be left.
    return row, round(machine.card_free * 0.95)


def _rungs(
    model: ModelBytes, machine: MachineMemory, row: Profile, budget: int, *, cap: int | None
) -> Iterator[MemoryPlan]:
    """The ladder, fastest first."""
    job, held = model.job, model.held
    w = footprint.weights(job)

    decodings = footprint.decodings(job, machine.device)

    def plan(place: Place, decode: DecodePlan, *, reader: EncoderPlace, graphs: int = 0) -> MemoryPlan:
        return MemoryPlan(
            profile=row.name,
            device=machine.device,
            place=place,
            reader=reader,
            decode=decode,
            strips=footprint.strips(job, decode),
            graphs=graphs,
            held=held,
            blocks=w.blocks,
            peak=_peak(job, machine, place, decode, reader, graphs),
            host=_host(model, machine, place, decode, reader),
            host_free=machine.host_free,
            budget=budget,
            cap=cap,
        )

    on_host = EncoderPlace.llama if model.llama else EncoderPlace.cpu
    if machine.device == "cpu":
        place = Place.mapped if model.mapped else Place.resident
        yield from (plan(place, decode, reader=on_host) for decode in decodings)
        return
    reader = EncoderPlace.llama if model.llama else EncoderPlace.gpu
    if row.graphs and machine.graphs and machine.device == "cuda":
        yield plan(Place.resident, decodings[0], reader=reader, graphs=row.graphs)
    yield from (plan(Place.resident, decode, reader=reader) for decode in decodings)
    if machine.device != "cuda" or not machine.streams:
        return
    streamed = [Place.pinned, *([Place.mapped] if model.mapped else [])]
    for place in streamed:
        yield from (plan(place, decode, reader=reader) for decode in decodings)
    yield plan(streamed[-1], decodings[-1], reader=on_host)


def _peak(
    job: Job, machine: MachineMemory, place: Place, decode: DecodePlan, reader: EncoderPlace, graphs: int
) -> PeakBytes:
    """What each phase takes of the device at most; see `PeakBytes`."""
    w = footprint.weights(job)
    encoding = footprint.encoding(job.params.text, job.params.text.template.max_tokens, job.itemsize)
    denoising, decoding = footprint.denoising(job, machine.device), decode.peak_bytes
    if machine.device == "cpu":
        held = w.transformer + w.vae
        return PeakBytes(
            encode=job.process + encoding,
            denoise=job.process + held + denoising,
            decode=job.process + held + decoding,
        )
    base = (footprint.CUDA_CONTEXT + footprint.CUDA_LIBRARIES) if machine.device == "cuda" else 0
    encode = base + (encoding if reader is EncoderPlace.gpu else 0)
    if place is Place.resident:
        # A graph's tensors live in a pool of their own, beside those of the first pass that ran without it.
        fixed, pool = base + w.transformer + w.vae, denoising if graphs else 0
        return PeakBytes(encode=encode, denoise=fixed + pool + denoising, decode=fixed + pool + decoding)
    lying = base + w.outer + w.folded
    return PeakBytes(encode=encode, denoise=lying + SLOTS * w.block + denoising, decode=lying + w.vae + decoding)


def _host(model: ModelBytes, machine: MachineMemory, place: Place, decode: DecodePlan, reader: EncoderPlace) -> int:
    """Bytes of host memory that no file backs. Pages of mapped files come and go, so they are not counted."""
    job = model.job
    w = footprint.weights(job)
    encoding = footprint.encoding(job.params.text, job.params.text.template.max_tokens, job.itemsize)
    encoding = encoding if reader is not EncoderPlace.gpu else 0
    if machine.device == "cpu":
        own = w.folded + (0 if model.mapped else w.outer + w.blocks) + w.vae
        return job.process + max(encoding, own + max(footprint.denoising(job, machine.device), decode.peak_bytes))
    if place is Place.pinned:
        return job.process + max(encoding, job.params.dit.num_layers * pinned_bytes(w.block) + w.vae)
    return job.process + max(encoding, w.vae)


def pinned_bytes(size: int) -> int:
    """torch's allocator of page-locked memory rounds every block up to a power of two."""
    return 1 << max(size - 1, 1).bit_length()


def find_profile(name: str) -> Profile:
    """By name, in any case, with or without the blank. Raises UsageError listing the known ones."""
    wanted = name.replace(" ", "").lower()
    for row in PROFILES:
        if row.name.lower() == wanted:
            return row
    raise UsageError(f"unknown profile {name!r}", hint="known: " + ", ".join(row.name for row in PROFILES))


def parse_bytes(text: str, flag: str = "--vram") -> int:
    """ "8GB", "7.5 gb", "6GiB", "900MB" -> bytes. Raises UsageError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", text.strip().lower())
    if not found or not found.group(2):
        raise UsageError(f"{flag} {text!r} is no amount of memory", hint="write 8GB, 7.5GB or 8GiB")
    unit = (1024 if found.group(3) else 1000) ** ("kmgt".index(found.group(2)) + 1)
    size = float(found.group(1)) * unit
    if not 0 < size < 10**15:
        raise UsageError(f"{flag} {text!r} is no amount of memory", hint="write 8GB, 7.5GB or 8GiB")
    return round(size)
