"""The configuration of distillation, and its recipes.

Names that other programs call alpha, lambda, mu and gamma, each several times over, are spelt out: `guidance` is the
scale in CA, `matching_weight` and `critic_weight` are those of the student's loss, `ida` is the share by which the fake
model nears the student, `r1_step` and `r1_weight` belong to the critic.

Light ring: standard library only. `train.overrides` changes single fields; `train.distill.run` runs it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from backend import presets
from backend.errors import UsageError
from backend.params import DiTParams
from backend.presets import Preset
from backend.types import Quant
from train.config import Base, Cluster, Hardware, Optim, PackedData, RandomData, Saving, Stage, within
from train.overrides import set_fields

KIND = "distill"  # of a run, in its config.json


# Captions, and what counts as real -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class DrawnScenes:
    """Scenes of Lens-Nano's world with captions as its pre-training has them."""

    source: Literal["drawn"] = "drawn"
    count: int = 1500  # scenes; every one comes once before any comes twice
    seed: int = 0
    captions: tuple[float, float, float] = (0.05, 0.15, 0.8)  # shares of dense, partly dense and brief ones
    # What the discriminator takes for real: the drawn scene itself, or a picture that the teacher made of its caption.
    real: Literal["data", "teacher"] = "data"

    def __post_init__(self) -> None:
        within(self, 1, None, "count")
        within(self, 0, 1, "captions")


@dataclass(frozen=True, kw_only=True)
class CaptionFile:
    """Prompts of a JSONL file (`lens train rl prompts write`) whose real pictures the teacher makes: no data needed."""

    source: Literal["captions"] = "captions"
    path: Path | None = None  # None: it must be named before the run


@dataclass(frozen=True, kw_only=True)
class TeacherMade:
    """How the teacher draws pictures that count as real."""

    steps: int = 20
    guidance: float | None = None  # None: the model's own


# The student's loss and its two companions ---------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class StudentLoss:
    """matching_weight (L_DM + L_CA) + critic_weight L_G, and the way on which the student is met."""

    guidance: float = 5.0  # in CA (the paper); the plain difference, without inference's rescaling
    matching_weight: float = 0.1  # lambda_d (the paper)
    critic_weight: float = 0.001  # lambda_g (the paper)
    # N of the proxy loss, a row of `train.losses.dmd.NORMALISERS` (the paper does not say). The mean over elements in
    # that loss is what the two weights above are meant for.
    normaliser: Literal["clamped", "plain", "none"] = "clamped"
    # Between the steps of the student's own way: False, inference's Euler steps; True, fresh noise as in DMD2 (the
    # paper does not say; Turbo is served with Euler steps).
    renoise: bool = False

    def __post_init__(self) -> None:
        within(self, 1, 100, "guidance")
        within(self, 0, 1e6, "matching_weight", "critic_weight")


@dataclass(frozen=True, kw_only=True)
class FakeModel:
    """The model of what the student draws now."""

    updates: int = 4  # of it and the discriminator, before each of the student (the paper)
    learning_rate: float = 5e-7  # (the paper)
    ida: float = 0.03  # after each student update: fake <- (1 - ida) fake + ida student (the paper)
    # Global steps at the start of matching in which the student waits (the paper: none). A discriminator that knows
    # nothing yet, and a fake model that has seen nothing of the student, say nothing to it.
    head_start: int = 0

    def __post_init__(self) -> None:
        within(self, 1, None, "updates")
        within(self, 0, None, "head_start")
        within(self, 0, 1, "ida", "learning_rate")


@dataclass(frozen=True, kw_only=True)
class Critic:
    """The discriminator: small heads on features of the frozen teacher."""

    taps: tuple[int, ...] = ()  # 0-based blocks that are read (the paper does not say); (): the middle one, as FastGen
    learning_rate: float = 1e-4  # (the paper)
    r1_weight: float = 1.0  # gamma (the paper)
    r1_step: float = 0.1  # alpha (the paper): how far the noised real picture is moved

    def __post_init__(self) -> None:
        within(self, 0, None, "taps")
        within(self, 0, 1e6, "r1_weight", "r1_step")
        within(self, 0, 1, "learning_rate")

    def taps_of(self, params: DiTParams) -> tuple[int, ...]:
        """Rising. Raises UsageError for a block that is not there."""
        taps = tuple(sorted(set(self.taps))) or (params.num_layers // 2,)
        if taps[-1] >= params.num_layers:
            raise UsageError(f"critic.taps={taps[-1]}: there are {params.num_layers} blocks, counted from 0")
        return taps


@dataclass(frozen=True, kw_only=True)
class Warm:
    """Guidance distillation before the matching: the student learns the guided velocity of its teacher's own way.

    Not of the paper. A step walks the grid with the guided teacher and regresses the student on all of its velocities.
    """

    steps: int = 0  # 0: none
    learning_rate: float = 1e-5
    guidance: float | None = None  # as it is served, with inference's rescaling; None: the model's own
    decay: float = 0.3  # share of the steps, at the end, in which the rate falls linearly to 0
    betas: tuple[float, float] = (0.9, 0.99)

    def __post_init__(self) -> None:
        within(self, 0, None, "steps")
        within(self, 0, 1, "learning_rate", "decay")
        within(self, 0, 1, "betas", below=True)


# What is looked at ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Collapse:
    """When a run stops by itself, each limit against the teacher's own pictures of the same prompts and noise.

    Public runs collapse within 400 to 1,000 student steps: dark, grey or over-saturated pictures.
    """

    stop: bool = True  # False: it is only said
    spread: tuple[float, float] = (0.6, 1.6)  # of the standard deviation of x0: grey below, over-saturated above
    shift: float = 0.6  # of the mean of x0's channels, in standard deviations of the teacher's: dark, bright, tinted
    saturation: float = 0.02  # share of elements beyond what 99.9 % of the teacher's stay within
    norm: tuple[float, float] = (0.6, 1.6)  # of the length of x0
    diversity: float = 0.3  # least distance of two pictures of a prompt
    fake_loss: float = 2.0  # of the fake model on fresh pictures of the student, over the teacher's on the same

    def __post_init__(self) -> None:
        within(self, 0, 1e9, "spread", "norm", "shift", "saturation", "diversity", "fake_loss")


@dataclass(frozen=True, kw_only=True)
class Watch:
    """What is drawn of held-out prompts every `saving.validate_every` steps: monitors, and the score that decides which
    weights were the best."""

    prompts: int = 12
    seeds: int = 2  # pictures of each; from two on their distance is known
    preview: int = 4  # rows of the sheet
    level: float = 0.7  # noise level at which real and fake predictions are shown

    def __post_init__(self) -> None:
        within(self, 1, None, "prompts", "seeds")
        within(self, 0, None, "preview")
        within(self, 0.01, 0.99, "level")


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """Everything that a run depends on. Written to the run's folder as config.json."""

    run_dir: Path
    model: str = "lens"  # a name of the registry or a path: what is distilled (the paper: after RL)
    start_from: str | None = None  # a LoRA that belongs to the model, as that of `lens train rl`; None: none
    teacher: str | None = None  # another model of the same shape (only form=full); None: the model itself
    grid_steps: int = 4  # that the student is made for and served with (the paper)
    steps: int = 1000  # global ones after the warm stage: `fake.updates` updates, then one of the student (the paper)
    learning_rate: float = 5e-7  # of the student (the paper)
    seed: int = 0

    # full: student, fake and teacher are three networks (the paper). adapters: three views of one frozen backbone.
    form: Literal["full", "adapters"] = "full"
    rank: int = 64  # of the adapters, as the next three
    alpha: float = 128.0
    targets: tuple[str, ...] = ("attn", "mlp")
    quant: Quant = Quant.none  # of the frozen linears
    export_rank: int | None = None  # of the adapter that is written, by singular values; None: as trained
    export_dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"

    # What a global step sees: each update has `groups` groups of `batch` pictures of one shape.
    batch: int = 4  # (the paper: 4 on each of 8 GPUs)
    groups: int = 8
    base: int | None = None  # pixels: side of the square of equal area; None: the model's own
    mix: tuple[Base, ...] = ()  # bases that groups are drawn from, in place of `base` and `batch`
    data: PackedData | DrawnScenes | CaptionFile | RandomData = field(default_factory=PackedData)
    made: TeacherMade = TeacherMade()
    cache: Path | None = None  # text features and teacher-made pictures; None: RUN/cache

    student: StudentLoss = StudentLoss()
    fake: FakeModel = FakeModel()
    critic: Critic = Critic()
    warm: Warm = Warm()
    watch: Watch = Watch()
    collapse: Collapse = Collapse()
    # Of all three. The paper: beta1 0, beta2 0.9; it says nothing of decay, warm-up, clip (SenseFlow: 1) and average.
    optim: Optim = field(default_factory=lambda: Optim(betas=(0.0, 0.9), weight_decay=0.0, warmup=0))
    machine: Cluster = field(default_factory=lambda: Cluster(device="auto", compile=False))
    saving: Saving = field(
        default_factory=lambda: Saving(validate_every=50, preview_every=100, save_every=50, log_every=1)
    )
    hardware: Hardware = field(default_factory=Hardware)

    def __post_init__(self) -> None:
        within(self, 1, None, "grid_steps", "rank", "export_rank", "batch", "groups")
        within(self, 0, None, "steps")
        if not 0 < self.learning_rate < math.inf or not 0 < self.alpha < math.inf:
            raise UsageError("learning_rate and alpha must be numbers above 0")
        if self.steps + self.warm.steps < 1:
            raise UsageError("there are no steps to train", hint="--set steps=…")
        if self.form == "adapters" and self.teacher is not None:
            raise UsageError(
                "adapters are views of one backbone, which is the teacher too",
                hint="teacher=none; what the model learned as a LoRA is start_from",
            )
        if self.form == "full" and self.quant is not Quant.none:
            raise UsageError(f"form=full trains the weights themselves, which quant={self.quant} freezes")
        if self.machine.float8:
            raise UsageError("distillation has no float8", hint="machine.float8=false")
        if self.mix and self.data.source in ("drawn", "captions"):
            raise UsageError(f"data.source={self.data.source} has one base, not a mix", hint="--set base=…")

    @property
    def cache_dir(self) -> Path:
        return self.run_dir / "cache" if self.cache is None else self.cache

    @property
    def all_steps(self) -> int:
        """Those of the warm stage, then the global ones."""
        return self.warm.steps + self.steps

    def stage_of(self, preset: Preset) -> Stage:
        """What an update sees, as packed pictures and plans have it."""
        base = self.base or preset.default_base
        updates = self.warm.steps + self.steps * (self.fake.updates + 1)
        return Stage(
            base=base, steps=updates, batch=self.batch, groups=self.groups, mix=self.mix,
            learning_rate=min(1.0, self.learning_rate),
        )  # fmt: skip


# Recipes -------------------------------------------------------------------------------------------------------------


def paper(run_dir: Path) -> DistillConfig:
    """Values of the paper: all weights, 8 x 80 GB, four pictures of 1024 x 1024 a GPU, sizes mixed as in the data."""
    mix = (Base(base=512, batch=4), Base(base=768, batch=4), Base(base=1024, batch=4))
    return DistillConfig(
        run_dir=run_dir,
        mix=mix,
        machine=Cluster(device="auto", compile=False, checkpointing="full", workers=4),
        hardware=Hardware(gpus=8, kind="a100"),
    )


def one_gpu(run_dir: Path) -> DistillConfig:
    """One card of 80 GB: adapters of rank 64 on one frozen backbone, 1024 x 1024, prompts of a file.

    Adapters take a higher rate than whole weights; the fake model a higher one still, for a fake model that lags is
    what public runs died of.
    """
    return DistillConfig(
        run_dir=run_dir,
        form="adapters",
        batch=4,
        groups=2,
        learning_rate=2e-5,
        data=CaptionFile(),
        fake=FakeModel(learning_rate=1e-4, head_start=10),
        machine=Cluster(device="auto", compile=False, checkpointing="full", micro_batch=4),
        hardware=Hardware(kind="a100"),
    )


def one_gpu_24gb(run_dir: Path) -> DistillConfig:
    """One card of 24 GB: as one-gpu with the backbone in NF4 and one picture of 1024 x 1024 a pass."""
    config = one_gpu(run_dir)
    machine, hardware = replace(config.machine, micro_batch=1), Hardware(kind="rtx-4090")
    return replace(config, quant=Quant.nf4, machine=machine, hardware=hardware)


def nano(run_dir: Path) -> DistillConfig:
    """Lens-Nano on one core of a processor: adapters of rank 8, 200 warm steps, 150 global ones.

    Of 300 global ones the best was seen after 100 to 150: 0.86 of the held-out prompts right, 0.83 at the end, and two
    pictures of a prompt 0.94 and 0.85 as far apart as the teacher's.
    """
    return DistillConfig(
        run_dir=run_dir,
        model="nano",
        form="adapters",
        rank=8,
        alpha=16.0,
        export_dtype="float16",
        steps=150,
        learning_rate=1e-4,
        batch=8,
        groups=1,
        data=DrawnScenes(),
        student=StudentLoss(guidance=3.0),
        fake=FakeModel(learning_rate=5e-4, head_start=10),
        warm=Warm(steps=200, learning_rate=1e-3),
        watch=Watch(prompts=40, seeds=2),
        machine=Cluster(device="cpu", compile=False, workers=0),
        saving=Saving(validate_every=50, preview_every=50, save_every=10, log_every=1),
    )


def nano_smoke(run_dir: Path) -> DistillConfig:
    """Four tiny steps of Lens-Nano, to see that all of it works: a minute."""
    config = nano(run_dir)
    return replace(
        config,
        base=128,
        batch=2,
        steps=2,
        warm=replace(config.warm, steps=2),
        fake=replace(config.fake, updates=2, head_start=0),
        data=DrawnScenes(count=12),
        watch=Watch(prompts=2, seeds=2, preview=2),
        saving=Saving(validate_every=2, preview_every=4, save_every=2, log_every=1),
    )


RECIPES: Mapping[str, Callable[[Path], DistillConfig]] = MappingProxyType(
    {"paper": paper, "one-gpu": one_gpu, "one-gpu-24gb": one_gpu_24gb, "nano": nano, "nano-smoke": nano_smoke}
)


def choose(
    recipe: str, run_dir: Path | None, settings: list[str], *, data: Path | None = None, random: bool = False
) -> DistillConfig:
    """The config that a command line asks for. `data`: packed pictures. `random`: noise in place of data, to time a
    step. Raises UsageError."""
    if recipe not in RECIPES:
        raise UsageError(f"unknown recipe {recipe!r}", hint=f"known recipes: {', '.join(RECIPES)}")
    if data is not None and random:
        raise UsageError("--data and --random exclude each other")
    config = RECIPES[recipe](run_dir if run_dir is not None else Path("runs") / f"distill-{recipe}")
    if data is not None:
        config = replace(config, data=PackedData(work=data))
    if random:
        config = replace(config, data=RandomData())
    config = set_fields(config, settings)
    for name in (config.teacher or config.model,):
        if name in presets.names():
            refuse_distilled(presets.get(name))
    return config


def refuse_distilled(preset: Preset) -> None:
    """Raises UsageError for a teacher that was distilled for few steps."""
    if preset.distilled:
        raise UsageError(
            f"{preset.name} is distilled for {preset.steps} steps without guidance; a teacher has to know guidance, "
            "which CA distils",
            hint="the model it was distilled from: --set model=lens",
        )
