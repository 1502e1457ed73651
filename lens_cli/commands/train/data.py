"""`lens train data`: from pictures as they are found to what training reads, a stage at a time or all in a row."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lens_cli import options

if TYPE_CHECKING:
    from lens_cli.work.train.data_call import Call

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
    int | None, typer.Option("--workers", min=0, help="Shards at once. 0: in this process \\[default: one a core].")
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
    from lens_cli.work.train.data_call import Call

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
    from lens_cli.work.train import data_stages

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
    from lens_cli.work.train import data_stages

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
    from lens_cli.work.train import data_stages

    data_stages.select(call_of("select", work, set_, engine, workers, dry_run, json, quiet))


@app.command("dedup")
def dedup(
    work: Work,
    set_: Set = None,
    engine: Engine = "local",
    workers: Workers = None,
    dry_run: DryRun = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Of pictures that are the same or look it, keep the best: same file, same look, CLIP embeddings above 0.985.

    The largest is the best, then the best liked. CLIP needs `score --set clip=MODEL`. Settings: kinds, most_bits,
    most_colour, cosine, probes, device
    """
    from lens_cli.work.train import data_packing

    data_packing.find_duplicates(call_of("dedup", work, set_, engine, workers, dry_run, json, quiet))


@app.command("caption")
def caption(
    work: Work,
    set_: Set = None,
    batch_out: Annotated[
        Path | None, typer.Option("--batch-out", help="Ask nothing: write OpenAI batch files (.jsonl) to this folder.")
    ] = None,
    batch_in: Annotated[
        list[Path] | None, typer.Option("--batch-in", help="Take answers from this batch file (repeatable).")
    ] = None,
    dry_run: DryRun = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Have each kept picture described by a vision model behind an OpenAI-compatible endpoint.

    lens train data caption work/ --set model=NAME --set base_url=http://127.0.0.1:8000/v1 · an answer is never paid for
    twice; a key is the setting reasoner.api_key · vllm run-batch reads and writes the batch files, too · settings:
    model, base_url, prompt, brief, own, side, attempts, at_once, least_words, most_words, language, price_in, …
    """
    from backend.errors import UsageError
    from lens_cli.work.train import data_packing

    if batch_out is not None and batch_in:
        raise UsageError("--batch-out and --batch-in exclude each other", hint="first in, then out what is still open")
    call = call_of("caption", work, set_, "local", 0, dry_run, json, quiet)
    data_packing.caption(call, batch_out=batch_out, batch_in=batch_in or [])


@app.command("bucket")
def bucket(
    work: Work,
    set_: Set = None,
    engine: Engine = "local",
    workers: Workers = None,
    dry_run: DryRun = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Give each picture one of the 27 shapes of training, and its crop. No pixel is touched yet.

    Only `upscale` lets a picture be enlarged.

    lens train data bucket work/ --set bases=512 --set ratios=1:1 · settings: bases, ratios, upscale, least_kept,
    weights
    """
    from lens_cli.work.train import data_packing

    data_packing.bucket(call_of("bucket", work, set_, engine, workers, dry_run, json, quiet))


@app.command("pack")
def pack(
    work: Work,
    set_: Set = None,
    engine: Engine = "local",
    workers: Workers = None,
    dry_run: DryRun = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Crop, scale and write WORK/pack: WebDataset tars, a folder a shape, and the index that training reads.

    lens train data pack work/ --set format=webp --set quality=90 · settings: text (caption, brief, alt), format,
    quality, tar_bytes, max_chars
    """
    from lens_cli.work.train import data_packing

    data_packing.pack(call_of("pack", work, set_, engine, workers, dry_run, json, quiet))


@app.command("text-images")
def text_images(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the tars.")],
    set_: Set = None,
    engine: Engine = "local",
    workers: Workers = None,
    dry_run: DryRun = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Draw words on backgrounds, with captions that quote them: a source for scan. The paper's fourth.

    lens train data text-images texts/ --set count=10000 --set fonts=FONTS/ · settings: count, seed, bases, fonts,
    texts, backgrounds, most_texts, turned, most_degrees, blurred, outlined, quality
    """
    from lens_cli.work.train import data_packing

    data_packing.text_images(call_of("text-images", out, set_, engine, workers, dry_run, json, quiet))


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
    from lens_cli.work.train import data_stages

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
    from lens_cli.work.train import data_stages

    data_stages.run_all(call_of("run", work, set_, engine, workers, dry_run, json, quiet), sources or [])
