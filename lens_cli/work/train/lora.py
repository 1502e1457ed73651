"""`lens train lora` behind its flags: run it, or say what it would take."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path

from backend.disk import free_bytes
from backend.errors import CancelledError, human_bytes
from backend.memory.footprint import CUDA_CONTEXT, CUDA_LIBRARIES
from backend.memory.plan import find_profile
from backend.presets import Preset
from lens_cli.terminal.console import Talk
from lens_cli.terminal.training import live
from lens_cli.work.train.model import planned_model
from lens_cli.work.train.plan_page import show_plan
from lens_cli.work.train.status import duration
from train.lora.config import LoraConfig
from train.lora.pictures import Folder, read_folder
from train.lora.plan import Forecast, forecast, notes, small_buckets


def tune(config: LoraConfig, talk: Talk) -> None:
    """Train; the files on stdout, and as the last line of all the command that tries them. Raises LensError."""
    from train.lora import run

    with live(talk, config.steps) as say:
        result = run.run(config, say)
    if not result.finished:
        for path in result.files:
            talk.data(path)
        raise CancelledError(
            f"stopped after step {result.step:,} of {config.steps:,}; the state and the files so far are saved",
            hint="the same command goes on from there",
        )
    for path in result.files:
        talk.data(path)
    talk.say(f"look at {config.run_dir / 'metrics.jsonl'}: lens train status {shlex.quote(str(config.run_dir))}")
    talk.say(try_it(config, result.files[0], result.caption))
    talk.result(
        {
            "run_dir": str(config.run_dir),
            "steps": result.step,
            "files": [str(path) for path in result.files],
            "try": try_it(config, result.files[0], result.caption),
        }
    )


def try_it(config: LoraConfig, path: Path, caption: str) -> str:
    """The command that draws with what was trained."""
    prompt = config.preview_prompt or caption
    words = ["lens", "gen", " ".join(prompt.split()), "-m"]
    words += [str(path)] if config.tune == "full" else [config.model, "--lora", str(path)]
    return shlex.join(words)


def explain(config: LoraConfig, talk: Talk, *, card: int | None = None) -> None:
    """What the run takes, on stdout. Reads the pictures; loads no weights, writes nothing.

    `card`: GB of the card that the recipe is made for. It is planned for where no GPU is here and no device was named.
    """
    preset, files, missing = planned_model(config.model)
    folder = read_folder(config, config.bases_of(preset))
    missing += [f"left out: {key}: {why}" for key, why in folder.left_out]
    device_type = _device_type(config)
    if card is not None and config.machine.device == "auto" and device_type == "cpu":
        talk.say(f"no GPU is here: this is the plan for the card of {card} GB that the recipe is made for")
        device_type = "cuda"
    missing += notes(config, preset, files, device_type)
    plan = forecast(config, preset, files, folder, device_type=device_type)
    rows = lines(config, preset, folder, plan)
    fits = None
    if card is not None and device_type != "cpu":
        room = room_on(card)
        least = f"about {human_bytes(plan.memory)} of the {human_bytes(room)} that a card of {card} GB leaves"
        fits = {"gb": card, "room": room, "fits": plan.memory <= room}
        rows.append(f"card       {'fits' if fits['fits'] else 'does not fit'}: {least}")
        missing += [] if fits["fits"] else [f"this does not fit a card of {card} GB: {least}"]
    shapes = [
        {"width": width, "height": height, "pictures": len(pictures)}
        for (height, width), pictures in folder.buckets().items()
    ]
    numbers = {
        "plan": {**asdict(plan), "memory": plan.memory, "disk": plan.disk},
        "buckets": shapes,
        "training": len(folder.training),
        "held_out": len(folder.held),
        "card": fits,
    }
    show_plan(config, rows, numbers, talk, disk=plan.disk, missing=missing)


def room_on(card: int) -> int:
    """Bytes that a run may take of a card of so many GB: its profile's share, less what CUDA itself takes."""
    row = find_profile(f"{card}GB")
    return round(row.card * row.share) - CUDA_CONTEXT - CUDA_LIBRARIES


def _device_type(config: LoraConfig) -> str:
    """cpu, cuda, …: a device that is asked for need not be here, since the plan may be made on another machine."""
    if config.machine.device != "auto":
        return config.machine.device.partition(":")[0]
    from backend.memory.device import choose_device

    return choose_device("auto").type


def lines(config: LoraConfig, preset: Preset, folder: Folder, plan: Forecast) -> list[str]:
    """What a person reads. Pictures, epochs, numbers learned and checkpoints are counted; the rest is estimated."""
    total = len(folder.training) + len(folder.held)
    out = [f"pictures   {total:,}: {len(folder.training):,} to train on, {len(folder.held):,} held out"]
    for (height, width), pictures in folder.buckets().items():
        out.append(f"  {width:>4} x {height:<4}  {len(pictures):,}")
    for (height, width), count in small_buckets(config, folder):
        out.append(f"  {width} x {height} has {count}, fewer than a batch of {config.batch}: its batches are smaller")
    out.append(f"bases      {', '.join(map(str, config.bases_of(preset)))} pixels")
    out.append(
        f"steps      {config.steps:,} of {config.pictures_per_step} pictures: each is seen {plan.epochs:.1f} times"
    )
    out.append(f"learned    {plan.learned:,} numbers")
    base = "" if config.tune == "full" else f"base {human_bytes(plan.base)} ({plan.scheme or 'not packed'}), "
    learned = "weights" if config.tune == "full" else "adapters"
    out.append(
        f"memory     {base}{learned} with gradients and moments {human_bytes(plan.state)}, activations about "
        f"{human_bytes(plan.activations)}: about {human_bytes(plan.memory)}, and before that the autoencoder with "
        f"{human_bytes(plan.encoders)}"
    )
    out.append(
        f"disk       latents {human_bytes(plan.latents)}, text features about {human_bytes(plan.features)}, "
        f"checkpoints {human_bytes(plan.checkpoints)}, files {human_bytes(plan.files)}; "
        f"{human_bytes(free_bytes(config.run_dir))} are free there"
    )
    if plan.hours is None:
        out.append("hours      not known before the run has made some steps: run it, and ask again")
    else:
        out.append(
            f"hours      {duration(3600 * plan.hours)} are left at {plan.pictures_per_s:.3g} pictures/s, as measured "
            "in this run; validation and previews come on top"
        )
    return out
