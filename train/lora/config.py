"""The configuration of fine-tuning, its recipes, and which linears an adapter may sit on.

Light ring: standard library only. `train.overrides` changes single fields; `train.lora.run` runs it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Literal, Protocol

from backend.errors import UsageError, joined
from backend.packing.schemes import by_quant, trainable
from backend.params import DiTParams
from backend.paths import resolved
from backend.presets import Preset
from backend.types import Quant
from train.config import Base, Machine, Noise, Optim, Saving, Stage, within
from train.overrides import set_fields

KIND = "lora"  # of a run, in its config.json
# What one word of `targets` stands for; any other word is the end of a module's name.
GROUPS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "attn": ("attn.img_qkv", "attn.txt_qkv", "attn.to_out.0", "attn.to_add_out"),
        "mlp": tuple(f"{stream}_mlp.w{i}" for stream in ("img", "txt") for i in (1, 2, 3)),
        "mod": ("img_mod.1", "txt_mod.1"),
        "io": ("img_in", "txt_in", "proj_out"),
    }
)


class AdapterFields(Protocol):
    """What a config of any stage says about its adapters; `LoraConfig` has them, among others."""

    @property
    def rank(self) -> int: ...
    @property
    def alpha(self) -> float: ...
    @property
    def targets(self) -> tuple[str, ...]: ...
    @property
    def quant(self) -> Quant: ...
    @property
    def seed(self) -> int: ...
    @property
    def machine(self) -> Machine: ...


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Everything that a fine-tuning run depends on. Written to the run's folder as config.json."""

    run_dir: Path
    pictures: Path  # folder; each picture's caption in a .txt file of the same name
    model: str  # a name of the registry or a path

    # What is learned
    tune: Literal["lora", "full"] = "lora"  # low-rank adapters beside frozen weights, or the weights themselves
    rank: int = 16
    alpha: float = 16.0  # the update is alpha / rank * up @ down
    targets: tuple[str, ...] = ("attn", "mlp")  # groups of linears (attn, mlp, mod, io) or ends of module names
    quant: Quant = Quant.auto  # of the frozen linears; auto: as the file is, where that saves memory
    start_from: str | None = None  # a LoRA that is trained on, as `lens gen --lora` takes it; None: from no change

    # Pictures and captions
    caption: str | None = None  # of pictures whose .txt is missing or empty; None: that is an error
    trigger: str | None = None  # words put before every caption; None: nothing
    bases: tuple[int, ...] | None = None  # pixels, ascending; None: the model's, up to the one it draws at
    upscale: float = 1.0  # how many times a side may be enlarged; 1: never
    least_kept: float = 0.5  # share of a picture that the crop to its bucket must leave
    skip: bool = False  # leave out what cannot be used, naming it; False: stop
    held_out: float = 0.1  # share of pictures kept for the validation loss; none of fewer than 8 pictures
    cache: Path | None = None  # latents and text features; None: RUN/cache. Several runs may share one

    # Steps
    steps: int = 1500  # optimiser steps
    batch: int = 1  # pictures of one bucket that pass the network together
    accumulate: int = 1  # such batches a step
    learning_rate: float = 1e-4
    decay: float = 0.2  # share of the steps, at the end, in which it falls linearly to 0
    seed: int = 0

    noise: Noise = field(default_factory=Noise)
    optim: Optim = field(default_factory=lambda: Optim(warmup=20))
    machine: Machine = field(default_factory=lambda: Machine(device="auto", compile=False))
    # A LoRA file beside each sheet of previews.
    saving: Saving = field(default_factory=lambda: Saving(validate_every=100, preview_every=500, log_every=10))

    # What is looked at and written
    held_most: int = 16  # held-out pictures that the validation loss looks at, each at eight times
    previews: int = 4  # captions that are drawn; 0: no sheets
    preview_prompt: str | None = None  # drawn first, beside the captions; None: only those
    export_dtype: Literal["float32", "bfloat16", "float16"] = "float32"  # of the LoRA files; float32 rounds nothing

    def __post_init__(self) -> None:
        within(self, 1, None, "rank", "steps", "batch", "accumulate", "held_most")
        within(self, 0, None, "previews")
        within(self, 0, 1, "held_out", "decay", below=True)
        if self.bases is not None and (not self.bases or min(self.bases) < 1):
            raise UsageError("bases must be numbers of pixels, at least one", hint="bases=512, or none: the model's")
        if not 0 < self.learning_rate < math.inf or not 0 < self.alpha < math.inf:
            raise UsageError("learning_rate and alpha must be numbers above 0")
        if self.start_from is not None and self.tune == "full":
            raise UsageError("start_from is a LoRA, which tune=full does not train")
        packing = by_quant(self.quant)
        if packing is not None and packing.rounds_activations:
            raise UsageError(
                f"quant={self.quant} rounds activations, which has no gradient", hint=joined(map(str, trainable()))
            )
        if self.tune == "full" and self.quant not in (Quant.auto, Quant.none):
            raise UsageError(f"tune=full trains the weights themselves, which quant={self.quant} freezes")

    @property
    def cache_dir(self) -> Path:
        return self.run_dir / "cache" if self.cache is None else self.cache

    @property
    def pictures_per_step(self) -> int:
        return self.batch * self.accumulate

    def bases_of(self, preset: Preset) -> tuple[int, ...]:
        """Pixels, ascending. The published models have 512, 768 and 1024."""
        if self.bases is not None:
            return self.bases
        return tuple(base for base in preset.bases if base <= preset.default_base)

    def stage_of(self, preset: Preset) -> Stage:
        """The whole run as one stage."""
        bases = self.bases_of(preset)
        return Stage(
            base=bases[-1],
            steps=self.steps,
            batch=self.batch,
            groups=self.accumulate,
            mix=tuple(Base(base=base, batch=self.batch) for base in bases),
            learning_rate=self.learning_rate,
            decay_steps=round(self.decay * self.steps),
        )


def target_shapes(config: AdapterFields, params: DiTParams) -> dict[str, tuple[int, int]]:
    """Module name -> (outputs, inputs) of every linear that gets an adapter, in the network's order.

    Raises UsageError for a target that is nowhere, and for a rank that is larger than a layer.
    """
    from backend.model.tensors import transformer_shapes

    ends = {end: word for word in config.targets for end in GROUPS.get(word, (word,))}
    found: dict[str, tuple[int, int]] = {}
    used: set[str] = set()
    for name, shape in transformer_shapes(params).items():
        module = name.removesuffix(".weight")
        end = next((end for end in ends if f".{module}".endswith(f".{end}")), None)
        if end is None or module == name or len(shape) != 2:
            continue
        used.add(ends[end])
        found[module] = (shape[0], shape[1])
    for word in config.targets:
        if word not in used:
            raise UsageError(
                f"targets={word}: no linear of this model is called so",
                hint=f"{', '.join(GROUPS)}, or the end of a name such as img_qkv or transformer_blocks.0.img_mlp.w1",
            )
    if not found:
        raise UsageError("targets is empty", hint=f"{', '.join(GROUPS)}")
    for module, (outputs, inputs) in found.items():
        if config.rank > min(outputs, inputs):
            raise UsageError(
                f"rank={config.rank}: {module} is {outputs} x {inputs}, so no update of it has a higher rank than "
                f"{min(outputs, inputs)}",
                hint="a smaller rank, or other targets",
            )
    return found


# Recipes -------------------------------------------------------------------------------------------------------------


def lora(config: LoraConfig) -> LoraConfig:
    """A card of 24 GB at the published size: bfloat16 base, rank 16 on attention and MLP."""
    return replace(config, batch=2, machine=_again(config))


def lora_8gb(config: LoraConfig) -> LoraConfig:
    """A card of 8 GB: the base in NF4, one picture of 512 x 512 pixels at a time."""
    return replace(config, quant=Quant.nf4, bases=(512,), batch=1, accumulate=4, machine=_again(config))


def full(config: LoraConfig) -> LoraConfig:
    """All weights, on one card of 80 GB: float32 masters and moments take 16 bytes a parameter."""
    saving = replace(config.saving, save_every=500)
    return replace(
        config, tune="full", learning_rate=1e-5, batch=1, accumulate=8, machine=_again(config), saving=saving
    )  # fmt: skip


def nano(config: LoraConfig) -> LoraConfig:
    """Lens-Nano, on a processor: minutes. A small network takes a higher rate."""
    saving = replace(config.saving, validate_every=50, preview_every=200, save_every=100)
    return replace(config, batch=4, learning_rate=1e-3, steps=400, previews=2, saving=saving)


def _again(config: LoraConfig) -> Machine:
    """Keep only the blocks' inputs for the backward pass."""
    return replace(config.machine, checkpointing="full")


RECIPES: Mapping[str, Callable[[LoraConfig], LoraConfig]] = MappingProxyType(
    {"lora": lora, "lora-8gb": lora_8gb, "full": full, "nano": nano}
)


# GB of the card that a recipe is made for.
CARDS: Mapping[str, int] = MappingProxyType({"lora": 24, "lora-8gb": 8, "full": 80})


def recipe_name(model: str, recipe: str | None, full: bool) -> str:
    """The recipe that is meant where none is named: nano for Lens-Nano, else lora, or full. Raises UsageError."""
    name = recipe or ("nano" if model.strip().lower() == "nano" else "full" if full else "lora")
    if name not in RECIPES:
        raise UsageError(f"unknown recipe {name!r}", hint=f"known recipes: {', '.join(RECIPES)}")
    return name


def choose(
    pictures: Path,
    model: str,
    run_dir: Path | None,
    settings: list[str],
    *,
    recipe: str | None = None,
    quant: Quant | None = None,
    full: bool = False,
) -> LoraConfig:
    """The config that a command line asks for. `recipe` None: nano for Lens-Nano, else lora. Raises UsageError."""
    name = recipe_name(model, recipe, full)
    folder = run_dir if run_dir is not None else Path("runs") / (resolved(pictures).name or "lora")
    config = RECIPES[name](LoraConfig(run_dir=folder, pictures=pictures, model=model))
    if full and config.tune != "full":
        config = replace(config, tune="full", quant=Quant.auto, learning_rate=config.learning_rate / 10)
    if quant not in (None, Quant.auto):  # auto leaves the choice to the recipe
        config = replace(config, quant=quant)
    config = set_fields(config, settings)
    for own in (config.run_dir, config.cache_dir):
        if resolved(pictures).is_relative_to(resolved(own)):
            raise UsageError(
                f"{own} holds the pictures, and what a run's own folders hold is never trained on",
                hint="a new folder: --run-dir runs/NAME",
            )
    return config
