"""`lens info`: what a picture says about how it was made. Loads no model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from backend.errors import LensError, PartialBatchError
from lens_cli import options
from lens_cli.terminal.console import Talk

if TYPE_CHECKING:
    from backend.picture.images import ImageMetadata


def info(
    images: Annotated[
        list[Path],
        typer.Argument(
            metavar="IMG|ID…",
            help="Pictures: PNG, JPEG or WebP, or their ids in the history.",
            autocompletion=options.complete_id,
        ),
    ],
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Show prompt, seed and settings of pictures, made by lens or by other tools."""
    from lens_cli.work.pictures import find_picture

    talk = options.talk_for("info", json=json, quiet=quiet)
    rows: list[dict[str, Any]] = []
    errors: list[LensError] = []
    for image in images:
        try:
            picture = find_picture(image)
        except LensError as error:
            errors.append(error)
            if len(images) > 1:
                talk.warn(str(error))
            continue
        path = picture.path or Path(picture.where)
        rows.append(_row(path, picture.found))
        _print(path, picture.found, talk, blank=len(rows) > 1)
    if not errors:
        talk.result({"images": rows})
        return
    last = errors[0]
    if rows:
        last = PartialBatchError(f"{len(errors)} of {len(images)} pictures could not be read: {errors[0]}")
    talk.fail(last, {"images": rows} if rows else None)
    raise typer.Exit(last.exit_code)


def _row(path: Path, found: ImageMetadata) -> dict[str, Any]:
    return {
        "path": str(path),
        "format": found.format,
        "width": found.width,
        "height": found.height,
        "generator": found.generator,
        "digital_source_type": found.source_type,
        "credentials": _credentials(path, found),
        "record": found.record,
        "parameters": found.parameters,
        "fields": dict(found.fields),
    }


def _print(path: Path, found: ImageMetadata, talk: Talk, *, blank: bool) -> None:
    """`name: value` lines on stdout; the text is whatever the file says, so it is made harmless first."""
    from lens_cli.terminal.console import printable

    if blank:
        talk.data("")
    talk.data(path)
    lines = [("format", f"{found.format}, {found.width}x{found.height}"), ("made by", found.generator or "unknown")]
    if found.record is not None:
        lines += [(key, value) for key, value in _record_lines(found.record) if value not in ("", "None")]
    else:
        lines += [(key, value) for key, value in found.fields.items() if value]
    credentials = _credentials(path, found)
    if credentials is not None:
        lines.append(("credentials", credentials["text"]))
    if found.source_type is not None:
        lines.append(("source type", found.source_type.rsplit("/", 1)[-1]))
    for key, value in lines:
        first, *more = printable(value).split("\n")
        talk.data(f"  {printable(key):<15} {first}".rstrip())
        for line in more:
            talk.data(f"  {'':<15} {line}".rstrip())


def _credentials(path: Path, found: ImageMetadata) -> dict[str, Any] | None:
    """What its signature is worth; None: it has none."""
    from dataclasses import asdict

    from backend.picture.credentials import Checked, check

    checked = check(path, found.format) if path.is_file() else None
    if isinstance(checked, Checked):
        return {**asdict(checked), "text": checked.line()}
    return None if checked is None else {"text": checked}


def _record_lines(record: Any) -> list[tuple[str, str]]:
    from backend.picture.metadata import describe_expander, describe_input, describe_lora
    from backend.sampling import SAMPLERS

    model: Any = record.get("model")
    model = cast("dict[str, Any]", model) if isinstance(model, dict) else {}
    plain = (
        "prompt",
        "original_prompt",
        "negative_prompt",
        "seed",
        "steps",
        "guidance",
        "sampler",
        "dtype",
        "quant",
        "encoder",
        "ran_on",
    )
    begun = ("strength", "fit", "hires", "hires_strength", "around", "amount", "style")
    # What --sampler takes; a record has the name that other tools write.
    named = {solver.name: str(sampler) for sampler, solver in SAMPLERS.items()}
    told = {**record, "sampler": named.get(str(record.get("sampler")), record.get("sampler"))}
    lines = [(key.replace("_", " "), str(told.get(key))) for key in (*plain, *begun)]
    lines += [(key, describe_input(record[key])) for key in ("init", "mask") if record.get(key) is not None]
    if record.get("expander") is not None:
        lines.insert(2, ("rewritten by", describe_expander(record["expander"])))
    lines.append(("model", f"{model.get('name')}" + (f"@{model['revision']}" if model.get("revision") else "")))
    if record.get("rl_strength") is not None:
        lines.append(("rl strength", str(record["rl_strength"])))
    loras: Any = record.get("loras")
    uses = cast("list[Any]", loras) if isinstance(loras, list) else []
    lines += [("lora", describe_lora(use)) for use in uses]
    return [*lines, ("software", str(record.get("software"))), ("created", str(record.get("created")))]
