"""Recipes: functions that return a complete config. `train.overrides.set_fields` applies `key=value` texts to one.

Light ring: standard library only, so that `lens train … --dry-run` answers at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from backend.errors import UsageError
from backend.params import DiTParams, ModelParams
from backend.presets import NANO
from train.config import Base, Hardware, PretrainConfig, Stage, within
from train.overrides import describe, set_fields

__all__ = [
    "NANO_RECIPES",
    "PARTS",
    "PRETRAIN_RECIPES",
    "NanoConfig",
    "check_parts",
    "describe",
    "nano_config",
    "pretrain_config",
    "set_fields",
]

PARTS = ("vae", "language", "transformer", "export")  # of Lens-Nano's training, in their order

# What Lens-Nano learns shapes, pairs, counts and letters from.
_SHAPES = Stage(
    base=256,
    steps=20_000,
    batch=16,
    learning_rate=5e-4,
    layouts=(0.20, 0.22, 0.03, 0.02, 0.15, 0.01, 0.37),
    square_share=0.7,
    captions=(0.2, 0.25, 0.55),  # with 0.08 of dense ones a rewritten request is drawn worse than a brief one
    # People often name neither colour nor place: asked so, a model that has seldom seen it mixes several.
    coloured_share=0.45,
    placed_share=0.35,
    orderly=True,
    flat_share=0.92,
    time_offset=1.0,  # letters show by themselves below t = 0.85: only above is it learned which letter was asked for
)


@dataclass(frozen=True, kw_only=True)
class NanoConfig:
    """Every number of Lens-Nano's recipe."""

    run_dir: Path
    params: ModelParams = NANO
    start_from: Path | None = None  # a finished model (folder) whose transformer is trained on; None: from nothing
    seed: int = 0
    device: str = "cpu"
    workers: int = 1  # processes that draw
    compile: bool = True  # torch.compile of language model and transformer blocks: twice as fast, minutes to warm up
    vae_steps: int = 6400
    vae_batch: int = 16  # crops of 64x64
    vae_learning_rate: float = 1e-3  # of the crops; two fifths of it for whole pictures
    # Then whole pictures: group norms see other statistics in a small crop, and flat colours shift.
    vae_whole_steps: int = 680
    vae_whole_batch: int = 8  # crops of 128x128
    language_steps: int = 4600
    language_tokens: int = 4096  # a step, padding included
    language_learning_rate: float = 2e-3
    # 128 stands for 512, 256 for 1024. Early: a token covers 16 x 16 pixels, so at 128 a thing is four tokens wide and
    # learns its colour and place, but no shape (seen after 320,000 pictures).
    stages: tuple[Stage, ...] = (
        # First what a thing is and which colour it has: mostly one thing, short captions, a third more steps an hour.
        Stage(
            base=128,
            steps=6_854,
            batch=48,
            learning_rate=1e-3,
            layouts=(0.52, 0.24, 0.0, 0.0, 0.12, 0.04, 0.08),  # 8 cells have no room for trio and inside
            captions=(0.15, 0.35, 0.5),
            flat_share=0.7,
        ),
        _SHAPES,
        # Once words are read: more single things, and the paper's times again but for a little.
        replace(_SHAPES, decay_steps=6_000, layouts=(0.30, 0.22, 0.02, 0.02, 0.15, 0.01, 0.28), time_offset=0.2),
    )
    muon_every: int = 3  # steps: a step takes 15 % less time
    align: float = 0.3  # weight of the loss of train.world.align (the paper has none)
    channel_power: float = 0.75  # of a channel's part in the picture, as its weight in the loss (0 in the paper)
    scenes_per_round: int = 6144  # drawn and encoded once …
    passes: int = 6  # … and seen this many times
    encode_batch: int = 64
    log_every: int = 50  # steps

    def __post_init__(self) -> None:
        within(self, 1, None, "vae_batch", "vae_whole_batch", "language_tokens")
        within(self, 0, None, "vae_steps", "vae_whole_steps", "language_steps")
        within(self, 1e-9, 1, "vae_learning_rate", "language_learning_rate")
        transformer_of(self)  # hours later it would refuse what it refuses now


def check_parts(parts: Sequence[str]) -> None:
    """Raises UsageError for a part of Lens-Nano's training that does not exist."""
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        raise UsageError(f"unknown part {unknown[0]!r}", hint=f"parts: {', '.join(PARTS)}")


def nano(run_dir: Path) -> NanoConfig:
    """Lens-Nano as it would be trained now: in one run what its weights have by many. Nobody has run it whole."""
    return NanoConfig(run_dir=run_dir)


def nano_smoke(run_dir: Path) -> NanoConfig:
    """Proves that every part runs: about a minute on two cores; its pictures are noise."""
    return NanoConfig(
        run_dir=run_dir,
        workers=0,
        compile=False,
        vae_steps=6,
        vae_batch=4,
        vae_whole_steps=2,
        vae_whole_batch=2,
        language_steps=4,
        language_tokens=1024,
        stages=(Stage(base=128, steps=6, batch=4, learning_rate=1e-3, square_share=1.0),),
        scenes_per_round=16,
        encode_batch=8,
        log_every=1,
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
        params=config.params.dit,
        template=config.params.text.template,
        run_dir=config.run_dir / "transformer",
        stages=config.stages,
        encoders=None,  # the run's own, which its first two parts have trained
        scenes_per_round=config.scenes_per_round,
        passes=config.passes,
        muon_every=config.muon_every,
        align=config.align,
        channel_power=config.channel_power,
        encode_batch=config.encode_batch,
        seed=config.seed,
        workers=config.workers,
        device=config.device,
        compile=config.compile,
        log_every=config.log_every,
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
_PAPER_MACHINE = Hardware(gpus=128, kind="a100")


def paper_512(run_dir: Path) -> PretrainConfig:
    """Low-resolution pre-training, section 2.3: 400K steps of 3072 pictures at 512 x 512 on 128 A100 80GB."""
    lens = ModelParams()
    return PretrainConfig(
        run_dir=run_dir,
        params=lens.dit,
        template=lens.text.template,
        stages=(Stage(base=512, steps=400_000, batch=24, groups=128, learning_rate=2e-4, square_share=1.0),),
        source="packed",
        encoders="lens",
        encode_batch=24,
        workers=4,
        prefetch=2,
        muon=False,
        betas=(0.9, 0.999),
        warmup=0,  # "a constant learning rate"
        ema_decay=0.9999,
        device="cuda",
        checkpointing="full",
        save_every=1000,
        async_save=True,
        machine=_PAPER_MACHINE,
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
    """The paper's ablation model, on whatever data: choose captions with brief_share, encoders with their fields."""
    return replace(
        paper_512(run_dir),
        params=TOY,
        stages=(Stage(base=512, steps=100_000, batch=32, groups=8, learning_rate=2e-4, square_share=1.0),),
        text_encoder=QWEN,
        machine=replace(_PAPER_MACHINE, gpus=8),
    )


def one_24gb(run_dir: Path) -> PretrainConfig:
    """Pre-training on one card of 24 GB: half a billion parameters at 256 x 256 pixels."""
    return replace(
        paper_512(run_dir),
        params=SMALL,
        stages=(Stage(base=256, steps=200_000, batch=128, learning_rate=2e-4, square_share=1.0),),
        text_encoder=QWEN,
        micro_batch=16,
        encode_batch=16,
        async_save=False,
        warmup=1000,
        machine=replace(_PAPER_MACHINE, gpus=1, kind="rtx-4090"),
    )


def nano_transformer(run_dir: Path) -> PretrainConfig:
    """Lens-Nano's transformer, with the shipped autoencoder and language model."""
    return replace(transformer_of(nano(run_dir)), run_dir=run_dir, encoders="nano")


def nano_transformer_smoke(run_dir: Path) -> PretrainConfig:
    """The same for a few steps: under a minute on two cores."""
    return replace(
        transformer_of(nano_smoke(run_dir)),
        run_dir=run_dir,
        encoders="nano",
        stages=(Stage(base=128, steps=12, batch=4, learning_rate=1e-3, square_share=1.0),),
        warmup=4,
        validate_every=6,
        save_every=6,
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

    `data`: a work folder; then nothing is aligned nor weighted by channel, which only drawn scenes can tell how.
    `random`: nothing is learned, so it starts from nothing.
    """
    config = pretrain_config(recipe, run_dir if run_dir is not None else Path("runs") / recipe)
    if data is not None and random:
        raise UsageError("--data and --random contradict each other", hint="leave one out")
    if data is not None:
        config = replace(config, source="packed", data=data, align=0.0, channel_power=0.0)
    elif random:
        config = replace(config, source="random", channel_power=0.0, start_from=None)
    config = set_fields(config, settings)
    return replace(config, data=_work(config.data), held_out=_work(config.held_out))


def _work(folder: Path | None) -> Path | None:
    """The work folder that a person means who names what was packed in it."""
    return folder.parent if folder is not None and folder.name == "pack" else folder
