"""The configurations of training: frozen dataclasses, nested, in which every choice the paper leaves open is a field.

`Noise`, `Optim`, `Machine` and `Saving` are shared by all stages; `PretrainConfig` is pre-training's own. What only
Lens-Nano's drawn scenes need sits in `SceneData`.

Light ring: standard library only. `train.recipes` fills them in, `train.overrides` changes single fields
(`--set optim.clip=1`).
"""

from __future__ import annotations

import re
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, Literal

from backend.errors import UsageError
from backend.params import DiTParams, TemplateParams

DEVICES = r"auto|(cpu|cuda|mps|xpu)(:\d+)?"  # what `device` may be; whether it is there only torch knows


def within(config: Any, low: float, high: float | None, *names: str, below: bool = False) -> None:
    """Raises UsageError for a field (or a number of a tuple) outside of low to high; `below`: high is outside too."""
    for name in names:
        value = getattr(config, name)
        for number in value if isinstance(value, tuple) else (value,):
            fits = number is None or (
                number >= low and (high is None or number < high or (number == high and not below))
            )
            if not fits:  # what is no number at all too
                upper = "" if high is None else f" to {'below ' if below else ''}{high:g}"
                raise UsageError(f"{name}={number:g}: " + (f"from {low:g}{upper}" if upper else f"at least {low:g}"))


# Shared by all stages ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Noise:
    """What is done to a picture and its caption before the network sees them."""

    dropout: float = 0.1  # probability of *no text tokens* (the paper does not say; the field's usual value)
    time_std: float = 1.0  # of the logit of t (the paper does not say); its mean is the paper's mu(n) of the bucket

    def __post_init__(self) -> None:
        within(self, 0, 1, "dropout")
        within(self, 0, 1e9, "time_std")


@dataclass(frozen=True, kw_only=True)
class Optim:
    """AdamW, and the average of the weights."""

    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.01  # (the paper does not say)
    warmup: int = 200  # steps in which the rate rises, at the start of the run; 0: none
    clip: float = 1.0  # gradient norm
    ema_decay: float | None = None  # of the average that is validated, shown and written; None: no average

    def __post_init__(self) -> None:
        within(self, 0, 1, "betas", "ema_decay", below=True)
        within(self, 0, 1e9, "weight_decay")
        within(self, 0, None, "warmup")
        within(self, 1e-9, 1e9, "clip")


@dataclass(frozen=True, kw_only=True)
class MuonOptim(Optim):
    """Muon for the blocks' matrices, AdamW for the rest."""

    muon: bool = True  # False: AdamW for all, as in the paper
    muon_every: int = 1  # steps: a matrix moves once in so many, in turn with the others, and so much further

    def __post_init__(self) -> None:
        super().__post_init__()
        within(self, 1, None, "muon_every")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where and how a network is trained. What is learned stays the same but for rounding."""

    device: str = "cpu"  # auto: cuda, else mps, else cpu
    compute: Literal["bfloat16", "float32"] = "bfloat16"  # of the products; what is learned is always float32
    micro_batch: int | None = None  # pictures of one pass, to save memory; None: a rank's whole group at once
    # none; full: keep only the blocks' inputs; selective: also keep attention and every second matrix product
    checkpointing: Literal["none", "full", "selective"] = "none"
    compile: bool = True  # every block; minutes at the start
    prefetch: int = 0  # steps encoded ahead by a thread; 0: in turn with the training, best on a CPU

    def __post_init__(self) -> None:
        within(self, 1, None, "micro_batch")
        within(self, 0, None, "prefetch")
        if not re.fullmatch(DEVICES, self.device):
            raise UsageError(f"device={self.device}: no such device", hint="auto, cpu, cuda, or cuda:0")


@dataclass(frozen=True, kw_only=True)
class Cluster(Machine):
    """Machines that share the weights out, and the processes that feed them."""

    workers: int = 1  # processes that draw or read pictures; 0: none, inline
    replicate: int = 1  # copies of the sharded state (HSDP): ranks / replicate share one copy; 1: one copy in all
    float8: bool = False  # the blocks' matrix products in float8 (torchao; from Hopper on)

    def __post_init__(self) -> None:
        super().__post_init__()
        within(self, 1, None, "replicate")
        within(self, 0, None, "workers")


@dataclass(frozen=True, kw_only=True)
class Saving:
    """What a run writes, and how often."""

    validate_every: int = 1000  # steps
    preview_every: int = 1000  # steps
    save_every: int = 250  # steps
    log_every: int = 50  # steps
    keep: int = 2  # newest checkpoints that are kept
    background: bool = False  # write checkpoints while the training goes on (a copy lies in memory meanwhile)
    wandb: str | None = None  # project of Weights & Biases; None: not used

    def __post_init__(self) -> None:
        within(self, 1, None, "validate_every", "preview_every", "save_every", "log_every", "keep")

    def logs(self, done: int, last: int) -> bool:
        """Whether a line is logged after `done` steps: every so often, and after the last of a run however short."""
        return done % self.log_every == 0 or done == last


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """What a plan (`--dry-run`) is made for. Nothing here changes what is trained."""

    gpus: int = 1
    kind: str = "a100"  # a row of train.run.costs.PEAKS
    mfu: float = 0.14  # share of the GPU's peak; 0.14: what the paper's 192K A100-hours come to (12 to 15 %)
    price: float | None = None  # per GPU and hour, in your currency; None: the plan states hours only

    def __post_init__(self) -> None:
        within(self, 1, None, "gpus")
        within(self, 1e-3, 1, "mfu")
        within(self, 0, 1e9, "price")


@dataclass(frozen=True, kw_only=True)
class Base:
    """One base resolution of a mixed stage."""

    base: int  # pixels: side of the square of equal area
    batch: int  # pictures of one group
    # How often a group is of this base, relative to the others (the paper does not say): of random data and of plans.
    # Packed data say it themselves: an epoch has every picture once.
    weight: float = 1.0

    def __post_init__(self) -> None:
        within(self, 1, None, "base", "batch")
        within(self, 1e-9, 1e9, "weight")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stretch of training. A step sees `groups` groups, each of one bucket: a base and an aspect ratio."""

    base: int  # pixels: side of the square of equal area; of previews too
    steps: int  # optimiser steps of this stage
    batch: int  # pictures of one group
    learning_rate: float  # constant after the warm-up, as in the paper
    groups: int = 1  # a step, whatever the number of processes: they share them out (the paper: one on each of 128)
    mix: tuple[Base, ...] = ()  # bases that groups are drawn from, in place of `base` and `batch`; (): only those
    # Probability of 1:1, while the other eight ratios share the rest: of drawn and random data, and of plans.
    square_share: float = 0.5
    decay_steps: int = 0  # the last steps fall linearly to 0 (0: none, as in the paper)
    # Added to the paper's mean of the logit of t. Above 0: more is learned of what stands where, which is settled under
    # strong noise, and less of how it looks.
    time_offset: float = 0.0

    def __post_init__(self) -> None:
        within(self, 1, None, "base", "batch", "groups")
        within(self, 0, None, "steps", "decay_steps")
        within(self, 0, 1, "learning_rate", "square_share")
        within(self, -10, 10, "time_offset")

    @property
    def bases(self) -> tuple[Base, ...]:
        """What a group may be, whether mixed or not."""
        return self.mix or (Base(base=self.base, batch=self.batch),)

    @property
    def pictures(self) -> float:
        """Pictures a step: exact for one base, the expectation for several."""
        total = sum(base.weight for base in self.bases)
        return self.groups * sum(base.batch * base.weight for base in self.bases) / total


@dataclass(frozen=True)
class At:
    """Where a step stands in the plan."""

    step: int  # of the whole run, from 0
    stage: Stage
    before: int  # step at which the stage began
    place: int  # of the stage among the plan's, from 0


def locate(stages: tuple[Stage, ...], step: int) -> At:
    """The stage of a step. Raises IndexError beyond the last."""
    before = 0
    for place, stage in enumerate(stages):
        if step < before + stage.steps:
            return At(step, stage, before, place)
        before += stage.steps
    raise IndexError(f"step {step} of {before}")


def learning_rate(at: At, warmup: int) -> float:
    """Linear warm-up at the start of the run, constant, linear decay in the last `decay_steps` of the stage."""
    left = at.before + at.stage.steps - at.step
    decay = min(1.0, left / at.stage.decay_steps) if at.stage.decay_steps else 1.0
    rise = min(1.0, (at.step + 1) / warmup) if warmup else 1.0
    return at.stage.learning_rate * rise * decay


# Where pictures come from --------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class FrozenNames:
    """The networks that are not trained: which model's, or which others in their place."""

    encoders: str | None = "nano"  # model whose autoencoder and text encoder are used; None: those in memory, or none
    vae: str | None = None  # folder of another autoencoder; None: that of `encoders`
    text_encoder: str | None = None  # a causal language model of transformers: folder or hub name; None: `encoders`'


@dataclass(frozen=True, kw_only=True)
class PackedData:
    """Pictures that `lens train data` has packed."""

    source: Literal["packed"] = "packed"
    work: Path | None = None  # the work folder; None: it must be named before the run
    held_out: Path | None = None  # another one, whose pictures are never trained on; None: no validation loss
    # Folder in which latents and text features are kept, for data that are seen several times; runs may share it
    # (--dry-run says what it takes). None: encoded anew at every use.
    cache: Path | None = None
    brief_share: float = 0.0  # probability of the brief caption, where there is one (section 2.1)

    def __post_init__(self) -> None:
        within(self, 0, 1, "brief_share")


@dataclass(frozen=True, kw_only=True)
class Align:
    """The loss of `train.world.align`; the paper has none."""

    weight: float = 0.0  # 0: none
    block: int = 4  # 0-based: the block whose image tokens it watches

    def __post_init__(self) -> None:
        within(self, 0, 1e9, "weight")
        within(self, 0, None, "block")


@dataclass(frozen=True, kw_only=True)
class RandomData:
    """Noise of the right shapes, to time a step."""

    source: Literal["random"] = "random"
    align: Align = Align()


@dataclass(frozen=True, kw_only=True)
class Layouts:
    """How often each of `train.world.scenes.LAYOUTS` is drawn, relative to the others.

    What has no room at a base is drawn again, as another.
    """

    single: float = 0.0
    pair: float = 0.0
    inside: float = 0.0
    trio: float = 0.0
    count: float = 0.0
    count_and_one: float = 0.0
    sign: float = 0.0

    def __post_init__(self) -> None:
        within(self, 0, 1e9, *vars(self))
        if not any(self.weights):
            raise UsageError("layouts are all 0: nothing is left to draw", hint="layouts=none: as the scenes come")

    @property
    def weights(self) -> tuple[float, ...]:
        """In the order of LAYOUTS."""
        return astuple(self)


@dataclass(frozen=True, kw_only=True)
class SceneMix:
    """Which scenes a stage draws, and how they are captioned."""

    layouts: Layouts | None = None  # None: as the scenes come
    captions: tuple[float, float, float] = (0.35, 0.45, 0.2)  # shares of dense, partly dense and brief ones
    coloured_share: float = 0.82  # of brief captions: those that name the things' colours
    placed_share: float = 0.8  # of brief captions of two things: those that say how one lies to the other
    # A brief caption of two things, or of several of a kind, leaves how they stand unsaid only where it is the usual
    # (train.world.scene_text.usual).
    orderly: bool = False
    flat_share: float = 0.0  # probability that a scene of another style is flat instead

    def __post_init__(self) -> None:
        within(self, 0, 1, "coloured_share", "placed_share", "flat_share", "captions")
        if not any(self.captions):
            raise UsageError("captions are all 0: nothing is left to draw", hint="captions=0.35,0.45,0.2 is usual")


@dataclass(frozen=True, kw_only=True)
class SceneData:
    """Scenes of Lens-Nano's world, drawn and encoded in rounds."""

    source: Literal["scenes"] = "scenes"
    mixes: tuple[SceneMix, ...] = (SceneMix(),)  # one a stage; the last for all further ones
    per_round: int = 6144  # scenes that are drawn and encoded once …
    passes: int = 6  # … and seen this many times
    encode_batch: int = 64  # pictures
    align: Align = Align()
    # A latent channel's loss counts as much as it shows in the picture, to this power (train.world.sensitivity). 0:
    # every channel the same, as in the paper.
    channel_power: float = 0.0

    def __post_init__(self) -> None:
        within(self, 1, None, "per_round", "passes", "encode_batch")
        within(self, 0, 1e9, "channel_power")
        if not self.mixes:
            raise UsageError("mixes is empty: nothing is left to draw")

    def mix(self, place: int) -> SceneMix:
        """The mix of the stage at `place`."""
        return self.mixes[min(place, len(self.mixes) - 1)]


# Pre-training --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Everything that a pre-training run depends on. Written to the run's folder as config.json."""

    run_dir: Path
    params: DiTParams
    template: TemplateParams
    stages: tuple[Stage, ...]
    seed: int = 0
    start_from: Path | None = None  # a run or a model whose transformer is trained on; None: from nothing
    # sample: every picture of a step counts the same. group: every group does, as under a plain average over ranks
    # (the paper does not say); the same thing where all groups are of one size.
    average: Literal["sample", "group"] = "sample"
    caption_tokens: int = 170  # of random data and of plans: text tokens of a caption (109 words are about 170)

    data: PackedData | SceneData | RandomData
    frozen: FrozenNames = FrozenNames()
    noise: Noise = Noise()
    optim: MuonOptim = MuonOptim(betas=(0.9, 0.99), ema_decay=0.999)
    machine: Cluster = Cluster()
    saving: Saving = Saving()
    hardware: Hardware = Hardware()

    def __post_init__(self) -> None:
        within(self, 1, None, "caption_tokens")
        if self.data.source == "scenes" and any(stage.mix for stage in self.stages):
            raise UsageError("drawn scenes have one base a stage, not a mix", hint="--data WORK, or --random")

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole run."""
        return sum(stage.steps for stage in self.stages)

    @property
    def align(self) -> Align:
        """The loss over what covers each token; of weight 0 where the data do not know it."""
        return Align() if self.data.source == "packed" else self.data.align
