"""`lens train nano --dry-run`: what each part of Lens-Nano's training takes, before anything starts. Light."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from backend.disk import free_bytes
from backend.errors import human_bytes
from lens_cli.terminal.console import Talk
from lens_cli.work.train.plan_page import core_time, show_plan
from lens_cli.work.train.status import duration
from train.recipes import PARTS, NanoConfig, transformer_of
from train.run import costs

# Seconds of one core (AVX-512 with bfloat16) for a step of the recipe's size, by processor time, drawing included:
# 16 crops of 64 x 64 and 8 of 128 x 128 of the autoencoder, 4,096 tokens of the language model, not compiled.
CROPS, WHOLE, TOKENS = 0.30 / 16, 0.76 / 8, 1.43 / 4096


def explain(config: NanoConfig, parts: Sequence[str] | None, talk: Talk) -> None:
    """What the run takes, on stdout. Writes nothing."""
    plan = make(config, parts or PARTS)
    show_plan(config, lines(config, plan), {"plan": plan}, talk, disk=plan["disk_bytes"])


def make(config: NanoConfig, parts: Sequence[str]) -> dict[str, Any]:
    """The numbers, of the parts that were asked for; seconds of one core, None on a GPU, of which nothing is known."""
    transformer = transformer_of(config)
    seconds = {
        "vae": CROPS * config.vae.steps * config.vae.batch + WHOLE * config.vae.whole_steps * config.vae.whole_batch,
        "language": TOKENS * config.language.steps * config.language.tokens,
        "transformer": sum(
            stage.steps * costs.step_flops(transformer, stage) / costs.CORE_TRAINING for stage in config.stages
        ),
    }
    here = config.machine.device == "cpu"
    kept = costs.checkpoint_bytes(transformer)
    return {
        "parts": [part for part in PARTS if part in parts],
        "parameters": costs.parameters(config.params.dit),
        "pictures": sum(stage.steps * stage.pictures for stage in config.stages),
        "memory_bytes": max(costs.memory(transformer, stage, 0.0).total for stage in config.stages if stage.steps),
        "disk_bytes": (config.saving.keep + 1) * kept,
        "seconds": {part: value for part, value in seconds.items() if part in parts} if here else None,
    }


def lines(config: NanoConfig, plan: dict[str, Any]) -> list[str]:
    """What a person reads; memory and time are estimates."""
    vae, language, seconds = config.vae, config.language, plan["seconds"]
    told = {
        "vae": f"{vae.steps:,} steps of {vae.batch} crops, {vae.whole_steps:,} of {vae.whole_batch} larger ones",
        "language": f"{language.steps:,} steps of {language.tokens:,} tokens",
        "transformer": f"{plan['parameters']:,} parameters; {plan['pictures']:,.0f} drawn pictures, "
        + ", ".join(f"{stage.steps:,} steps at {stage.base}" for stage in config.stages),
        "export": "three files that -m takes",
    }
    out = [f"run         {config.run_dir}"]
    for part in plan["parts"]:
        about = f": about {duration(seconds[part])}" if seconds and part in seconds else ""
        out.append(f"{part:<12}{told[part]}{about}")
    out.append(f"memory      about {human_bytes(plan['memory_bytes'])}, of the transformer's training")
    out.append(
        f"disk        {human_bytes(plan['disk_bytes'])} of checkpoints; {human_bytes(free_bytes(config.run_dir))} "
        "are free there"
    )
    whole = None if seconds is None else sum(seconds.values())
    return [*out, f"time        {core_time(whole, config.machine.device)}"]
