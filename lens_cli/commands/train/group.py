"""`lens train`: the stages that make a model, and `nano`, the whole small model from nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lens_cli import options
from lens_cli.commands.train import data, distill, lora, pretrain, rl

app = typer.Typer(no_args_is_help=True, help="Train models.")
app.add_typer(data.app, name="data")
app.command("pretrain")(pretrain.pretrain)
app.command("lora")(lora.lora)
app.add_typer(rl.app, name="rl")
app.command("distill")(distill.distill)
app.command("status")(pretrain.status)
app.command("export")(pretrain.export)

RunDir = Annotated[Path, typer.Option("--run-dir", help="Where the run lives. The same folder again resumes it.")]
Recipe = Annotated[str, typer.Option("--recipe", help="nano: all of Lens-Nano. nano-smoke: seconds, to see it work.")]
Parts = Annotated[
    list[str] | None, typer.Option("--part", help="Only this part (repeatable): vae, language, transformer, export.")
]
Set = Annotated[
    list[str] | None, typer.Option("--set", help="key=value, repeatable: vae.steps=500, seed=1, machine.device=cuda.")
]
Out = Annotated[Path | None, typer.Option("--out", help="Folder for the finished model \\[default: RUN_DIR/model].")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print parts, memory, disk, hours, and stop.")]


@app.command("nano")
def nano(
    run_dir: RunDir = Path("runs/nano"),
    recipe: Recipe = "nano",
    part: Parts = None,
    set_: Set = None,
    out: Out = None,
    dry_run: DryRun = False,
    settings: options.RecipeSettings = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Train Lens-Nano from nothing: autoencoder, language model, transformer; then write its three files.

    Running the same command again resumes where it stopped. The finished model is a folder that `-m` takes:
    lens train nano --recipe nano-smoke --run-dir runs/smoke && lens gen "a red ball" -m runs/smoke/model
    """
    from train.recipes import check_parts, nano_config, set_fields  # light: dataclasses only

    talk = options.talk_for("train nano", json=json, quiet=quiet)
    check_parts(part or ())
    config = set_fields(nano_config(recipe, run_dir), set_ or [])
    parts = tuple(part) if part else None
    if settings:
        from lens_cli.work.train.plan_page import show_settings

        show_settings(config, talk)
        return
    if dry_run:
        from lens_cli.work.train.nano_plan import explain

        explain(config, parts, talk)
        return
    from lens_cli.work.train.recipes import run_nano  # torch: 1.4 s

    run_nano(config, parts, out, talk)
