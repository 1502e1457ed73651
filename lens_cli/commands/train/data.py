"""`lens train data`: from pictures as they are found to what training reads, a stage at a time or all in a row."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from backend.paths import expanded, resolved
from lens_cli import options
from train.data.filters import CLASSIC, LEARNED, Thresholds  # light: a table

if TYPE_CHECKING:
    from lens_cli.work.train.data.call import Call, DataStage

app = typer.Typer(
    no_args_is_help=True,
    help="Filter, caption, deduplicate and pack pictures. Every stage can be stopped and run again.",
)

Work = Annotated[Path, typer.Argument(metavar="WORK", help="The work folder: made by scan, read by all the others.")]
Out = Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the tars.")]
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
BatchOut = Annotated[
    Path | None, typer.Option("--batch-out", help="Ask nothing: write OpenAI batch files (.jsonl) to this folder.")
]
BatchIn = Annotated[
    list[Path] | None, typer.Option("--batch-in", help="Take answers from this batch file (repeatable).")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say how much there is to do, and write nothing.")]


def command(
    name: str, *, folder: Any = Work, settings: Any = Set, spread: bool = True, text: str | None = None, **own: Any
) -> Callable[[Callable[..., DataStage]], None]:
    """Register a function that makes a stage of a Call and of its own options; those that all commands share are added.

    `folder`, `settings`: the annotations of the first argument and of --set. `spread`: the stage runs shards, on
    --engine and with --workers. `text`: the help, where it is not the function's docstring. `own`: an annotation each,
    None where it is left out.
    """
    shared: dict[str, tuple[Any, Any]] = {"folder": (folder, inspect.Parameter.empty), "set_": (settings, None)}
    shared |= {key: (annotation, None) for key, annotation in own.items()}
    shared |= {"engine": (Engine, "local"), "workers": (Workers, None)} if spread else {}
    shared |= {"dry_run": (DryRun, False), "json": (options.Json, False), "quiet": (options.Quiet, False)}

    def register(make: Callable[..., DataStage]) -> None:
        def run(**given: Any) -> None:
            from lens_cli.work.train.data.call import Call, carry_out

            talk = options.talk_for(f"train data {name}", json=given["json"], quiet=given["quiet"])
            work, told = resolved(expanded(given["folder"])), tuple(given["set_"] or ())
            call = Call(work, told, given.get("engine", "local"), given.get("workers"), given["dry_run"], talk)
            carry_out(make(call, **{key: given[key] for key in own}), call)

        parameters = [
            inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)
            for key, (annotation, default) in shared.items()
        ]
        run.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportFunctionMemberAccess]
        app.command(name, help=text or inspect.getdoc(make))(run)

    return register


@command("scan", sources=Sources)
def scan(call: Call, sources: list[str] | None) -> DataStage:
    """List the sources, deal their pictures into shards, read every head and caption.

    lens train data scan work/ photos/ posters=designs.tar · settings: shard_size, max_pixels, caption_suffix,
    image_column, path_column, caption_column
    """
    from lens_cli.work.train.data.scan import ScanCommand

    return ScanCommand(call, sources or [])


@command(
    "score",
    text=f"""Measure every picture: {", ".join(CLASSIC)}; with a model named: {", ".join(LEARNED)}.

    lens train data score work/ --set nsfw=Freepik/nsfw_image_detector --set download=true · settings: filters, nsfw,
    watermark, aesthetic, aesthetic_head, clip, download, batch, device
    """,
)
def score(call: Call) -> DataStage:
    from lens_cli.work.train.data.score import ScoreCommand

    return ScoreCommand(call)


@command(
    "select",
    text=f"""Apply the thresholds to the scores. Nothing is deleted; another threshold scores nothing anew.

    lens train data select work/ --set clarity=80 --set posters.entropy=none · thresholds:
    {", ".join(field.name for field in fields(Thresholds))}; none: not applied
    """,
)
def select(call: Call) -> DataStage:
    from lens_cli.work.train.data.select import SelectCommand

    return SelectCommand(call)


@command("dedup")
def dedup(call: Call) -> DataStage:
    """Of pictures that are the same or look it, keep the best: same file, same look, CLIP embeddings above 0.985.

    The best has a caption, or will be given one; then the largest, then the best liked. CLIP needs `score --set
    clip=MODEL`. Settings: kinds, most_bits, most_colour, cosine, probes, device
    """
    from lens_cli.work.train.data.dedup import Dedup

    return Dedup(call)


@command("caption", spread=False, batch_out=BatchOut, batch_in=BatchIn)
def caption(call: Call, batch_out: Path | None, batch_in: list[Path] | None) -> DataStage:
    """Have each kept picture described: by a vision model behind an OpenAI-compatible endpoint or on this machine.

    --set local=Salesforce/blip-image-captioning-base (a folder, or a Hub id with download=true) asks nobody else;
    --set text="a sks dog" is the caption of all that have none of their own.

    lens train data caption work/ --set model=NAME --set base_url=http://127.0.0.1:8000/v1 · an answer is never paid for
    twice; a key is the setting reasoner.api_key · vllm run-batch reads and writes the batch files, too · settings:
    model, base_url, local, text, prompt, brief, own, side, attempts, at_once, least_words, most_words, language, …
    """
    from backend.errors import UsageError
    from lens_cli.work.train.data.caption import CaptionCommand

    if batch_out is not None and batch_in:
        raise UsageError("--batch-out and --batch-in exclude each other", hint="first in, then out what is still open")
    return CaptionCommand(call, batch_out=batch_out, batch_in=batch_in or [])


@command("bucket")
def bucket(call: Call) -> DataStage:
    """Give each picture one of the 27 shapes of training, and its crop. No pixel is touched yet.

    Only `upscale` lets a picture be enlarged.

    lens train data bucket work/ --set bases=512 --set ratios=1:1 · settings: bases, ratios, upscale, least_kept,
    weights
    """
    from lens_cli.work.train.data.pack import BucketCommand

    return BucketCommand(call)


@command("pack")
def pack(call: Call) -> DataStage:
    """Crop, scale and write WORK/pack: WebDataset tars, a folder a shape, and the index that training reads.

    lens train data pack work/ --set format=webp --set quality=90 · settings: text (caption, brief, alt), format,
    quality, tar_bytes, max_chars
    """
    from lens_cli.work.train.data.pack import PackCommand

    return PackCommand(call)


@command("text-images", folder=Out)
def text_images(call: Call) -> DataStage:
    """Draw words on backgrounds, with captions that quote them: a source for scan. The paper's fourth.

    lens train data text-images texts/ --set count=10000 --set fonts=FONTS/ · settings: count, seed, bases, fonts,
    texts, backgrounds, most_texts, turned, most_degrees, blurred, outlined, quality
    """
    from lens_cli.work.train.data.text_images import TextImagesCommand

    return TextImagesCommand(call)


@command("report", spread=False)
def report(call: Call) -> DataStage:
    """Write WORK/report.html: the funnel, histograms, pictures near each threshold, lengths of captions.

    One file without links to others: it can be sent to someone. Settings: near (pictures a threshold), side (pixels)
    """
    from lens_cli.work.train.data.report import ReportCommand

    return ReportCommand(call)


@command("run", settings=RunSet, sources=Sources)
def run_all(call: Call, sources: list[str] | None) -> DataStage:
    """All stages in their order. What is done already is passed over.

    lens train data run work/ photos/ --set select.clarity=80
    """
    from lens_cli.work.train.data.run import RunAll

    return RunAll(call, sources or [])
