"""`lens rerun --verify`: the same request again, compared by the hash of its pixels, and the file with its record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import typer

from backend.cache.store import Stores
from backend.errors import LensError
from backend.events import PictureFailed
from backend.inputs.begin import last_pass
from backend.requests import ResolvedRequest
from backend.session import Session
from backend.settings import Settings
from backend.types import GenerationRequest, LoraUse
from backend.wish import Wish
from lens_cli.terminal.console import Talk
from lens_cli.terminal.progress import Meter
from lens_cli.terminal.wording import describe
from lens_cli.work.interrupt import Interrupt


def trusting(recorded: Wish) -> Wish:
    """The wish of a picture whose word is taken for where its LoRAs lie: in the working folder, by their names."""

    def place(use: str | LoraUse) -> str | LoraUse:
        if isinstance(use, LoraUse) and Path(use.path).is_file():
            return replace(use, path=str(Path(use.path).absolute()))
        return use

    return replace(recorded, loras=tuple(map(place, recorded.loras or ())))


def verify_picture(path: Path, record: Mapping[str, Any], resolved: ResolvedRequest, talk: Talk) -> None:
    """`identical` or `different` on stdout; why, on stderr. Raises typer.Exit(1) where the new pixels are not the
    recorded ones, or where the file is seen to hold others.
    """
    from backend.inputs.files import load_pixels
    from backend.picture import metadata
    from backend.picture.images import pixel_sha256, psnr

    request = resolved.request
    pixels = load_pixels(path)  # before minutes of work: the file may be cut short
    as_recorded = pixel_sha256(pixels) == record.get("pixel_sha256")
    edited = None if as_recorded else _edited(path, pixels.size, request)
    talk.say(describe(request))
    meter = Meter(talk=talk, total=1)
    # Everything is computed anew: nothing that was kept may say what came out the first time.
    with Session(Settings(), stores=Stores()) as session, Interrupt() as interrupt, meter:
        made = next(session.draw(resolved, on_event=meter, stop=interrupt.stop))
    if isinstance(made, PictureFailed):
        raise made.error
    now = metadata.make_record(made, pixels=pixel_sha256(made.image))
    before, after = metadata.environment(record), metadata.environment(now)
    changed = {
        key: [before.get(key), after.get(key)] for key in {**before, **after} if before.get(key) != after.get(key)
    }
    again = now["pixel_sha256"] == record.get("pixel_sha256")
    identical = again and edited is None
    decibel = psnr(pixels, made.image.convert("RGB")) if pixels.size == made.image.size else None
    data = {
        "identical": identical,
        "recorded_sha256": record.get("pixel_sha256"),
        "pixel_sha256": now["pixel_sha256"],
        # JSON has no infinity: null with "identical" true means that nothing differs.
        "psnr_db": None if decibel is None or decibel == float("inf") else round(decibel, 2),
        "recorded_pixels_again": again,
        "file_is_as_recorded": as_recorded,  # false for JPEG and lossy WebP, which round what was drawn
        "file_edited": edited,
        "changed": changed,
    }
    talk.data("identical" if identical else "different")
    if identical:
        talk.say("the same pixels, by their SHA-256")
        talk.result(data)
        return
    if again:
        came = f"the file was changed since it was made ({edited}); the recorded pixels came out again"
        talk.fail(LensError(came, hint=f"make the picture as it was: lens rerun {path}"), data)
        raise typer.Exit(LensError.exit_code)
    if edited is not None:
        talk.say(f"the file was changed since it was made: {edited}")
    elif not as_recorded:
        talk.say("the file's own pixels are not the recorded ones: a lossy format, or edited since")
    for key, (old, new) in sorted(changed.items()):
        talk.say(f"  {key}: {old} then, {new} now")
    if not changed:
        talk.say("  nothing that was recorded has changed")
    distance = "of another size" if decibel is None else f"PSNR {decibel:.2f} dB against the file"
    message = f"the pixels differ ({distance})" if edited is None else "neither file nor new picture is as recorded"
    talk.fail(LensError(message, hint=_reason(changed)), data)
    raise typer.Exit(LensError.exit_code)


def _edited(path: Path, size: tuple[int, int], request: GenerationRequest) -> str | None:
    """How a file whose pixels are not the recorded ones is known to have been changed; None: its format may have
    rounded them."""
    from backend.picture.images import loses_nothing

    finished = last_pass(request)
    if size != (finished.width, finished.height):
        return f"it is {size[0]}x{size[1]}, and {finished.width}x{finished.height} was recorded"
    return "its format loses nothing, and its pixels are others" if loses_nothing(path) else None


def _reason(changed: Mapping[str, Any]) -> str:
    if any(key.startswith("model.") for key in changed):
        return "other weights: see model.* above"
    if not changed:
        return "another number of threads gives other last bits: --threads, OMP_NUM_THREADS"
    return "changed since: " + ", ".join(sorted(changed))
