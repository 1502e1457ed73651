"""`lens rerun`: make a picture again from the picture itself, changed or to the pixel."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from backend.errors import FileError, UsageError
from backend.types import LoraMode
from lens_cli import options

if TYPE_CHECKING:
    from backend.types import GenerationRequest


def rerun(
    image: Annotated[Path, typer.Argument(metavar="IMG", help="A picture that lens made.")],
    verify: Annotated[
        bool, typer.Option("--verify", help="Save nothing; check that the same pixels come out. Exit 0 if so, else 1.")
    ] = False,
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="Another prompt.")] = None,
    negative_prompt: options.NegativePrompt = None,
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
    """Make a picture again, with any of its settings changed. Flags left out keep what the picture recorded."""
    from backend.images import read_metadata
    from backend.metadata import request_from
    from backend.requests import build_request
    from backend.settings import load

    talk = options.talk_for("rerun", json=json, stream=json_stream, quiet=quiet, verbose=verbose, no_color=no_color)
    found = read_metadata(image)
    if found.record is None:
        made = f"; it was made by {found.generator}" if found.generator else ""
        raise FileError(f"{image} holds no lens record{made}", hint=f"`lens info {image}` shows what it says")
    recorded = request_from(found.record, str(image))
    resized = any(value is not None for value in (ar, base, size, width, height))
    changed = resized or any(value is not None for value in (prompt, negative_prompt, num, seed, steps, guidance, lora))
    if verify and changed:
        raise UsageError(
            "--verify makes the same picture: nothing may be changed",
            hint="only -m, and how it is computed: --dtype, --device, --encoder, --quant, --profile, --vram, --compile",
        )
    _check_model(image, recorded, model)
    settings = load()
    request = build_request(
        prompt=recorded.prompt if prompt is None else prompt,
        original_prompt=recorded.original_prompt if prompt is None else None,  # never rewritten again: what was
        expander=recorded.expander if prompt is None else None,  # recorded is what the picture was made from
        negative_prompt=recorded.negative_prompt if negative_prompt is None else negative_prompt,
        model=model or recorded.model,
        seeds=seed or (str(recorded.seeds[0]),),
        num=num,
        steps=recorded.steps if steps is None else steps,
        guidance=recorded.guidance if guidance is None else guidance,
        ar=ar,
        base=base,
        size=size if resized else f"{recorded.width}x{recorded.height}",
        width=width,
        height=height,
        dtype=dtype or recorded.dtype,
        device=device or recorded.device,
        encoder=encoder or recorded.encoder,
        loras=lora if lora is not None else _recorded_loras(recorded),
        lora_mode=lora_mode or _recorded_mode(recorded),
        quant=quant or recorded.quant,
        profile=profile,
        vram=vram,
        compiled=recorded.compiled if compiled is None else compiled,
        settings=settings,
        warn=talk.warn,
    )
    if verify:
        from lens_cli.verify import verify_picture

        verify_picture(image, found.record, request, talk)
        return
    from lens_cli.carry_out import carry_out

    plan = options.plan_for(output, format, quality, no_metadata, len(request.seeds), settings, talk)
    carry_out(
        request,
        plan,
        talk,
        output=output,
        dry_run=dry_run,
        show=show,
        settings=settings,
        parent_id=str(found.record.get("id")),
    )


def _recorded_loras(recorded: GenerationRequest) -> list[str]:
    """What made the picture, found again by its hash. Raises UsageError naming the hash of what is not here."""
    from backend.loras import find_again, written

    return [written(find_again(use)) for use in recorded.loras]


def _recorded_mode(recorded: GenerationRequest) -> LoraMode:
    """The one mode that all ran in; where they ran in several, auto had chosen them."""
    modes = {use.mode for use in recorded.loras}
    return modes.pop() if len(modes) == 1 else LoraMode.auto


def _check_model(image: Path, recorded: GenerationRequest, override: str | None) -> None:
    """A picture tells only the base name of a model that was a path. Raises UsageError saying so."""
    from backend.requests import find_preset

    if override is None:
        try:
            find_preset(recorded.model)
        except UsageError:
            raise UsageError(
                f"{image} was made by {recorded.model!r}, which is no known model",
                hint=f"say where it lies: lens rerun {image} -m PATH",
            ) from None
