"""`lens train distill` behind its flags: run it, or say what it would take."""

from __future__ import annotations

import shlex

from backend.disk import free_bytes
from backend.errors import counted, human_bytes
from backend.presets import Preset
from lens_cli.terminal.console import Talk
from lens_cli.terminal.training import live
from lens_cli.work.train.model import planned_device, planned_model
from lens_cli.work.train.plan_page import show_plan
from lens_cli.work.train.status import duration
from train.distill import plan as plans
from train.distill.config import DistillConfig, refuse_distilled
from train.run import costs


def distil(config: DistillConfig, talk: Talk) -> None:
    """Train; what was written on stdout, and as the last line of all the command that tries it. Raises LensError."""
    from train.distill.run import run

    with live(talk, config.warm.steps + config.steps) as say:
        result = run(config, say)
    talk.data(result.path)
    drawn_with = ["-m", config.model, "--lora", str(result.path)] if config.form == "adapters" else ["-m", result.path]
    words = ["lens", "gen", result.prompt, *map(str, drawn_with), "--steps", str(config.grid_steps), "--guidance", "1"]
    talk.say(f"these are the weights of step {result.best:,}, the best of held-out prompts (score {result.score:.3g})")
    talk.say(f"look at {config.run_dir / 'previews'} and lens train status {shlex.quote(str(config.run_dir))}")
    talk.say(f"try it: {shlex.join(words)}")
    numbers = {"run_dir": str(config.run_dir), "steps": result.step, "best": result.best, "score": result.score}
    talk.result({**numbers, "files": [str(result.path)], "try": shlex.join(words)})


def explain(config: DistillConfig, talk: Talk) -> None:
    """What the run takes, on stdout. Loads no weights, writes nothing."""
    preset, files, missing = planned_model(config.model)
    if config.teacher is None:
        refuse_distilled(preset)
    device_type = planned_device(config.machine.device, preset)
    plan = plans.make(config, preset, files, device_type)
    rows = lines(config, preset, plan, device_type)
    if config.data.source == "captions" and config.data.path is None:
        missing.append("no captions are named yet: lens train rl prompts write FILE, then --set data.path=FILE")
    elif config.data.source == "packed" and config.data.work is None:
        missing.append("no data are named yet: --data WORK, a work folder of lens train data")
    show_plan(config, rows, {"plan": plans.as_data(plan)}, talk, disk=plan.disk, missing=missing)


def lines(config: DistillConfig, preset: Preset, plan: plans.DistillPlan, device_type: str) -> list[str]:
    """What a person reads."""
    hardware, memory = config.hardware, plan.memory
    bases = ", ".join(f"{base.base} x {base.base}" for base in config.stage_of(preset).bases)
    detail = ", ".join(f"{name} {human_bytes(value)}" for name, value in vars(memory).items() if value)
    out = [
        f"pictures   {plan.pictures:,} an update, at {bases} pixels and shapes of that area; {plan.seen:,} in all",
        f"steps      {config.warm.steps:,} warm, then {config.steps:,} global: {config.fake.updates} updates of fake "
        f"model and discriminator, one of the student, made for {config.grid_steps} steps",
        f"learned    {plan.learned:,} numbers",
        f"operations {plan.step_flops:.3g} a global step"
        + (f", {plan.warm_flops:.3g} a warm one" if config.warm.steps else ""),
    ]
    if device_type == "cpu":
        out.append(f"memory     about {human_bytes(memory.total)}; {detail}")
        where = "on one core"
    else:
        room = costs.PEAKS[hardware.kind][1]
        verdict = "fits" if memory.total < 0.92 * room else "does NOT fit"
        out.append(
            f"memory     about {human_bytes(memory.total)} on each of {hardware.gpus} {hardware.kind} "
            f"({human_bytes(room)}): {verdict}; {detail}"
        )
        where = f"on {hardware.gpus} {hardware.kind} at {hardware.mfu:.0%} of the peak, which is an estimate"
    out += [
        f"disk       {human_bytes(plan.checkpoint)} a checkpoint, {human_bytes(plan.disk)} in all; "
        f"{human_bytes(free_bytes(config.run_dir))} are free there",
        f"time       about {duration(plan.estimated)} {where}, {duration(plan.looking)} of it for "
        f"{counted(plan.looks, 'look')} at {counted(plan.looked_at, 'held-out picture')}; judging them comes on top",
    ]
    if config.data.source == "captions" or (config.data.source == "drawn" and config.data.real == "teacher"):
        out.append(
            f"           and before it {2 * config.made.steps} forward passes a caption, for the teacher's pictures"
        )
    if plan.measured is not None:
        out.append(f"           as measured in this run, {plan.measured:.1f} s a global step")
    return out
