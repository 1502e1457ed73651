"""`lens train pretrain`, `status` and `export`: one pre-training run from its plan to its files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lens_cli import options

RunDir = Annotated[
    Path | None, typer.Option("--run-dir", help="Where the run lives; again, it resumes \\[default: runs/RECIPE].")
]
Recipe = Annotated[
    str,
    typer.Option("--recipe", help="paper-512, paper-mixed, toy-1.2b, one-24gb, nano, or nano-smoke: under a minute."),
]
Data = Annotated[Path | None, typer.Option("--data", help="Work folder that `lens train data` has packed.")]
Random = Annotated[bool, typer.Option("--random", help="Noise instead of data and frozen networks, to time a step.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="key=value, repeatable: seed=1, stages.0.steps=500, optim.clip=2, machine.device=cuda."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print memory, disk, hours, tokens and money, and stop.")]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")]
Svg = Annotated[Path | None, typer.Option("--svg", help="Write the loss curves here as well.")]
Weights = Annotated[
    str | None, typer.Option("--weights", help="ema: averaged (the default where kept). model: as trained.")
]
DType = Annotated[str, typer.Option("--dtype", help="bfloat16 or float32.")]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Folder to write to \\[default: RUN/export].")]


def pretrain(
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
    """Pre-train a transformer by the paper's recipe, or a smaller one. The same command again resumes.

    On many GPUs: torchrun --nproc-per-node 8 -m train.pretrain --recipe paper-512 --data WORK
    """
    from train.recipes import choose  # light: dataclasses only

    talk = options.talk_for("train pretrain", json=json, quiet=quiet)
    config = choose(recipe, run_dir, set_ or [], data=data, random=random)
    if settings:
        from lens_cli.work.train.plan_page import show_settings

        show_settings(config, talk)
        return
    if dry_run:
        from lens_cli.work.train.pretrain_plan import show

        show(config, talk)
        return
    from lens_cli.work.train.recipes import run_pretrain  # torch: 1.4 s

    run_pretrain(config, talk)


def status(run: Run, svg: Svg = None, json: options.Json = False, quiet: options.Quiet = False) -> None:
    """Say how far a run is, how fast, and draw its loss. Reads files only, also while the run goes on."""
    from lens_cli.work.train.status import status as show

    show(run, svg, options.talk_for("train status", json=json, quiet=quiet))


def export(
    run: Run,
    out: Out = None,
    weights: Weights = None,
    dtype: DType = "bfloat16",
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Write a run's transformer as diffusers' folder and as one safetensors file. `lens gen -m` takes both."""
    from lens_cli.work.train.recipes import run_export

    talk = options.talk_for("train export", json=json, quiet=quiet)
    run_export(run, out if out is not None else run / "export", weights, dtype, talk)
