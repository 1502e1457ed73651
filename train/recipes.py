"""Recipes: functions that return a complete config. `set_fields` applies `key=value` overrides to one.

Light ring: standard library only, so that `lens train … --dry-run` answers at once.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from dataclasses import dataclass, replace
from pathlib import Path

from backend.errors import UsageError
from backend.params import ModelParams
from backend.presets import NANO


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stretch of pre-training at one base resolution."""

    base: int  # pixels: side of the square of equal area
    steps: int  # optimiser steps of this stage
    batch: int  # pictures a step
    learning_rate: float  # constant after the warm-up, as in the paper
    square_share: float = 0.5  # probability of 1:1; the other eight ratios share the rest (the paper does not say)
    single_share: float | None = None  # of scenes with one thing; None: as the scenes come (0.26)
    captions: tuple[float, float, float] = (0.35, 0.45, 0.2)  # shares of dense, partly dense and brief captions
    decay_steps: int = 0  # the last steps fall linearly to 0 (0: none, as in the paper)


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
    # Then whole pictures: group norms see other statistics in a small crop, and flat colours shift.
    vae_whole_steps: int = 680
    vae_whole_batch: int = 8  # crops of 128x128
    language_steps: int = 4600
    language_tokens: int = 4096  # a step, padding included
    # 128 stands for 512, 256 for 1024. Early: a token covers 16 x 16 pixels, so at 128 a thing is four tokens wide and
    # learns its colour and place, but no shape (seen after 320,000 pictures).
    stages: tuple[Stage, ...] = (
        # First what a thing is and which colour it has: mostly one thing, short captions, a third more steps an hour.
        Stage(base=128, steps=6_854, batch=48, learning_rate=1e-3, single_share=0.45, captions=(0.15, 0.35, 0.5)),
        Stage(base=256, steps=20_000, batch=16, learning_rate=7e-4, single_share=0.45, captions=(0.15, 0.35, 0.5)),
        Stage(base=256, steps=20_000, batch=16, learning_rate=5e-4, decay_steps=6_000),
    )
    align: float = 0.1  # weight of the loss of train.align (the paper has none)
    scenes_per_round: int = 6144  # drawn and encoded once …
    passes: int = 6  # … and seen this many times
    encode_batch: int = 64
    log_every: int = 50  # steps


def nano(run_dir: Path) -> NanoConfig:
    """The shipped model."""
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


def set_fields(config: NanoConfig, settings: list[str]) -> NanoConfig:
    """Apply `key=value` texts: keys are field names, `stages.0.steps` reaches into the stages.

    Raises UsageError for an unknown key or a value of the wrong type.
    """
    for setting in settings:
        key, separator, value = setting.partition("=")
        if not separator:
            raise UsageError(f"--set needs key=value, got {setting!r}")
        config = _set(config, key.strip(), key.strip().split("."), value.strip())
    return config


def _set(target: typing.Any, full: str, path: list[str], value: str) -> typing.Any:
    if isinstance(target, tuple):
        index = int(path[0]) if path[0].isdigit() else -1
        if not 0 <= index < len(target) or len(path) < 2:
            raise UsageError(f"--set {full}: there are {len(target)} of these, numbered from 0")
        return (*target[:index], _set(target[index], full, path[1:], value), *target[index + 1 :])
    names = [field.name for field in dataclasses.fields(target)]
    if path[0] not in names:
        raise UsageError(f"--set {full}: unknown field {path[0]!r}", hint=f"fields: {', '.join(names)}")
    current = getattr(target, path[0])
    if len(path) > 1:
        return replace(target, **{path[0]: _set(current, full, path[1:], value)})
    return replace(target, **{path[0]: _parse(full, value, typing.get_type_hints(type(target))[path[0]])})


def _parse(key: str, text: str, kind: typing.Any) -> typing.Any:
    if isinstance(kind, types.UnionType):
        if text.lower() == "none":
            return None
        kind = next(k for k in typing.get_args(kind) if k is not type(None))
    if kind is bool:
        if text.lower() in ("true", "false"):
            return text.lower() == "true"
    elif kind in (int, float, str, Path):
        try:
            return kind(text.replace("_", "") if kind is int else text)
        except ValueError:
            pass
    else:
        raise UsageError(f"--set {key}: this field holds several values; set one of them, for example {key}.0.steps")
    raise UsageError(f"--set {key}: {text!r} is not {kind.__name__}")


def describe(config: NanoConfig) -> str:
    """The resolved config as aligned `key = value` lines, nested parameters as one line each."""
    rows: list[tuple[str, object]] = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name == "stages":
            rows += [(f"stages.{i}", stage) for i, stage in enumerate(value)]
        elif field.name == "params":
            rows += [(f"params.{part.name}", getattr(value, part.name)) for part in dataclasses.fields(value)]
        else:
            rows.append((field.name, value))
    width = max(len(key) for key, _ in rows)
    return "\n".join(f"{key:<{width}}  {value}" for key, value in rows)
