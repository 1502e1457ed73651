"""`lens train data`: from pictures as they are found to what training reads, a stage at a time or all in a row."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lens_cli import options

if TYPE_CHECKING:
    from lens_cli.data_stages import Call

app = typer.Typer(
    no_args_is_help=True,
    help="Filter, caption, deduplicate and pack pictures. Every stage can be stopped and run again.",
)

Work = Annotated[Path, typer.Argument(metavar="WORK", help="The work folder: made by scan, read by all the others.")]
Sources = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[NAME=]PATH...", help="Folders of pictures, .tar or .parquet files. Left out: those of last time."
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="key=value, repeatable; remembered in WORK/config.json. key=default forgets it."),
]
RunSet = Annotated[
    list[str] | None, typer.Option("--set", help="stage.key=value, repeatable: select.entropy=2, score.clip=PATH.")
]
Engine = Annotated[str, typer.Option("--engine", help="local: worker processes. ray: the cluster of RAY_ADDRESS.")]
Workers = Annotated[
    int | None, typer.Option("--workers", min=0, help="Shards at once. 0: in this process [default: one a core].")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say how much there is to do, and write nothing.")]


def call_of(
    stage: str,
    work: Path,
    set_: list[str] | None,
    engine: str,
    workers: int | None,
    dry_run: bool,
    json: bool,
    quiet: bool,
) -> Call:
    """What every stage is given."""
    from lens_cli.data_stages import Call

    talk = options.talk_for(f"train data {stage}", json=json, quiet=quiet)
    return Call(work.expanduser().resolve(), tuple(set_ or ()), engine, workers, dry_run, talk)


@app.command("scan")
def scan(
    work: Work,
    sources: Sources = None,
    set_: Set = None,
    engine: Engine = "local",
    workers: Workers = None,
    dry_run: DryRun = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """List the sources, deal their pictures into shards, read every head and caption.

    lens train data scan work/ photos/ posters=designs.tar · settings: shard_size, max_pixels, caption_suffix,
    image_column, path_column, caption_column
    """
    from lens_cli import data_stages

    data_stages.scan(call_of("scan", work, set_, engine, workers, dry_run, json, quiet), sources or [])


@app.command("score")
def score(
    work: Work,
    set_: Set = None,
    engine: Engine = "local",
    workers: Workers = None,
    dry_run: DryRun = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure every picture: broken, clarity, entropy, luminance; with a model named: nsfw, aesthetic, watermark, clip.

    lens train data score work/ --set nsfw=Freepik/nsfw_image_detector --set download=true · settings: filters, nsfw,
    watermark, aesthetic, aesthetic_head, clip, download, batch, device
    """
    from lens_cli import data_stages

    data_stages.score(call_of("score", work, set_, engine, workers, dry_run, json, quiet))


@app.command("select")
def select(
    work: Work,
    set_: Set = None,
    engine: Engine = "local",
    workers: Workers = None,
    dry_run: DryRun = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Apply the thresholds to the scores. Nothing is deleted; another threshold scores nothing anew.

    lens train data select work/ --set clarity=80 --set posters.entropy=none · thresholds: broken, area, aspect, nsfw,
    aesthetic, watermark, clarity, entropy, dark, bright, nsfw_labels, watermark_labels; none: not applied
    """
    from lens_cli import data_stages

    data_stages.select(call_of("select", work, set_, engine, workers, dry_run, json, quiet))


@app.command("report")
def report(
    work: Work,
    set_: Set = None,
    dry_run: DryRun = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Write WORK/report.html: the funnel, histograms, pictures near each threshold, lengths of captions.

    One file without links to others: it can be sent to someone. Settings: near (pictures a threshold), side (pixels)
    """
    from lens_cli import data_stages

    data_stages.report(call_of("report", work, set_, "local", 0, dry_run, json, quiet))


@app.command("run")
def run(
    work: Work,
    sources: Sources = None,
    set_: RunSet = None,
    engine: Engine = "local",
    workers: Workers = None,
    dry_run: DryRun = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """All stages in their order. What is done already is passed over.

    lens train data run work/ photos/ --set select.clarity=80
    """
    from lens_cli import data_stages

    data_stages.run_all(call_of("run", work, set_, engine, workers, dry_run, json, quiet), sources or [])
