"""`lens rerun`: make a picture again from the picture itself, changed or to the pixel."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from backend.errors import FileError, UsageError
from backend.types import ImageFormat, LoraMode
from lens_cli import options

if TYPE_CHECKING:
    from backend.presets import Preset
    from backend.requests import ResolvedRequest
    from backend.types import GenerationRequest
    from lens_cli.terminal.console import Talk


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
    from backend.picture.images import read_metadata
    from backend.picture.metadata import request_from
    from backend.requests import resolve
    from backend.settings import load
    from backend.sizes import ratio_and_base

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
    if verify and dry_run:
        raise UsageError("--verify draws the picture, --dry-run draws none", hint="drop one of the two")
    preset = _preset(image, recorded, model)
    if (ar is None) != (base is None):  # half of a size: the other half stays
        known = ratio_and_base(recorded.width, recorded.height, preset.bases)
        ar, base = ar or known[0], base or known[1]
    settings = load()
    resolved = resolve(
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
    if model is None and not verify:  # which compares the weights beside everything else
        _check_weights(image, found.record, resolved, talk)
    if verify:
        from lens_cli.work.rerun import verify_picture

        verify_picture(image, found.record, resolved, talk)
        return
    from lens_cli.work.gen import carry_out

    own = next((known for known in ImageFormat if known == found.format.lower()), None)  # a TIFF's is none of ours
    plan = options.plan_for(
        output, format, quality, no_metadata, len(resolved.request.seeds), settings, talk, usual_format=own
    )
    carry_out(
        resolved,
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
    from backend.lora.names import find_again, written

    return [written(find_again(use)) for use in recorded.loras]


def _recorded_mode(recorded: GenerationRequest) -> LoraMode:
    """The one mode that all ran in; where they ran in several, auto had chosen them."""
    modes = {use.mode for use in recorded.loras}
    return modes.pop() if len(modes) == 1 else LoraMode.auto


def _check_weights(image: Path, record: Mapping[str, Any], resolved: ResolvedRequest, talk: Talk) -> None:
    """Warn where the model of that name has other weights than those that made the picture."""
    from backend.checkpoints.identity import identify_model

    if resolved.files is None:  # --dry-run tells what would be done, and whatever draws says it is missing
        return
    recorded, now = record["model"].get("sha256"), identify_model(resolved.files).sha256
    before = cast("dict[str, Any]", recorded) if isinstance(recorded, dict) else dict[str, Any]()
    if changed := [part for part in now if before.get(part, now[part]) != now[part]]:
        parts, name = " and ".join(part.replace("_", " ") for part in changed), resolved.request.model
        talk.warn(f"{image} was made with another {parts} than {name} has now; the picture will differ")


def _preset(image: Path, recorded: GenerationRequest, override: str | None) -> Preset:
    """What is known of the model. A picture tells only the base name of one that was a path: UsageError says so."""
    from backend.requests import find_preset

    try:
        return find_preset(override or recorded.model)[1]
    except UsageError:
        if override is not None:
            raise
        raise UsageError(
            f"{image} was made by {recorded.model!r}, which is no known model",
            hint=f"say where it lies: lens rerun {image} -m PATH",
        ) from None
