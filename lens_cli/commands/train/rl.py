"""`lens train rl`: reinforcement learning from a judge's verdicts, and `prompts`, what it draws."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lens_cli import options

app = typer.Typer(invoke_without_command=True)
prompts = typer.Typer(no_args_is_help=True, help="Prompts with rubrics: a JSONL file.")
app.add_typer(prompts, name="prompts")

RunDir = Annotated[
    Path | None, typer.Option("--run-dir", help="Where the run lives; again, it resumes \\[default: runs/rl-RECIPE].")
]
Recipe = Annotated[str, typer.Option("--recipe", help="paper, one-node, nano (CPU, hours), or nano-smoke: a minute.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="key=value, repeatable: prompts.path=P, judge.model=NAME, rollout.guidances=1, nft.kl_weight=1e-2.",
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print judge calls, memory, disk, hours, and stop.")]
Out = Annotated[Path, typer.Argument(metavar="FILE", help="The JSONL file to write.")]
File = Annotated[Path, typer.Argument(metavar="FILE", help="A JSONL file of prompts.")]
To = Annotated[int, typer.Option("--to", min=1, help="Prompts that are wanted (the paper's set has 8,406).")]
Seed = Annotated[int, typer.Option("--seed", help="Another seed, another set.")]
Writer = Annotated[
    str | None, typer.Option("--writer", help="Model that writes, at the reasoner's endpoint; left out: our grammar.")
]
BaseUrl = Annotated[str | None, typer.Option("--base-url", help="The endpoint \\[default: the reasoner's].")]
Calls = Annotated[int | None, typer.Option("--calls", min=0, help="Questions that may be asked at most.")]
Verdicts = Annotated[
    Path | None, typer.Option("--verdicts", help="Verdicts of a pilot: drop rubrics that can teach nothing.")
]
Kept = Annotated[Path | None, typer.Option("--out", "-o", help="With --verdicts: write what is left of the set here.")]

Adapters = Annotated[list[str], typer.Argument(metavar="FILE[=STRENGTH]...", help="Adapters: RUN/lora.safetensors.")]
MeasureOut = Annotated[Path, typer.Option("--out", "-o", help="Folder of all pictures and results.")]
Model = Annotated[str, typer.Option("--model", "-m", help="The base: a name or a path.")]
Images = Annotated[int, typer.Option("--images", min=1, max=100, help="Pictures of each prompt.")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Prompts, from the kinds in turn; 350 if left out.")]
Guidance = Annotated[
    list[float] | None,
    typer.Option("--guidance", min=0, max=100, help="Repeatable \\[default: as the model is served, and 1]."),
]
Steps = Annotated[int | None, typer.Option("--steps", min=1, max=250, help="Sampler steps \\[default: the model's].")]
Scenes = Annotated[int, typer.Option("--scenes", min=2, help="Drawn scenes whose flow-matching loss is told.")]
Compute = Annotated[str, typer.Option("--compute", help="Arithmetic: bfloat16 or float32.")]


@app.callback()
def rl(
    context: typer.Context,
    recipe: Recipe = "nano-smoke",
    run_dir: RunDir = None,
    set_: Set = None,
    dry_run: DryRun = False,
    settings: options.RecipeSettings = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Tune a model by what a judge says of its pictures (DiffusionNFT). The same command again resumes.

    Writes an adapter: lens gen PROMPT -m MODEL --lora RUN/lora.safetensors=STRENGTH, 0 to 1.5.
    lens train rl --recipe paper --set model=lens-base --set prompts.path=prompts.jsonl --set judge.model=NAME
    """
    if context.invoked_subcommand is not None:
        return
    from train.rl.config import choose  # light: dataclasses only

    talk = options.talk_for("train rl", json=json, quiet=quiet)
    config = choose(recipe, run_dir, set_ or [])
    if settings:
        from lens_cli.work.train.plan_page import show_settings

        show_settings(config, talk)
        return
    if dry_run:
        from lens_cli.work.train.rl import explain

        explain(config, talk)
        return
    from lens_cli.work.train.rl import tune  # torch: 1.4 s

    tune(config, talk)


@app.command("measure")
def measure(
    adapters: Adapters,
    out: MeasureOut,
    model: Model = "nano-base",
    images: Images = 3,
    limit: Limit = None,
    guidance: Guidance = None,
    steps: Steps = None,
    scenes: Scenes = 64,
    compute: Compute = "bfloat16",
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Compare a model with and without adapters on the prompts of `lens eval nano`, in pairs, kind by kind.

    Takes about 1.9 seconds of one core a picture of 20 steps, without guidance 1.1. The same command again goes on.
    lens train rl measure runs/rl/lora.safetensors -o runs/measured
    """
    from lens_cli.work.train.rl_measure import run

    run(
        model, adapters, out, options.talk_for("train rl measure", json=json, quiet=quiet), images=images, limit=limit,
        guidances=guidance or [], steps=steps, scenes=scenes, compute=compute,
    )  # fmt: skip


@prompts.command("write")
def write(
    out: Out,
    to: To = 8406,
    seed: Seed = 0,
    writer: Writer = None,
    base_url: BaseUrl = None,
    calls: Calls = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Make prompts with rubrics of our taxonomy. Answers are kept beside FILE: the same command goes on.

    lens train rl prompts write prompts.jsonl --writer NAME --base-url http://127.0.0.1:8000/v1
    """
    from lens_cli.work.train.rl_prompts import write as do

    do(out, to, seed, writer, base_url, calls, options.talk_for("train rl prompts write", json=json, quiet=quiet))


@prompts.command("check")
def check(
    file: File, verdicts: Verdicts = None, out: Kept = None, json: options.Json = False, quiet: options.Quiet = False
) -> None:
    """Say what is wrong with a set, line by line; with a pilot's verdicts also which rubrics teach nothing."""
    from lens_cli.work.train.rl_prompts import check as do

    do(file, verdicts, out, options.talk_for("train rl prompts check", json=json, quiet=quiet))


@prompts.command("stats")
def stats(file: File, json: options.Json = False, quiet: options.Quiet = False) -> None:
    """Print a set's numbers beside the paper's proportions."""
    from lens_cli.work.train.rl_prompts import stats as do

    do(file, options.talk_for("train rl prompts stats", json=json, quiet=quiet))
