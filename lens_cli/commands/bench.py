"""`lens bench`: how long each phase of a picture takes, and how much memory."""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from backend.wish import Wish
from lens_cli import options


class Rival(StrEnum):
    """What to measure against."""

    reference = "reference"


Random = Annotated[
    str | None,
    typer.Option(
        "--random",
        metavar="NAME",
        help="Random weights of this model's shape (lens, lens-turbo, nano, …), drawn on the device: needs no "
        "checkpoint. Random features stand in for the text encoder's.",
    ),
]
TextTokens = Annotated[int, typer.Option("--text-tokens", min=1, max=512, help="With --random: length of the text.")]
Runs = Annotated[int, typer.Option("--runs", min=1, max=1000, help="Warm runs of each phase; the median counts.")]
Against = Annotated[
    Rival | None,
    typer.Option(
        "--against",
        help="reference: run the published pipeline on the same weights as well, alternating; print ratios, and how "
        "far the two are apart beside what changing the batch size does.",
    ),
]
Float32Run = Annotated[
    bool,
    typer.Option(
        "--float32-run/--no-float32-run",
        help="With --against, in bfloat16: hold both against a float32 run too. Slow, and worth it.",
    ),
]
Sweep = Annotated[
    list[str] | None,
    typer.Option(
        "--sweep",
        metavar="KEY=V,V,…",
        help="Measure every value: size, base, ar, steps, guidance, dtype, quant, profile or vram. Repeatable: every "
        "combination.",
    ),
]
Prompt = Annotated[str | None, typer.Option("--prompt", "-p", help="What the text encoder reads. Default: 60 words.")]
Plot = Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE.svg", help="Draw the result as bars (SVG).")]


@options.takes_wish("bench", first=("model", "ar", "base", "size"))
def bench(
    *,
    wish: Wish,
    random: Random = None,
    prompt: Prompt = None,
    text_tokens: TextTokens = 200,
    runs: Runs = 3,
    against: Against = None,
    float32_run: Float32Run = True,
    sweep: Sweep = None,
    output: Plot = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
) -> None:
    """Time every phase, cold and warm, with its peak memory. Makes pictures, saves none.

    Examples: lens bench --size 256x256 · lens bench --random lens-turbo --base 1024 --against reference
    · lens bench --sweep steps=4,20 --sweep base=128,256 -o nano.svg
    """
    from lens_cli.work import bench  # light until it runs

    talk = options.talk_for("bench", json=json, quiet=quiet, verbose=verbose)
    bench.bench(
        bench.BenchChoice(
            wish=replace(wish, prompt=prompt or None),
            random=random,
            text_tokens=text_tokens,
            sweep=tuple(sweep or ()),
            runs=runs,
            against=against is not None,
            float32_run=float32_run,
            plot=output,
        ),
        talk,
    )
