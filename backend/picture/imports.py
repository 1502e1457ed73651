"""Pictures that lie in folders enter the history: ours by their record, those of other programs by what they say.

A picture of another program gets an id made of its pixels, so that importing it twice enters it once. What it does not
say stays unknown. Its record has a key `imported`, which no record of ours has.

Heavy ring: Pillow, inside the functions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from backend.errors import FileError, HistoryError
from backend.inputs.files import load_pixels
from backend.picture.history import History, pictures_below
from backend.picture.images import ImageMetadata, pixel_sha256, read_metadata
from backend.wish import Wish

GROUP = 100  # pictures a transaction
SEED_END = 2**63  # of SQLite's integers; a larger seed stays among the fields

OnDamage = Callable[[FileError], None]


@dataclass(kw_only=True)
class Imported:
    """What a look through folders brought."""

    new: int = 0
    known: int = 0
    silent: int = 0  # pictures that do not say how they were made
    damaged: int = 0  # pictures that cannot be read, each told to `on_damage`


def import_folders(history: History, folders: Sequence[Path], *, on_damage: OnDamage) -> Imported:
    """Enter every picture below `folders` that says how it was made.

    Raises FileError for a folder that is none, and HistoryError.
    """
    for folder in folders:
        if not folder.is_dir():
            raise FileError(f"{folder} is no folder")
    done, group = Imported(), list[tuple[Mapping[str, Any], Path]]()
    for path in pictures_below(folders):
        try:
            record = record_of(path)
        except FileError as error:
            done.damaged += 1
            on_damage(error)
            continue
        if record is None:
            done.silent += 1
        elif "imported" in record and history.has_pixels(record["pixel_sha256"]):  # of ours, with its record stripped
            done.known += 1
        else:
            group.append((record, path))
        if len(group) == GROUP:
            _enter(history, group, done, on_damage)
            group = []
    _enter(history, group, done, on_damage)
    return done


def _enter(
    history: History, group: Sequence[tuple[Mapping[str, Any], Path]], done: Imported, on_damage: OnDamage
) -> None:
    """Enter a group; where a record of it cannot enter, each by itself."""
    try:
        new = history.add_all(group)
    except HistoryError:
        raise
    except FileError as error:
        if len(group) == 1:
            done.damaged += 1
            on_damage(error)
            return
        for one in group:
            _enter(history, [one], done, on_damage)
        return
    done.new += new
    done.known += len(group) - new


def record_of(path: Path) -> Mapping[str, Any] | None:
    """How a picture was made: our record, or one made of what another program wrote. None: it does not say.

    Raises FileError for a file that cannot be read, also for a damaged record.
    """
    found = read_metadata(path)
    if found.record is not None:
        return {key: value for key, value in found.record.items() if key != "imported"}
    if not found.fields.get("prompt"):
        return None
    return _foreign_record(found, pixel_sha256(load_pixels(path)), path.stat().st_mtime)


def pixels_of(path: Path) -> str | None:
    """SHA-256 of a file's pixels: the recorded one, or that of the pixels themselves. None: it cannot be read."""
    try:
        record = read_metadata(path).record
        return str(record.get("pixel_sha256")) if record is not None else pixel_sha256(load_pixels(path))
    except FileError:
        return None


def _foreign_record(found: ImageMetadata, pixels: str, changed: float) -> dict[str, Any]:
    fields = {re.sub(r"[\W_]+", " ", key).strip().lower(): value for key, value in found.fields.items()}

    def number(*names: str) -> float | None:
        for name in names:
            if re.fullmatch(r"-?[0-9]{1,19}(\.[0-9]{1,9})?", fields.get(name, "").strip()):
                return float(fields[name])
        return None

    def whole(name: str) -> int | None:
        text = fields.get(name, "").strip()
        return int(text) if re.fullmatch(r"[0-9]{1,19}", text) and int(text) < SEED_END else None

    return {
        "id": pixels[:32],
        "parent_id": None,
        "created": datetime.fromtimestamp(changed, UTC).isoformat(timespec="seconds"),
        "prompt": found.fields["prompt"],
        "original_prompt": None,
        "negative_prompt": found.fields.get("negative_prompt", ""),
        "model": {"name": fields.get("model", "")},
        "width": found.width,
        "height": found.height,
        "seed": whole("seed"),
        "steps": whole("steps"),
        "guidance": number("cfg scale", "cfg", "guidance"),
        "pixel_sha256": pixels,
        "timings": {},
        "imported": {"generator": found.generator, "fields": dict(found.fields)},
    }


def wish_of_import(record: Mapping[str, Any]) -> Wish:
    """What an imported picture says that another model can be asked for: its words, its seed, its shape."""
    width, height = int(record["width"]), int(record["height"])
    seed = record.get("seed")
    return Wish(
        prompt=str(record["prompt"]),
        negative_prompt=str(record["negative_prompt"]) or None,
        seeds=None if seed is None else (str(seed),),
        ar=f"{width}:{height}" if height <= 2 * width <= 4 * height else None,
    )
