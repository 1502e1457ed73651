"""`lens train rl` behind its flags: run it, or say what it would take."""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass
from statistics import median

from backend.checkpoints.resolve import ModelFiles
from backend.disk import free_bytes
from backend.errors import UsageError, counted, human_bytes
from backend.memory.footprint import vae_parameters
from backend.presets import Preset
from backend.sizes import GRID
from lens_cli.terminal.console import Talk
from lens_cli.terminal.training import live
from lens_cli.work.train.model import planned_device, planned_model
from lens_cli.work.train.plan_page import show_plan
from lens_cli.work.train.status import duration
from train.config import Stage
from train.lora.config import target_shapes
from train.lora.plan import base_bytes
from train.rl.config import RLConfig, refuse_distilled
from train.run import costs, status

TEXT_TOKENS = 60  # of a prompt: the paper's have about 40 words
# Seconds of one core, beside `costs.CORE_FORWARD`: decoding a picture, a verdict of the rules.
CORE_DECODE, CORE_VERDICT = 0.065, 0.2
GPU_SHARE = 0.3  # of a GPU's peak; estimated, never measured
PHASES = ("seconds_roll", "seconds_judge", "seconds_train")


def tune(config: RLConfig, talk: Talk) -> None:
    """Train; the adapter on stdout, and as the last line of all the command that tries it. Raises LensError."""
    from train.rl.run import run

    with live(talk, config.epochs) as say:
        result = run(config, say)
    talk.data(result.path)
    words = ["lens", "gen", result.prompt, "-m", config.model, "--lora", str(result.path)]
    talk.say(f"look at {config.run_dir / 'previews'} and lens train status {shlex.quote(str(config.run_dir))}")
    talk.say(f"try it: {shlex.join(words)}")
    numbers = {"run_dir": str(config.run_dir), "epochs": result.epoch, "files": [str(result.path)]}
    talk.result({**numbers, "try": shlex.join(words)})


@dataclass(frozen=True, kw_only=True)
class EpochForecast:
    """What a run takes. Counted, but for `activations` and the hours."""

    pictures: int  # of an epoch
    judge_calls: int  # of the run's rollouts; evaluations come on top
    learned: int  # numbers
    rollout_flops: float  # of an epoch
    training_flops: float  # of an epoch
    base: float  # bytes: the frozen transformer
    state: float  # bytes: weights, gradients, two moments, the average, the old policy
    activations: float  # bytes, estimated
    vae: float  # bytes
    rollouts: float  # bytes on the disk, of the epoch under way
    checkpoints: float  # bytes on the disk
    measured: float | None  # seconds of an epoch, in this run's folder; None: it has not run
    estimated: dict[str, float]  # seconds of an epoch by phase on one core, or by GPU
    looked_at: int  # pictures of an evaluation
    evaluations: int  # of the run
    evaluating: float  # seconds of one, as `estimated`

    @property
    def memory(self) -> float:
        return self.base + self.state + self.activations + self.vae


def forecast(config: RLConfig, preset: Preset, files: ModelFiles | None, device_type: str) -> EpochForecast:
    """`files` None: of a model that is not on this disk. Raises UsageError for targets and ranks that cannot be."""
    params, rollout, nft = preset.params.dit, config.rollout, config.nft
    tokens = [width * height // GRID**2 for width, height in rollout.shapes(preset)]
    forward = sum(costs.forward_flops(params, count, TEXT_TOKENS) for count in tokens) / len(tokens)
    pictures = rollout.groups * rollout.size
    branches = sum(1 if guidance == 1 else 2 for guidance in rollout.guidances) / len(rollout.guidances)
    rollout_flops = pictures * rollout.steps * branches * forward
    # Forward, gradients of the inputs alone (the weights are frozen), again where blocks run twice; old; reference.
    passes = 2 + (config.machine.checkpointing != "none") + 1 + 1 / nft.reference_every
    training_flops = pictures * nft.times * passes * (1 if nft.guidance == 1 else 2) * forward
    learned = sum(config.rank * sum(shape) for shape in target_shapes(config, params).values())
    micro = config.machine.micro_batch or pictures * nft.times // nft.gradient_steps
    stage = Stage(base=rollout.base or preset.default_base, steps=1, batch=micro, learning_rate=config.learning_rate)
    copies = 5 + (config.optim.ema_decay is not None)
    apart = config.judge.kind == "endpoint" and config.judge.calls == "apart"
    shown, served = config.evaluate, config.evaluate.guidance
    guided = preset.guidance if served is None else served
    looked_at = shown.prompts * shown.seeds * (1 if guided == 1 else 2)  # without guidance, and as it is served
    looking = looked_at * (shown.steps or preset.steps) * (1 if guided == 1 else 1.5) * forward
    return EpochForecast(
        pictures=pictures,
        judge_calls=pictures * config.epochs * (11 if apart else 1),
        learned=learned,
        rollout_flops=rollout_flops,
        training_flops=training_flops,
        base=base_bytes(config, files, params, device_type)[0],
        state=4.0 * copies * learned,
        activations=costs.activations(params, stage, config.machine, caption_tokens=TEXT_TOKENS),
        vae=4.0 * vae_parameters(preset.params.vae),
        rollouts=4.0 * params.in_channels * rollout.groups * rollout.size * sum(tokens) / len(tokens),
        checkpoints=4.0 * (copies - 1) * learned * (config.keep + 1),
        measured=_measured(config),
        estimated=_seconds(config, pictures, rollout_flops, training_flops, device_type),
        looked_at=looked_at,
        evaluations=1 + -(-config.epochs // shown.every),
        evaluating=sum(_seconds(config, looked_at, looking, 0.0, device_type).values()),
    )


def _seconds(
    config: RLConfig, pictures: int, rollout_flops: float, training_flops: float, device_type: str
) -> dict[str, float]:  # fmt: skip
    if device_type == "cpu":
        judge = pictures * CORE_VERDICT if config.judge.kind == "rules" else 0.0
        roll = rollout_flops / costs.CORE_FORWARD + pictures * CORE_DECODE
        return {"roll": roll, "judge": judge, "train": training_flops / costs.CORE_FORWARD}
    speed = GPU_SHARE * costs.PEAKS["h100"][0]
    return {"roll": rollout_flops / speed, "train": training_flops / speed}


def _measured(config: RLConfig) -> float | None:
    """Seconds of an epoch of an earlier part of this run: the median."""
    try:
        (run, *_) = status.find(config.run_dir)
    except UsageError:
        return None
    each = [sum(row[name] for name in PHASES) for row in run.rows if all(name in row for name in PHASES)]
    return median(each) if each else None


def explain(config: RLConfig, talk: Talk) -> None:
    """What the run takes, on stdout. Loads no weights, writes nothing."""
    preset, files, missing = planned_model(config.model)
    refuse_distilled(preset)
    device_type = planned_device(config.machine.device, preset)
    plan = forecast(config, preset, files, device_type)
    numbers = {"plan": {**asdict(plan), "memory": plan.memory}}
    rows, disk = lines(config, preset, plan, device_type), plan.rollouts + plan.checkpoints
    show_plan(config, rows, numbers, talk, disk=disk, missing=missing + _unnamed(config))


def _unnamed(config: RLConfig) -> list[str]:
    """What the run will ask for."""
    out: list[str] = []
    if config.prompts.source == "file" and config.prompts.path is None:
        out.append("no prompts are named yet: lens train rl prompts write FILE, then --set prompts.path=FILE")
    if config.judge.kind == "endpoint" and not config.judge.model:
        out.append("no judge is named yet: --set judge.model=NAME --set judge.base_url=URL")
    return out


def lines(config: RLConfig, preset: Preset, plan: EpochForecast, device_type: str) -> list[str]:
    """What a person reads."""
    shapes = ", ".join(f"{width} x {height}" for width, height in config.rollout.shapes(preset))
    pairs = plan.pictures * config.nft.times
    out = [
        f"pictures   {plan.pictures:,} an epoch: {config.rollout.size} of each of "
        f"{counted(config.rollout.groups, 'prompt')}; {shapes}",
        f"training   {pairs:,} pairs of a picture and a time an epoch, in {config.nft.gradient_steps} gradient steps",
        f"learned    {plan.learned:,} numbers",
        f"judge      {plan.judge_calls:,} calls in {config.epochs:,} epochs; evaluations come on top",
        f"operations {plan.rollout_flops:.3g} to draw an epoch, {plan.training_flops:.3g} to train it",
        f"memory     base {human_bytes(plan.base)}, adapters with moments, average and old policy "
        f"{human_bytes(plan.state)}, activations about {human_bytes(plan.activations)}, autoencoder "
        f"{human_bytes(plan.vae)}: about {human_bytes(plan.memory)}",
        f"disk       {human_bytes(plan.rollouts)} of pictures of the epoch under way, checkpoints "
        f"{human_bytes(plan.checkpoints)}; {human_bytes(free_bytes(config.run_dir))} are free there",
    ]
    seconds = sum(plan.estimated.values())
    phases = ", ".join(f"{phase} {value:,.0f} s" for phase, value in plan.estimated.items())
    where = "on one core" if device_type == "cpu" else f"on one H100 at {GPU_SHARE:.0%} of its peak"
    out.append(f"time       about {duration(seconds)} an epoch {where} ({phases}): {duration(seconds * config.epochs)}")
    looking = plan.evaluations * plan.evaluating
    out.append(f"           {plan.evaluations} evaluations of {plan.looked_at:,} pictures: {duration(looking)}")
    if plan.measured is not None:
        out.append(f"           as measured in this run, {duration(plan.measured)} an epoch")
    return out
