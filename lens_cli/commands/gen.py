"""`lens gen`: from a sentence to a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lens_cli import options


def gen(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PROMPT",
            help="What to draw; several words are joined into one prompt. - reads stdin.",
            show_default=False,
        ),
    ] = None,
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="The prompt, as a flag.")] = None,
    file: Annotated[
        Path | None,
        typer.Option("--file", "-f", help="Read the prompt from a file (- is stdin): all of it is one prompt."),
    ] = None,
    negative_prompt: options.NegativePrompt = None,
    reasoner: options.Reasoner = None,
    system_prompt: options.SystemPromptName = None,
    model: options.Model = None,
    num: options.Num = None,
    seed: options.Seed = None,
    steps: options.Steps = None,
    guidance: options.Guidance = None,
    ar: options.Ratio = None,
    base: options.Base = None,
    size: options.Size = None,
    width: options.Width = None,
    height: options.Height = None,
    dtype: options.Arithmetic = None,
    device: options.Device = None,
    encoder: options.TextEncoder = None,
    lora: options.Lora = None,
    lora_mode: options.LoraHow = None,
    quant: options.Quantise = None,
    profile: options.Profile = None,
    vram: options.Vram = None,
    compiled: options.Compiled = None,
    output: options.Output = None,
    format: options.Format = None,  # noqa: A002  the flag's own name
    quality: options.Quality = None,
    no_metadata: options.NoMetadata = False,
    show: options.Show = None,
    dry_run: options.DryRun = False,
    json: options.Json = False,
    json_stream: options.JsonStream = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
    no_color: options.NoColor = False,
) -> None:
    """Make pictures from a sentence. Their paths go to stdout, one per line.

    Examples: lens gen "three red balloons over a green hill" --ar 16:9
    · lens gen "a blue fish" -n 4 -o fish/ · echo "a red star" | lens gen -
    """
    from backend.requests import resolve
    from backend.settings import load
    from lens_cli.work.gen import carry_out
    from lens_cli.work.reasoner import ask_reasoner

    talk = options.talk_for("gen", json=json, stream=json_stream, quiet=quiet, verbose=verbose, no_color=no_color)
    settings = load()
    resolved = resolve(
        prompt=options.read_prompt(words, prompt, file, talk),
        negative_prompt=negative_prompt,
        model=model,
        seeds=seed or (),
        num=num,
        steps=steps,
        guidance=guidance,
        ar=ar,
        base=base,
        size=size,
        width=width,
        height=height,
        dtype=dtype,
        device=device,
        encoder=encoder,
        loras=lora,
        lora_mode=lora_mode,
        quant=quant,
        profile=profile,
        vram=vram,
        compiled=compiled or False,
        settings=settings,
        warn=talk.warn,
    )
    plan = options.plan_for(output, format, quality, no_metadata, len(resolved.request.seeds), settings, talk)
    asked = ask_reasoner(settings, resolved, talk, mode=reasoner, system_prompt=system_prompt)
    carry_out(resolved, plan, talk, output=output, dry_run=dry_run, show=show, settings=settings, reasoner=asked)
