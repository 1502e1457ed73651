"""`lens rerun`: make a picture again from the picture itself, changed or to the pixel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from backend.errors import FileError, UsageError
from backend.types import ImageFormat
from backend.wish import ROWS, Wish
from lens_cli import options

if TYPE_CHECKING:
    from backend.requests import ResolvedRequest
    from backend.settings import Settings
    from lens_cli.terminal.console import Talk
    from lens_cli.work.pictures import NamedPicture


@options.takes_wish("rerun")
def rerun(
    *,
    image: Annotated[
        Path,
        typer.Argument(
            metavar="IMG|ID",
            help="A picture that lens made, or an id of the history.",
            autocompletion=options.complete_id,
        ),
    ],
    verify: Annotated[
        bool, typer.Option("--verify", help="Save nothing; check that the same pixels come out. Exit 0 if so, else 1.")
    ] = False,
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="Another prompt.")] = None,
    trust_paths: Annotated[
        bool,
        typer.Option(
            "--trust-paths", help="Open the weights and LoRAs at the paths that the picture names: it may be anybody's."
        ),
    ] = False,
    wish: Wish,
    local: options.Local = False,
    host: options.Host = None,
    dry_run: options.DryRun = False,
    json: options.Json = False,
    json_stream: options.JsonStream = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
    no_color: options.NoColor = False,
) -> None:
    """Make a picture again, with any of its settings changed. Flags left out keep what the picture recorded."""
    from lens_cli.work.gen import carry_out
    from lens_cli.work.pictures import find_picture
    from lens_cli.work.rerun import verify_picture

    talk = options.talk_for("rerun", json=json, stream=json_stream, quiet=quiet, verbose=verbose, no_color=no_color)
    typed = replace(wish, prompt=prompt)
    picture = find_picture(image)
    found, entry, where = picture.found, picture.entry, Path(picture.where)
    if verify:
        _check_unchanged(typed, dry_run)
    settings = options.load_settings(talk, local=local, host=host)
    resolved = _request_of(picture, typed, settings, talk, trust_paths=trust_paths, verify=verify)
    if verify:
        assert found.record is not None
        if picture.path is None:
            raise FileError(f"the file of {where} is gone: there is nothing to compare with")
        verify_picture(picture.path, found.record, resolved, talk)
        return
    own = next((known for known in ImageFormat if known == found.format.lower()), None)  # a TIFF's is none of ours
    plan = options.plan_for(typed, len(resolved.request.seeds), settings, talk, usual_format=own)
    carry_out(
        resolved, plan, talk, output=typed.output, dry_run=dry_run, show=typed.show, settings=settings,
        parent_id=str((found.record or {}).get("id")) if entry is None else entry.id, look=bool(typed.open),
    )  # fmt: skip


def _check_unchanged(typed: Wish, dry_run: bool) -> None:
    """Raises UsageError where something was typed that would make another picture, or none."""
    if not all(ROWS[name].verify for name in typed.given()):
        raise UsageError(
            "--verify makes the same picture: nothing may be changed",
            hint="only -m, and how it is computed: --dtype, --device, --encoder, --quant, --profile, --vram, --compile",
        )
    if dry_run:
        raise UsageError("--verify draws the picture, --dry-run draws none", hint="drop one of the two")


def _request_of(
    picture: NamedPicture, typed: Wish, settings: Settings, talk: Talk, *, trust_paths: bool, verify: bool
) -> ResolvedRequest:
    """The request that a picture records or, if another program made it, what of that is known, changed as typed."""
    from backend.picture.imports import wish_of_import
    from backend.picture.metadata import wish_from
    from backend.requests import build_request
    from lens_cli.work.rerun import trusting

    found, where = picture.found, Path(picture.where)
    if picture.entry is not None and found.record is None and not verify:
        talk.say(f"note: {found.generator} made it: words, seed and shape are taken, the rest is the model's own")
        return build_request(wish_of_import(picture.entry.record).overridden_by(typed), settings, talk.warn)
    if found.record is None:
        made = f"; it was made by {found.generator}" if found.generator else ""
        raise FileError(f"{where} holds no lens record{made}", hint=f"`lens info {where}` shows what it says")
    recorded = wish_from(found.record, str(where))
    recorded = trusting(recorded) if trust_paths else recorded
    resolved = _resolve(where, recorded, typed, settings, talk, trust_paths)
    if typed.model is None and not verify:  # which compares the weights beside everything else
        _check_weights(where, found.record, resolved, talk)
    return resolved


def _resolve(
    image: Path, recorded: Wish, typed: Wish, settings: Settings, talk: Talk, trust_paths: bool
) -> ResolvedRequest:
    """The request of the recorded wish overridden by the typed one; of a size that is half typed, the other half stays.

    A picture tells only the base name of a model that was a path, and whoever made it may have written any other: it is
    opened where `trust_paths` says so. UsageError tells what it names.
    """
    from backend import presets
    from backend.requests import build_request, find_model
    from backend.sizes import ratio_and_base

    model = recorded.model
    assert model is not None and recorded.width is not None and recorded.height is not None
    if typed.model is None and not trust_paths and model not in presets.names():
        raise UsageError(
            f"{image} was made by {model!r}, which is no known model",
            hint=f"say where it lies: lens rerun {image} -m PATH; or --trust-paths to open what the picture names",
        )
    try:
        found = find_model(typed.model or model)
    except UsageError:
        if typed.model is not None:
            raise
        raise UsageError(
            f"{image} was made by {model!r}, which is no known model",
            hint=f"say where it lies: lens rerun {image} -m PATH",
        ) from None
    if (typed.ar is None) != (typed.base is None):
        ar, base = ratio_and_base(recorded.width, recorded.height, found.preset.bases)
        recorded = recorded.overridden_by(Wish(ar=ar, base=base))
    return build_request(recorded.overridden_by(typed), settings, talk.warn, found=found)


def _check_weights(image: Path, record: Mapping[str, Any], resolved: ResolvedRequest, talk: Talk) -> None:
    """Warn where the model of that name has other weights than those that made the picture."""
    from backend.checkpoints.identity import identify_model

    if resolved.files is None:  # --dry-run tells what would be done, and whatever draws says it is missing
        return
    recorded, now = record["model"].get("sha256"), identify_model(resolved.files).sha256
    before = cast("dict[str, Any]", recorded) if isinstance(recorded, dict) else dict[str, Any]()
    if changed := [part for part in now if before.get(part, now[part]) != now[part]]:
        parts = " and ".join(part.replace("_", " ") for part in changed)
        talk.warn(
            f"{image} was made with another {parts} than {resolved.request.model} has now; the picture will differ"
        )
