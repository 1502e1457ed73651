"""`lens rerun --verify`: the same request again, compared by the hash of its pixels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from backend.errors import LensError
from backend.types import GenerationRequest
from lens_cli.console import Talk
from lens_cli.progress import Meter
from lens_cli.runner import Failure, Interrupt, generations
from lens_cli.wording import describe


def verify_picture(path: Path, record: Mapping[str, Any], request: GenerationRequest, talk: Talk) -> None:
    """`identical` or `different` on stdout; why, on stderr. Raises typer.Exit(1) where the pixels differ."""
    from backend import metadata
    from backend.images import load_pixels, pixel_sha256, psnr

    pixels = load_pixels(path)  # before minutes of work: the file may be cut short
    talk.say(describe(request))
    meter = Meter(talk=talk, total=1)
    with Interrupt() as interrupt, meter:
        _, made = next(generations(request, meter, interrupt, talk))
    if isinstance(made, Failure):
        raise made.error
    now = metadata.make_record(made, pixels=pixel_sha256(made.image))
    before, after = metadata.environment(record), metadata.environment(now)
    changed = {
        key: [before.get(key), after.get(key)] for key in {**before, **after} if before.get(key) != after.get(key)
    }
    identical = now["pixel_sha256"] == record.get("pixel_sha256")
    decibel = psnr(pixels, made.image.convert("RGB")) if pixels.size == made.image.size else None
    data = {
        "identical": identical,
        "recorded_sha256": record.get("pixel_sha256"),
        "pixel_sha256": now["pixel_sha256"],
        # JSON has no infinity: null with "identical" true means that nothing differs.
        "psnr_db": None if decibel is None or decibel == float("inf") else round(decibel, 2),
        "file_is_as_recorded": pixel_sha256(pixels) == record.get("pixel_sha256"),
        "changed": changed,
    }
    talk.data("identical" if identical else "different")
    if identical:
        talk.say("the same pixels, by their SHA-256")
        talk.result(data)
        return
    if not data["file_is_as_recorded"]:
        talk.say("the file's own pixels are not the recorded ones: a lossy format, or edited since")
    for key, (old, new) in sorted(changed.items()):
        talk.say(f"  {key}: {old} then, {new} now")
    if not changed:
        talk.say("  nothing that was recorded has changed")
    distance = "of another size" if decibel is None else f"PSNR {decibel:.2f} dB against the file"
    talk.fail(LensError(f"the pixels differ ({distance})", hint=_reason(changed)), data)
    raise typer.Exit(LensError.exit_code)


def _reason(changed: Mapping[str, Any]) -> str | None:
    if any(key.startswith("model.") for key in changed):
        return "other weights: see model.* above"
    return "changed since: " + ", ".join(sorted(changed)) if changed else None
