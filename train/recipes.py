"""Recipes: functions that return a complete config. `train.overrides.set_fields` applies `key=value` texts to one.

Light ring: standard library only, so that `lens train … --dry-run` answers at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

from backend.errors import UsageError
from backend.params import DiTParams, ModelParams
from backend.presets import NANO
from train.config import (
    Align,
    Base,
    Cluster,
    FrozenNames,
    Hardware,
    Layouts,
    MuonOptim,
    PackedData,
    PretrainConfig,
    RandomData,
    Saving,
    SceneData,
    SceneMix,
    Stage,
    within,
)
from train.overrides import set_fields

__all__ = [
    "NANO_RECIPES",
    "PARTS",
    "PRETRAIN_RECIPES",
    "NanoConfig",
    "check_parts",
    "nano_config",
    "pretrain_config",
    "set_fields",
]

PARTS = ("vae", "language", "transformer", "export")  # of Lens-Nano's training, in their order


@dataclass(frozen=True, kw_only=True)
class VAEPart:
    """The training of Lens-Nano's autoencoder: on small crops, then on whole pictures."""

    steps: int = 6400
    batch: int = 16  # crops of 64x64
    learning_rate: float = 1e-3  # of the crops; two fifths of it for whole pictures
    # Then whole pictures: group norms see other statistics in a small crop, and flat colours shift.
    whole_steps: int = 680
    whole_batch: int = 8  # crops of 128x128

    def __post_init__(self) -> None:
        within(self, 1, None, "batch", "whole_batch")
        within(self, 0, None, "steps", "whole_steps")
        within(self, 1e-9, 1, "learning_rate")


@dataclass(frozen=True, kw_only=True)
class LanguagePart:
    """The training of Lens-Nano's language model."""

    steps: int = 4600
    tokens: int = 4096  # a step, padding included
    learning_rate: float = 2e-3

    def __post_init__(self) -> None:
        within(self, 1, None, "tokens")
        within(self, 0, None, "steps")
        within(self, 1e-9, 1, "learning_rate")


@dataclass(frozen=True, kw_only=True)
class NanoConfig:
    """Every number of Lens-Nano's recipe. From `stages` on the transformer's, as pre-training has them."""

    run_dir: Path
    params: ModelParams = NANO
    start_from: Path | None = None  # a finished model (folder) whose transformer is trained on; None: from nothing
    seed: int = 0
    vae: VAEPart = field(default_factory=VAEPart)
    language: LanguagePart = field(default_factory=LanguagePart)
    stages: tuple[Stage, ...]
    data: SceneData
    optim: MuonOptim
    machine: Cluster = field(default_factory=Cluster)  # of all parts; the autoencoder is never compiled
    saving: Saving = field(default_factory=Saving)

    def __post_init__(self) -> None:
        transformer_of(self)  # hours later it would refuse what it refuses now


def check_parts(parts: Sequence[str]) -> None:
    """Raises UsageError for a part of Lens-Nano's training that does not exist."""
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        raise UsageError(f"unknown part {unknown[0]!r}", hint=f"parts: {', '.join(PARTS)}")


def nano(run_dir: Path) -> NanoConfig:
    """Lens-Nano as it would be trained now: in one run what its weights have by many. Nobody has run it whole."""
    # First what a thing is and which colour it has: mostly one thing, short captions, a third more steps an hour.
    things = SceneMix(
        # 8 cells have no room for trio and inside
        layouts=Layouts(single=0.52, pair=0.24, count=0.12, count_and_one=0.04, sign=0.08),
        captions=(0.15, 0.35, 0.5),
        flat_share=0.7,
    )
    # Then shapes, pairs, counts and letters.
    shapes = SceneMix(
        layouts=Layouts(single=0.20, pair=0.22, inside=0.03, trio=0.02, count=0.15, count_and_one=0.01, sign=0.37),
        captions=(0.2, 0.25, 0.55),  # with 0.08 of dense ones a rewritten request is drawn worse than a brief one
        # People often name neither colour nor place: asked so, a model that has seldom seen it mixes several.
        coloured_share=0.45,
        placed_share=0.35,
        orderly=True,
        flat_share=0.92,
    )
    # Once words are read: more single things, and the paper's times again but for a little.
    single = Layouts(single=0.30, pair=0.22, inside=0.02, trio=0.02, count=0.15, count_and_one=0.01, sign=0.28)
    # Letters show by themselves below t = 0.85: only above is it learned which letter was asked for.
    words = Stage(base=256, steps=20_000, batch=16, learning_rate=5e-4, square_share=0.7, time_offset=1.0)
    return NanoConfig(
        run_dir=run_dir,
        # 128 stands for 512, 256 for 1024. Early: a token covers 16 x 16 pixels, so at 128 a thing is four tokens wide
        # and learns its colour and place, but no shape (seen after 320,000 pictures).
        stages=(
            Stage(base=128, steps=6_854, batch=48, learning_rate=1e-3),
            words,
            replace(words, decay_steps=6_000, time_offset=0.2),
        ),
        data=SceneData(
            mixes=(things, shapes, replace(shapes, layouts=single)),
            align=Align(weight=0.3),
            channel_power=0.75,  # of a channel's part in the picture, as its weight in the loss
        ),
        optim=MuonOptim(betas=(0.9, 0.99), ema_decay=0.999, muon_every=3),  # a step takes 15 % less time
    )


def nano_smoke(run_dir: Path) -> NanoConfig:
    """Proves that every part runs: about a minute on two cores; its pictures are noise."""
    whole = nano(run_dir)
    return replace(
        whole,
        vae=VAEPart(steps=6, batch=4, whole_steps=2, whole_batch=2),
        language=LanguagePart(steps=4, tokens=1024),
        stages=(Stage(base=128, steps=6, batch=4, learning_rate=1e-3, square_share=1.0),),
        data=replace(whole.data, mixes=(SceneMix(),), per_round=16, encode_batch=8),
        machine=Cluster(workers=0, compile=False),
        saving=Saving(log_every=1),
    )


NANO_RECIPES = {"nano": nano, "nano-smoke": nano_smoke}


def nano_config(recipe: str, run_dir: Path) -> NanoConfig:
    """The named recipe. Raises UsageError listing the known ones."""
    if recipe not in NANO_RECIPES:
        raise UsageError(f"unknown recipe {recipe!r}", hint=f"known recipes: {', '.join(NANO_RECIPES)}")
    return NANO_RECIPES[recipe](run_dir)


def transformer_of(config: NanoConfig) -> PretrainConfig:
    """The pre-training of Lens-Nano's transformer, as a part of its whole recipe."""
    return PretrainConfig(
        run_dir=config.run_dir / "transformer",
        params=config.params.dit,
        template=config.params.text.template,
        stages=config.stages,
        seed=config.seed,
        frozen=FrozenNames(encoders=None),  # the run's own, which its first two parts have trained
        data=config.data,
        optim=config.optim,
        machine=config.machine,
        saving=config.saving,
    )


# Pre-training --------------------------------------------------------------------------------------------------------

# Lens-Toy of the paper's ablations: "a 1.2B-parameter image generation backbone and a Qwen3-0.6B text encoder". Its
# shape is not stated; this is Lens two thirds as wide and deep, 1.22 billion parameters. Qwen3-0.6B has 28 blocks of
# width 1024; the last block of each quarter is read, as Lens reads gpt-oss's.
TOY = DiTParams(
    num_layers=32, num_attention_heads=16, enc_hidden_dim=1024, selected_layer_index=(6, 13, 20, 27)
)  # fmt: skip
# Half a billion parameters: with Qwen3-0.6B and its moments it fits a card of 24 GB.
SMALL = replace(TOY, num_layers=24, num_attention_heads=12)
QWEN = "Qwen/Qwen3-0.6B"
_PAPER_HARDWARE = Hardware(gpus=128, kind="a100")


def paper_512(run_dir: Path) -> PretrainConfig:
    """Low-resolution pre-training, section 2.3: 400K steps of 3072 pictures at 512 x 512 on 128 A100 80GB."""
    lens = ModelParams()
    return PretrainConfig(
        run_dir=run_dir,
        params=lens.dit,
        template=lens.text.template,
        stages=(Stage(base=512, steps=400_000, batch=24, groups=128, learning_rate=2e-4, square_share=1.0),),
        data=PackedData(),
        frozen=FrozenNames(encoders="lens"),
        # "a constant learning rate"
        optim=MuonOptim(muon=False, betas=(0.9, 0.999), warmup=0, ema_decay=0.9999),
        machine=Cluster(device="cuda", checkpointing="full", workers=4, prefetch=2),
        saving=Saving(save_every=1000, background=True),
        hardware=_PAPER_HARDWARE,
    )


def paper_mixed(run_dir: Path) -> PretrainConfig:
    """Mixed-resolution continual training, section 2.3: 27 buckets, another 400K steps at 1e-4.

    It starts from the low-resolution run, where `paper-512` leaves it by itself: --set start_from=RUN for another.
    """
    bases = (Base(base=512, batch=24), Base(base=768, batch=10), Base(base=1024, batch=6))
    mixed = Stage(base=1024, steps=400_000, batch=6, groups=128, mix=bases, learning_rate=1e-4)
    return replace(
        paper_512(run_dir),
        stages=(mixed,),
        average="group",  # a plain average over ranks, each of which has one group
        start_from=Path("runs") / "paper-512",
    )


def toy(run_dir: Path) -> PretrainConfig:
    """The paper's ablation model, on whatever data: choose captions with data.brief_share, networks with frozen.…"""
    return replace(
        paper_512(run_dir),
        params=TOY,
        stages=(Stage(base=512, steps=100_000, batch=32, groups=8, learning_rate=2e-4, square_share=1.0),),
        frozen=FrozenNames(encoders="lens", text_encoder=QWEN),
        hardware=replace(_PAPER_HARDWARE, gpus=8),
    )


def one_24gb(run_dir: Path) -> PretrainConfig:
    """Pre-training on one card of 24 GB: half a billion parameters at 256 x 256 pixels."""
    paper = paper_512(run_dir)
    return replace(
        paper,
        params=SMALL,
        stages=(Stage(base=256, steps=200_000, batch=128, learning_rate=2e-4, square_share=1.0),),
        frozen=FrozenNames(encoders="lens", text_encoder=QWEN),
        optim=replace(paper.optim, warmup=1000),
        machine=replace(paper.machine, micro_batch=16),
        saving=replace(paper.saving, background=False),
        hardware=replace(_PAPER_HARDWARE, gpus=1, kind="rtx-4090"),
    )


def nano_transformer(run_dir: Path) -> PretrainConfig:
    """Lens-Nano's transformer, with the shipped autoencoder and language model."""
    return replace(transformer_of(nano(run_dir)), run_dir=run_dir, frozen=FrozenNames(encoders="nano"))


def nano_transformer_smoke(run_dir: Path) -> PretrainConfig:
    """Lens-Nano's transformer for a few steps: under a minute on two cores."""
    plan = transformer_of(nano_smoke(run_dir))
    return replace(
        plan,
        run_dir=run_dir,
        frozen=FrozenNames(encoders="nano"),
        stages=(replace(plan.stages[0], steps=12),),
        optim=replace(plan.optim, warmup=4),
        saving=replace(plan.saving, validate_every=6, save_every=6),
    )


PRETRAIN_RECIPES: Mapping[str, Callable[[Path], PretrainConfig]] = MappingProxyType(
    {
        "paper-512": paper_512,
        "paper-mixed": paper_mixed,
        "toy-1.2b": toy,
        "one-24gb": one_24gb,
        "nano": nano_transformer,
        "nano-smoke": nano_transformer_smoke,
    }
)


def pretrain_config(recipe: str, run_dir: Path) -> PretrainConfig:
    """The named recipe of pre-training. Raises UsageError listing the known ones."""
    if recipe not in PRETRAIN_RECIPES:
        raise UsageError(f"unknown recipe {recipe!r}", hint=f"known recipes: {', '.join(PRETRAIN_RECIPES)}")
    return PRETRAIN_RECIPES[recipe](run_dir)


def choose(
    recipe: str, run_dir: Path | None, settings: list[str], *, data: Path | None = None, random: bool = False
) -> PretrainConfig:
    """The config that a command line asks for. `run_dir` None: runs/<recipe>. Raises UsageError.

    `data`: a work folder, in place of what the recipe draws. `random`: nothing is learned, so it starts from nothing.
    """
    config = pretrain_config(recipe, run_dir if run_dir is not None else Path("runs") / recipe)
    if data is not None and random:
        raise UsageError("--data and --random contradict each other", hint="leave one out")
    if data is not None:
        packed = config.data if config.data.source == "packed" else PackedData()
        config = replace(config, data=replace(packed, work=data))
    elif random:
        config = replace(config, data=RandomData(align=config.align), start_from=None)
    config = set_fields(config, settings)
    if config.data.source != "packed":
        return config
    work, held_out = _work(config.data.work), _work(config.data.held_out)
    return replace(config, data=replace(config.data, work=work, held_out=held_out))


def _work(folder: Path | None) -> Path | None:
    """The work folder that a person means who names what was packed in it."""
    return folder.parent if folder is not None and folder.name == "pack" else folder
