"""The configuration of reinforcement learning, and its recipes. Every choice that the paper leaves open is a field.

Sources: the Lens paper, section 2.4 and Appendix D; DiffusionNFT (arXiv 2509.16117) and its code where they are silent.

Light ring: standard library only. `train.overrides` changes single fields; `train.rl.run` runs it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from backend import presets
from backend.errors import UsageError
from backend.presets import Preset
from backend.sizes import TRAINED_RATIOS, parse_ratio, size_for
from backend.types import Quant
from train.config import Machine, Optim, within
from train.judge.config import EndpointJudge, JudgeConfig, Judging, RulesJudge
from train.overrides import set_fields

if TYPE_CHECKING:
    from backend.checkpoints.resolve import ModelFiles

KIND = "rl"  # of a run, in its config.json


@dataclass(frozen=True, kw_only=True)
class DrawnPrompts:
    """Prompts about scenes of Lens-Nano's world, whose content the rules know."""

    source: Literal["drawn"] = "drawn"
    count: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        within(self, 1, None, "count")


@dataclass(frozen=True, kw_only=True)
class PromptFile:
    """Prompts that `lens train rl prompts` wrote (the paper: 8,406 of its own)."""

    source: Literal["file"] = "file"
    path: Path | None = None  # None: it must be named before the run


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """How an epoch's pictures are drawn, from the old policy."""

    groups: int = 48  # prompts an epoch (the paper)
    size: int = 24  # pictures of a prompt (the paper)
    # Steps of the inference schedule, with the second-order solver (the paper: "a second-order ODE sampler", no
    # number; DiffusionNFT: 10).
    steps: int = 10
    # The paper does not say. DiffusionNFT draws at 1 and takes guidance for something that training replaces; Lens is
    # served at 5 afterwards, and the best rollout is a little below what is served.
    # Several: the groups have them in turn, and one run learns what is wrong under each.
    guidances: tuple[float, ...] = (4.0,)
    base: int | None = None  # pixels: side of the square of equal area; None: the model's own
    # One shape a group, drawn anew for each (the paper: "different resolutions for each prompt": of a group or within
    # it). One a group keeps its mean reward clean.
    ratios: tuple[str, ...] = TRAINED_RATIOS
    at_once: int = 8  # pictures of one pass

    def __post_init__(self) -> None:
        within(self, 1, None, "groups", "steps", "at_once")
        within(self, 2, None, "size")
        within(self, 0, 100, "guidances")
        if not self.ratios:
            raise UsageError("ratios is empty", hint="ratios=1:1")
        if not self.guidances:
            raise UsageError("guidances is empty", hint="guidances=4")
        for ratio in self.ratios:
            parse_ratio(ratio)

    def shapes(self, preset: Preset) -> tuple[tuple[int, int], ...]:
        """(width, height) in pixels of each ratio."""
        base = self.base or preset.default_base
        return tuple(size_for(parse_ratio(ratio), base) for ratio in self.ratios)


@dataclass(frozen=True, kw_only=True)
class Reward:
    """How a verdict becomes a number: `train.losses.rewards.RewardRule`, which says what each means."""

    overall_weight: float = 1.0
    all_hold: float = 0.0  # (the paper does not say; 0: the mean of yes and no)
    least_answered: float = 0.5

    def __post_init__(self) -> None:
        within(self, 0, 1e3, "overall_weight")
        within(self, 0, 1, "all_hold", "least_answered")


@dataclass(frozen=True, kw_only=True)
class Nft:
    """DiffusionNFT's loss and what an epoch trains on."""

    beta: float = 1.0  # how far the implicit policies lie from the old one (the paper)
    advantage_clip: float = 5.0  # standard deviations; Z of the paper's equation is so many (the paper: "typically …")
    std_floor: float = 0.0  # the epoch's standard deviation counts at least this: keeps a judge's noise out
    least_valid: float = 0.5  # share of a group's pictures that need a reward; below it the group is left out
    train_flat: bool = True  # False: groups whose pictures all have one reward, which teach only the KL, are left out
    adaptive: bool = True  # each side over its own mean error ("adaptive time weighting")
    # Of the rollout's times, at how many a picture is trained, drawn for each (DiffusionNFT: 9 of 10).
    times: int = 9
    gradient_steps: int = 1  # an epoch (DiffusionNFT: 1, for text 2); from the second on current and old differ
    # 1: the conditional branch alone is trained. Above: the guided velocity, of all three policies (Flow-Factory).
    guidance: float = 1.0
    kl_weight: float = 1e-4  # (the paper) mean squared distance to the reference's velocity; 1e-4 stops no hacking
    norm_hinge: float = 0.0  # weight of the velocity's excess length over the reference's (NormGuard); 0: only logged
    reference_every: int = 1  # the reference is asked at every so many-th pair: its forward pass costs a fifth
    old: Literal["copy", "linear", "constant", "delayed", "centred"] = "linear"  # `train.losses.nft.OLD_DECAYS`

    def __post_init__(self) -> None:
        within(self, 1e-3, 1e3, "beta")
        within(self, 1e-3, 1e3, "advantage_clip")
        within(self, 0, 1, "std_floor", "least_valid")
        within(self, 1, None, "times", "gradient_steps", "reference_every")
        within(self, 0, 100, "guidance")
        within(self, 0, 1e6, "kl_weight", "norm_hinge")


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """What is looked at on prompts that are never trained on, at guidance 1 and at the served one."""

    every: int = 10  # epochs; also before the first and after the last
    prompts: int = 64  # of the held-out ones
    seeds: int = 2  # pictures of each; from two on their spread is known
    steps: int | None = None  # None: as the model is served
    guidance: float | None = None  # the served one; None: the model's own
    # Drawn scenes whose flow-matching loss is told: what the model knew of its world before. Of drawn prompts only.
    scenes: int = 0
    sheet: int = 16  # pictures of the sheet, the same at every evaluation
    # A second judge, whose scores are not the reward: where they fall as the reward rises, it is being hacked. It is
    # asked about the same pictures where its model is named.
    control: EndpointJudge = field(default_factory=EndpointJudge)

    def __post_init__(self) -> None:
        within(self, 1, None, "every", "seeds", "steps")
        within(self, 0, None, "prompts", "scenes", "sheet")


@dataclass(frozen=True, kw_only=True)
class RLConfig:
    """Everything that a run depends on. Written to the run's folder as config.json."""

    run_dir: Path
    model: str = "lens-base"  # a name of the registry or a path; one that is not distilled
    epochs: int = 180  # (the paper: "180 steps", read as epochs of one gradient step)
    seed: int = 0

    # The adapter that is trained. 64 and 128 are the paper's; on which linears it does not say.
    rank: int = 64
    alpha: float = 128.0
    targets: tuple[str, ...] = ("attn", "mlp")  # as `lens train lora` has them
    quant: Quant = Quant.none  # of the frozen linears
    learning_rate: float = 3e-4  # constant after the warm-up
    export_rank: int | None = None  # of the adapter that is written, by singular values; None: as trained
    export_dtype: Literal["float32", "bfloat16", "float16"] = "float32"

    prompts: PromptFile | DrawnPrompts = PromptFile()
    held_out: float = 0.05  # share of each category's items that is never trained on
    # What is left out of the training prompts (the paper's Table 1: all, half, a quarter of them; without text). What
    # is held out stays, so that runs can be compared.
    share: float = 1.0  # of each category's prompts
    without: tuple[str, ...] = ()  # categories
    cache: Path | None = None  # text features; None: RUN/cache
    rollout: Rollout = Rollout()
    judge: JudgeConfig = field(default_factory=EndpointJudge)
    judging: Judging = field(default_factory=Judging)
    reward: Reward = Reward()
    nft: Nft = Nft()
    evaluate: Evaluate = Evaluate()
    # The average is what is evaluated and written, never what draws (DiffusionNFT).
    optim: Optim = field(default_factory=lambda: Optim(weight_decay=1e-4, warmup=0, ema_decay=0.9))
    machine: Machine = field(default_factory=lambda: Machine(device="auto", compile=False, micro_batch=4))
    keep: int = 2  # newest checkpoints; one is written after every epoch
    wandb: str | None = None  # project of Weights & Biases; None: not used

    def __post_init__(self) -> None:
        within(self, 1, None, "epochs", "rank", "export_rank", "keep")
        within(self, 0, 1, "held_out", below=True)
        within(self, 1e-6, 1, "share")
        if not 0 < self.learning_rate < math.inf or not 0 < self.alpha < math.inf:
            raise UsageError("learning_rate and alpha must be numbers above 0")
        if self.nft.times > self.rollout.steps:
            raise UsageError(f"nft.times={self.nft.times}: a rollout has only {self.rollout.steps} steps")
        if self.prompts.source == "file" and self.judge.kind == "rules":
            raise UsageError(
                "the rules can judge drawn scenes only, not prompts of a file", hint="a recipe with another judge"
            )

    @property
    def cache_dir(self) -> Path:
        return self.run_dir / "cache" if self.cache is None else self.cache


# Recipes -------------------------------------------------------------------------------------------------------------


def paper(run_dir: Path) -> RLConfig:
    """Values of the paper: 48 groups of 24 at 1024 x 1024 in nine shapes, LoRA of rank 64."""
    return RLConfig(run_dir=run_dir, machine=Machine(device="auto", compile=False, micro_batch=4, checkpointing="full"))


def one_node(run_dir: Path) -> RLConfig:
    """A tenth of the paper's cost: 24 groups of 12 at 512 x 512, four of ten times, the reference at every fourth."""
    config = paper(run_dir)
    rollout = replace(config.rollout, groups=24, size=12, base=512)
    nft = replace(config.nft, times=4, reference_every=4, gradient_steps=2)
    return replace(config, rollout=rollout, nft=nft, machine=replace(config.machine, micro_batch=8))


def nano(run_dir: Path) -> RLConfig:
    """Lens-Nano on one core of a processor: 26 epochs of 144 pictures, a little over two minutes each.

    Every other group is drawn without guidance, where most is to be learned (0.45 right of the held-out prompts in four
    steps, 0.62 with guidance 3), and the others as it is served: what is wrong there, guidance does not mend, and a
    policy that only saw pictures without it would learn guidance first of all. Measured before: 64 pictures an epoch
    are too few (standard error of the reward .06), 2 gradient steps an epoch taught nothing that could be seen and 6
    did; a reward that is only all or nothing leaves 10 to 25 % of the groups without spread. Rank 8 is what ships, so
    nothing is cut afterwards. Lens-Nano's own adapter came out of it; held-out prompts were still gaining at its end.
    """
    return RLConfig(
        run_dir=run_dir,
        model="nano-base",
        epochs=26,
        rank=8,
        alpha=16.0,
        learning_rate=1e-3,
        export_dtype="float16",
        prompts=DrawnPrompts(),
        held_out=0.1,
        rollout=Rollout(groups=18, size=8, steps=6, guidances=(1.0, 3.0), ratios=("1:1",), at_once=8),
        judge=RulesJudge(workers=0),
        reward=Reward(overall_weight=0.0, all_hold=0.5),
        nft=Nft(times=2, gradient_steps=4, reference_every=4, std_floor=0.1, train_flat=False),
        evaluate=Evaluate(every=13, prompts=70, seeds=1, steps=4, scenes=8),
        # A long average: of about the last ten epochs, since the rate stays as it is to the end.
        optim=Optim(weight_decay=1e-4, warmup=0, ema_decay=0.98),
        machine=Machine(device="cpu", compile=False, micro_batch=16),
    )


def nano_smoke(run_dir: Path) -> RLConfig:
    """Two tiny epochs of Lens-Nano, to see that all of it works: half a minute."""
    config = nano(run_dir)
    return replace(
        config,
        epochs=2,
        rank=4,
        export_rank=None,
        prompts=DrawnPrompts(count=40),
        rollout=replace(config.rollout, groups=2, size=4, steps=3, base=128, at_once=4),
        nft=replace(config.nft, gradient_steps=2, reference_every=2),
        evaluate=Evaluate(every=2, prompts=2, seeds=2, steps=2, scenes=1, sheet=4),
        judge=RulesJudge(workers=0),
    )


RECIPES: Mapping[str, Callable[[Path], RLConfig]] = MappingProxyType(
    {"paper": paper, "one-node": one_node, "nano": nano, "nano-smoke": nano_smoke}
)


def choose(recipe: str, run_dir: Path | None, settings: list[str]) -> RLConfig:
    """The config that a command line asks for. Raises UsageError."""
    if recipe not in RECIPES:
        raise UsageError(f"unknown recipe {recipe!r}", hint=f"known recipes: {', '.join(RECIPES)}")
    config = RECIPES[recipe](run_dir if run_dir is not None else Path("runs") / f"rl-{recipe}")
    config = set_fields(config, settings)
    if config.model in presets.names():
        refuse_distilled(presets.get(config.model))
    return config


def refuse_distilled(preset: Preset) -> None:
    """Raises UsageError for a model that was distilled for few steps."""
    if preset.distilled:
        raise UsageError(
            f"{preset.name} is distilled for {preset.steps} steps without guidance; this training knows nothing of "
            "that, and blurs such a model after some thousand steps",
            hint="tune the model it was distilled from (model=lens-base), and distil the result",
        )


def refuse_tuned(files: ModelFiles) -> None:
    """Raises UsageError for a model that is a base with an adapter of this very training."""
    if files.adjustable:
        bases = [row.name for row in presets.PRESETS.values() if row.embedded is not None and not row.adapters]
        raise UsageError(
            f"{files.name} is a base with an adapter that reinforcement learning made",
            hint=f"tune the base: --set model={bases[0]}" if bases else "tune the base, given as a folder",
        )
