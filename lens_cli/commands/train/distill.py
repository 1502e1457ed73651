"""`lens train distill`: few steps without guidance, from a model that needs many with it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lens_cli import options

RunDir = Annotated[
    Path | None,
    typer.Option("--run-dir", help="Where the run lives; again, it resumes \\[default: runs/distill-RECIPE]."),
]
Recipe = Annotated[
    str, typer.Option("--recipe", help="paper, one-gpu, one-gpu-24gb, nano (CPU, hours), or nano-smoke: a minute.")
]
Data = Annotated[Path | None, typer.Option("--data", help="Work folder of packed pictures (lens train data pack).")]
Random = Annotated[bool, typer.Option("--random", help="Noise instead of data, to time a step.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="key=value, repeatable: model=M, start_from=RL.safetensors, steps=500, student.guidance=4."
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print memory, disk, hours, and stop.")]


def distill(
    recipe: Recipe = "nano-smoke",
    run_dir: RunDir = None,
    data: Data = None,
    random: Random = False,
    set_: Set = None,
    dry_run: DryRun = False,
    settings: options.RecipeSettings = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Make a model draw in four steps without guidance (distribution matching). The same command again resumes.

    lens train distill --recipe one-gpu --set model=lens --set data.path=prompts.jsonl
    Writes an adapter: lens gen PROMPT -m MODEL --lora RUN/lora.safetensors --steps 4 --guidance 1
    """
    from train.distill.config import choose  # light: dataclasses only

    talk = options.talk_for("train distill", json=json, quiet=quiet)
    config = choose(recipe, run_dir, set_ or [], data=data, random=random)
    if settings:
        from lens_cli.work.train.plan_page import show_settings

        show_settings(config, talk)
        return
    if dry_run:
        from lens_cli.work.train.distill import explain

        explain(config, talk)
        return
    from lens_cli.work.train.distill import distil  # torch: 1.4 s

    distil(config, talk)
