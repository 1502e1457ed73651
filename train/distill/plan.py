"""What a distillation will take: operations, memory, disk, hours. From headers and arithmetic; no weights are read.

What is estimated rather than counted says so where it is printed.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from backend.checkpoints.resolve import ModelFiles
from backend.errors import UsageError
from backend.memory.footprint import vae_parameters
from backend.presets import Preset
from train.config import Stage
from train.distill.config import DistillConfig
from train.lora.config import target_shapes
from train.lora.plan import base_bytes
from train.run import costs, status

CAPTION_TOKENS = 60  # of a prompt; dense captions have 170, which at 1024 x 1024 are 3 % more tokens


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """Bytes on one device. Counted, but for `activations`."""

    weights: float  # float32: student and fake model, or the adapters of both (and of the start)
    moments: float
    gradients: float  # of one network at a time
    average: float
    teacher: float  # the frozen teacher, or the backbone of all three
    copies: float  # weights in the compute precision: two gathered blocks a network, or what autocast keeps in a pass
    critic: float  # the discriminator with gradients and moments
    activations: float  # estimated: the student's pass and, on top of it, the teacher's up to the last tapped block
    encoders: float  # the text encoder of packed pictures, and the autoencoder

    @property
    def total(self) -> float:
        return sum(vars(self).values())


@dataclass(frozen=True, kw_only=True)
class DistillPlan:
    """What a run takes."""

    pictures: int  # of an update, on all devices
    seen: int  # in the run: captions drawn, with repetitions
    learned: int  # numbers
    warm_flops: float  # of a step of the warm stage
    step_flops: float  # of a global step
    memory: MemoryPlan
    checkpoint: float  # bytes
    disk: float  # bytes: checkpoints, the best weights, files
    looks: int  # at held-out prompts
    looked_at: int  # pictures of a look
    looking: float  # seconds of all looks with the teacher's own pictures, drawn once; estimated
    estimated: float  # seconds of the whole run, looks included
    measured: float | None  # seconds of a global step in this run's folder; None: it has not run


def make(config: DistillConfig, preset: Preset, files: ModelFiles | None, device_type: str) -> DistillPlan:
    """`files` None: of a model that is not on this disk. Raises UsageError for what cannot be."""
    params, stage = preset.params.dit, config.stage_of(preset)
    if config.hardware.kind not in costs.PEAKS:
        raise UsageError(
            f"hardware.kind={config.hardware.kind!r} is unknown", hint=f"one of {', '.join(costs.PEAKS)}"
        )  # fmt: skip
    learned = _learned(config, preset)
    taps, d = config.critic.taps_of(params), params.dim
    heads = len(taps) * (8 * d * d + 2 * d + 1)
    forward, pictures = _forward(config, preset), round(stage.pictures)
    warm, step = (pictures * passes * forward for passes in _passes(config, preset))
    copies = 3 + (config.optim.ema_decay is not None)
    checkpoint = 4.0 * (3 * 2 * learned + (copies - 3) * learned + 3 * heads)
    best = 4.0 * learned
    speed = costs.CORE_FORWARD if device_type == "cpu" else _gpu_speed(config)
    looks, looked_at = _looks(config), config.watch.prompts * config.watch.seeds
    guided = 2 if preset.guidance != 1 else 1
    looking = looked_at * forward * (looks * config.grid_steps + guided * preset.steps) / speed
    return DistillPlan(
        pictures=pictures,
        seen=pictures * stage.steps,
        learned=2 * learned + heads,
        warm_flops=warm,
        step_flops=step,
        memory=memory(config, preset, files, stage, heads, device_type),
        checkpoint=checkpoint,
        disk=checkpoint * (config.saving.keep + 1) + 2 * best,
        looks=looks,
        looked_at=looked_at,
        looking=looking,
        estimated=(config.warm.steps * warm + config.steps * step) / speed + looking,
        measured=_measured(config),
    )


def _looks(config: DistillConfig) -> int:
    """How often the held-out prompts are drawn: before the first step, every so often, and after the last."""
    last, saving = config.all_steps, config.saving
    return sum(
        step == last or step % saving.validate_every == 0 or step % saving.preview_every == 0
        for step in range(last + 1)
    )


def _learned(config: DistillConfig, preset: Preset) -> int:
    """Numbers of the student; the fake model has as many."""
    if config.form == "full":
        return costs.parameters(preset.params.dit)
    return sum(config.rank * sum(shape) for shape in target_shapes(config, preset.params.dit).values())


def _forward(config: DistillConfig, preset: Preset) -> float:
    """Operations of a forward pass of one picture, in the expectation over bases."""
    bases = config.stage_of(preset).bases
    total = sum(base.weight * base.batch for base in bases)
    each = [costs.forward_flops(preset.params.dit, base.base**2 // 256, CAPTION_TOKENS) for base in bases]
    return sum(flops * base.weight * base.batch for flops, base in zip(each, bases, strict=True)) / total


def _passes(config: DistillConfig, preset: Preset) -> tuple[float, float]:
    """Forward passes that a picture is worth, in a step of the warm stage and in a global step."""
    again = config.machine.checkpointing != "none"
    backward = (2 if config.form == "full" else 1) + again  # of what is trained; frozen weights have no gradient
    through = 1 + again  # for the input alone
    tapped = (config.critic.taps_of(preset.params.dit)[-1] + 1) / preset.params.dit.num_layers
    walk = (config.grid_steps + 1) / 2
    guided = 2 if (config.warm.guidance or preset.guidance) != 1 else 1
    warm = config.grid_steps * (guided + 1 + backward)
    told = walk + 1 + backward + 3 * tapped
    drawn = walk + backward + 4 + (1 + through) * tapped
    return warm, config.fake.updates * told + drawn


def memory(
    config: DistillConfig, preset: Preset, files: ModelFiles | None, stage: Stage, heads: int, device_type: str
) -> MemoryPlan:
    """One device of `config.hardware`."""
    params, gpus = preset.params.dit, config.hardware.gpus
    learned, full = _learned(config, preset), config.form == "full"
    ranks = max(1, gpus // config.machine.replicate) if full else 1
    itemsize = 2 if config.machine.compute == "bfloat16" else 4
    if full:
        teacher = (4.0 if device_type == "cpu" else itemsize) * learned / ranks
        copied = 3 * 2 * learned / params.num_layers if gpus > 1 else learned
    else:
        teacher, copied = base_bytes(config, files, params, device_type)[0], learned
    kept = costs.activations(params, stage, config.machine, caption_tokens=CAPTION_TOKENS, gpus=gpus)
    tapped = (config.critic.taps_of(params)[-1] + 1) / params.num_layers
    encoders = 4.0 * vae_parameters(preset.params.vae)
    if config.data.source == "packed":
        encoders += (4 if device_type == "cpu" else 2) * costs.encoder_parameters(preset.params.text)
    return MemoryPlan(
        weights=4.0 * (2 + (not full and config.start_from is not None)) * learned / ranks,
        moments=4.0 * 2 * 2 * learned / ranks,
        gradients=4.0 * learned / ranks,
        average=4.0 * learned / ranks if config.optim.ema_decay is not None else 0.0,
        teacher=teacher,
        copies=float(itemsize * copied),
        critic=16.0 * heads,
        activations=kept * (1 + tapped),
        encoders=encoders,
    )


def _gpu_speed(config: DistillConfig) -> float:
    return costs.PEAKS[config.hardware.kind][0] * config.hardware.mfu * config.hardware.gpus


def _measured(config: DistillConfig) -> float | None:
    """Seconds of a global step of an earlier part of this run: the median."""
    try:
        (run, *_) = status.find(config.run_dir)
    except UsageError:
        return None
    each = [row["step_seconds"] for row in run.rows if "loss_fake" in row and "step_seconds" in row]
    return median(each) if each else None


def as_data(plan: DistillPlan) -> dict[str, Any]:
    """For JSON."""
    return {**asdict(plan), "memory": {**asdict(plan.memory), "total": plan.memory.total}}
