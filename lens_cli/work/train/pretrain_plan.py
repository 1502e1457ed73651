"""`lens train pretrain --dry-run`: memory, disk, hours, tokens and money before anything starts. Light."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from backend.disk import free_bytes
from backend.errors import UsageError, human_bytes
from backend.memory.footprint import vae_parameters
from backend.presets import PRESETS, get
from lens_cli.terminal.console import Talk
from lens_cli.work.train.plan_page import show_plan
from lens_cli.work.train.status import duration
from train.config import PretrainConfig
from train.run import costs


def show(config: PretrainConfig, talk: Talk) -> None:
    """What the run takes, on stdout. Raises UsageError for an unknown GPU, and what `packed` raises."""
    plan: dict[str, Any] = {**make(config), "data": packed(config)}
    missing = _missing(config, plan["data"])
    show_plan(config, lines(config, plan), {"plan": plan}, talk, disk=plan["disk_bytes"], missing=missing)


def _missing(config: PretrainConfig, data: dict[str, Any] | None) -> list[str]:
    """What the run needs and has not."""
    if data is not None or config.data.source != "packed":
        return []
    if config.data.work is None:
        return ["no data are named yet: --data WORK, a work folder of lens train data"]
    return [f"{config.data.work / 'pack'} holds no packed pictures: nothing is said about the data"]


def make(config: PretrainConfig) -> dict[str, Any]:
    """The numbers. Raises UsageError."""
    hardware = config.hardware
    if hardware.kind not in costs.PEAKS:
        raise UsageError(f"hardware.kind={hardware.kind!r} is unknown", hint=f"one of {', '.join(costs.PEAKS)}")
    peak, room = costs.PEAKS[hardware.kind]
    stages: list[dict[str, Any]] = []
    for stage in config.stages:
        flops = costs.step_flops(config, stage)
        memory = costs.memory(config, stage, _encoder_bytes(config))
        seconds = flops / (peak * hardware.mfu * hardware.gpus)
        stages.append(
            {
                "pictures": stage.steps * stage.pictures,
                "image_tokens": stage.steps * costs.stage_tokens(stage),
                "text_tokens": stage.steps * stage.pictures * config.caption_tokens,
                "flops": stage.steps * flops,
                "seconds_per_step": seconds,
                "hours": stage.steps * seconds / 3600,
                "memory": {**asdict(memory), "total": memory.total},
            }
        )
    count = costs.parameters(config.params)
    hours = sum(stage["hours"] for stage in stages)
    on_gpu, on_cpu = config.machine.device.startswith("cuda"), config.machine.device == "cpu"
    flops = sum(stage["flops"] for stage in stages)
    return {
        "parameters": count,
        "checkpoint_bytes": costs.checkpoint_bytes(config),
        "disk_bytes": (config.saving.keep + 1) * costs.checkpoint_bytes(config),
        "stages": stages,
        "gpu_bytes": room,
        # By a GPU's peak, or by a core whose speed was measured: how many work together is not known beforehand.
        "hours": hours if on_gpu else flops / costs.CORE_TRAINING / 3600 if on_cpu else None,
        "gpu_hours": hours * hardware.gpus if on_gpu else None,
        "money": hours * hardware.gpus * hardware.price if on_gpu and hardware.price is not None else None,
    }


def packed(config: PretrainConfig) -> dict[str, Any] | None:
    """What the packed pictures come to in this plan; None for other sources, and before the packing.

    Raises what the run itself would: FileError for a tar that is gone or for held-out pictures that are not there,
    UsageError where they are trained on too, or where the plan has no batch size for a base of the data.
    """
    data = config.data
    if data.source != "packed" or data.work is None or not (data.work / "pack").is_dir():
        return None
    from train.batches.open_packs import open_packed  # pyarrow, only for data that are there

    opened = open_packed(data, config.stages, config.seed)
    index = opened.index
    stages: list[dict[str, Any]] = []
    for place, stage in enumerate(config.stages):
        reader = opened.readers.get(place)  # None: a stage without steps
        stages.append(
            {
                "epochs": stage.steps * stage.groups / reader.epoch_batches if reader else 0.0,
                "left_out": sum(reader.left_out().values()) if reader else 0,  # of each epoch, others every time
            }
        )
    shapes = [(bucket.width, bucket.height, len(bucket)) for bucket in index.buckets]
    latents, features = costs.cache_bytes(config, shapes)
    return {
        "pictures": len(index),
        "shapes": len(shapes),
        "stages": stages,
        "cache": {"kept": data.cache is not None, "latents": latents, "features": features},
    }


def _data_lines(config: PretrainConfig, data: dict[str, Any]) -> list[str]:
    out = [f"data       {data['pictures']:,} pictures of {data['shapes']} shapes"]
    for number, part in enumerate(data["stages"]):
        line = f"stages.{number}   sees each picture {part['epochs']:.2f} times"
        if part["left_out"]:
            line += f"; an epoch leaves out {part['left_out']:,} that fill no batch of their shape, others every time"
        out.append(line)
    cache = data["cache"]
    size = f"latents {human_bytes(cache['latents'])} and text features about {human_bytes(cache['features'])}"
    assert config.data.source == "packed"
    if config.data.cache is None:
        out.append(f"cache      none; --set data.cache=FOLDER would keep {size}")
    else:
        brief = "; brief captions come on top" if config.data.brief_share else ""
        free = human_bytes(free_bytes(config.data.cache))
        out.append(f"cache      {size} in {config.data.cache}, where {free} are free{brief}")
    return out


def lines(config: PretrainConfig, plan: dict[str, Any]) -> list[str]:
    """What a person reads. Everything is an estimate but parameters, pictures, tokens and disk."""
    hardware = config.hardware
    out = [f"network    {plan['parameters']:,} parameters"]
    for number, (stage, part) in enumerate(zip(config.stages, plan["stages"], strict=True)):
        out.append(
            f"stages.{number}   {stage.steps:,} steps of {stage.pictures:,.0f} pictures: {part['pictures']:,.0f} "
            f"pictures, {part['image_tokens']:.3g} image and {part['text_tokens']:.3g} text tokens, "
            f"{part['flops']:.3g} operations"
        )
    if plan["data"] is not None:
        out += _data_lines(config, plan["data"])
    out.append(
        f"disk       {human_bytes(plan['checkpoint_bytes'])} a checkpoint; "
        f"{human_bytes(plan['disk_bytes'])} with the {config.saving.keep} that are kept and the one being written; "
        f"{human_bytes(free_bytes(config.run_dir))} are free there"
    )
    worst = max((part["memory"] for part in plan["stages"]), key=lambda memory: memory["total"])
    detail = ", ".join(f"{key} {human_bytes(value)}" for key, value in worst.items() if value and key != "total")
    if not config.machine.device.startswith("cuda"):
        out.append(f"memory     about {human_bytes(worst['total'])}: {detail}")
        device, hours = config.machine.device, plan["hours"]
        known = (
            None if hours is None else f"about {duration(3600 * hours)} of one core (AVX-512 with bfloat16), calculated"
        )
        out.append(f"time       {known or f'not known for {device} before it runs'}")
        return out
    verdict = "fits" if worst["total"] < 0.92 * plan["gpu_bytes"] else "does NOT fit"
    out.append(
        f"memory     about {human_bytes(worst['total'])} on each of {hardware.gpus} {hardware.kind} "
        f"({human_bytes(plan['gpu_bytes'])}): {verdict}; {detail}"
    )
    if config.frozen.text_encoder is not None and _stated_parameters(config.frozen.text_encoder) is None:
        out.append(f"           without the text encoder {config.frozen.text_encoder}, whose size is not known here")
    for number, part in enumerate(plan["stages"]):
        if len(plan["stages"]) > 1:
            out.append(f"stages.{number}   about {duration(3600 * part['hours'])}")
    out.append(
        f"time       about {duration(3600 * plan['hours'])}, {plan['gpu_hours']:,.0f} GPU-hours, if {hardware.gpus} "
        f"{hardware.kind} reach {100 * hardware.mfu:g} % of their peak (hardware.mfu)"
    )
    if plan["money"] is None:
        out.append("money      say what a GPU-hour costs: --set hardware.price=2.5")
    else:
        out.append(f"money      about {plan['money']:,.0f} at {hardware.price:g} a GPU-hour")
    return out


def _encoder_bytes(config: PretrainConfig) -> float:
    """Add up the frozen networks on a GPU, as far as their sizes are known without opening them."""
    if config.data.source == "random" or config.frozen.encoders is None:
        return 0.0
    known = get(config.frozen.encoders) if config.frozen.encoders in PRESETS else get("lens")
    vae = 4.0 * vae_parameters(known.params.vae)
    if config.frozen.text_encoder is None:
        return vae + 2.0 * costs.encoder_parameters(known.params.text)
    return vae + 2.0 * (_stated_parameters(config.frozen.text_encoder) or 0.0)


def _stated_parameters(name: str) -> float | None:
    """Read the size of a language model off its name, as Qwen3-0.6B states it; None where it does not."""
    stated = re.search(r"(\d+(?:\.\d+)?)\s*[bB](?![a-zA-Z])", Path(name).name)
    return 1e9 * float(stated.group(1)) if stated else None
