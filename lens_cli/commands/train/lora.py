"""`lens train lora`: fine-tuning on a folder of pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from backend.types import Quant
from lens_cli import options

Pictures = Annotated[
    Path,
    typer.Argument(metavar="PICTURES", help="Folder of pictures, a.txt beside a.png; or a WORK of `train data`."),
]
Model = Annotated[str, typer.Option("--model", "-m", help="The model to tune: a name from `lens models list`, a path.")]
RunDir = Annotated[
    Path | None, typer.Option("--run-dir", help="Where the run lives; again, it resumes \\[default: runs/PICTURES].")
]
Recipe = Annotated[
    str | None,
    typer.Option("--recipe", help="lora (24 GB), lora-8gb (NF4), full, or nano \\[default: nano for nano, else lora]."),
]
Quantise = Annotated[
    Quant | None,
    typer.Option(
        "--quant", help="How the frozen weights lie in memory: nf4 (QLoRA), int8, gguf, none; auto: the recipe's."
    ),
]
Full = Annotated[bool, typer.Option("--full", help="Train all weights instead of adapters.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help='key=value, repeatable: rank=32, targets=attn,mod, steps=800, caption="a sks dog", bases=512, skip=true.',
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print memory, disk, buckets, epochs, hours, and stop.")]


def lora(
    pictures: Pictures,
    model: Model = "nano",
    run_dir: RunDir = None,
    recipe: Recipe = None,
    quant: Quantise = None,
    full: Full = False,
    set_: Set = None,
    dry_run: DryRun = False,
    settings: options.RecipeSettings = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Fine-tune a model on your own pictures: a LoRA, or with --full all of it. The same command again resumes.

    lens train lora PICTURES -m lens-base --run-dir runs/dog --set trigger="a sks dog"
    """
    from train.lora.config import CARDS, choose, recipe_name  # light: dataclasses only

    talk = options.talk_for("train lora", json=json, quiet=quiet)
    config = choose(pictures, model, run_dir, set_ or [], recipe=recipe, quant=quant, full=full)
    if settings:
        from lens_cli.work.train.plan_page import show_settings

        show_settings(config, talk)
        return
    if dry_run:
        from lens_cli.work.train.lora import explain

        explain(config, talk, card=CARDS.get(recipe_name(model, recipe, full)))
        return
    from lens_cli.work.train.lora import tune  # torch: 1.4 s

    tune(config, talk)
