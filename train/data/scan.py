"""Stage 1, `scan`: what there is. Lists the sources, deals their pictures into shards, and reads every picture's head.

Listings and the deal (`list/`, `plan/`) are made here and are as resumable as the rest: a tar is listed again only
where its size or time changed, and only shards whose rows changed are scanned again.

Heavy ring: pyarrow, Pillow.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from backend.errors import FileError, LensError, UsageError, os_reason
from train.data.engine import run_shards
from train.data.pictures import MAX_PIXELS, SUFFIXES, Unreadable, read_head
from train.data.settings import section
from train.data.sources import ListSettings, PictureContainer, PictureSource, containers, list_container
from train.data.text_rules import MAX_BYTES, unusable
from train.data.work import Work, open_picture, stamp, total

VERSION = 1
SCAN = pa.schema(
    [
        ("key", pa.string()),  # unique in the work folder: "<source>/<name>"
        ("source", pa.string()),
        ("path", pa.string()),
        ("member", pa.string()),  # None: a plain file
        ("offset", pa.int64()),
        ("nbytes", pa.int64()),
        ("sha256", pa.string()),  # of the file's bytes; None where they could not be read
        ("width", pa.int32()),  # pixels, upright (after the EXIF rotation); None where the head is unreadable
        ("height", pa.int32()),
        ("format", pa.string()),  # "JPEG", "PNG", …
        ("mode", pa.string()),  # Pillow's name of the stored pixels
        ("orientation", pa.int8()),  # EXIF: 1 (upright) to 8
        ("animated", pa.bool_()),  # has further frames; the first is used
        ("caption", pa.string()),  # from beside the picture, or the Parquet's; None: none, or it is not usable
        ("caption_error", pa.string()),  # why a caption that is there is not used
        ("error", pa.string()),  # why the picture cannot be used; None: it can, for all that its head tells
    ]
)
PLAN = pa.schema(
    [
        ("source", pa.string()),
        ("prefix", pa.string()),  # of the keys, after the source's name
        ("listing", pa.int32()),  # number of the listing in `list/`
        ("first", pa.int64()),  # row of the listing
        ("rows", pa.int32()),
        ("sha256", pa.string()),  # of these rows' contents
    ]
)


@dataclass(frozen=True, kw_only=True)
class ScanSettings(ListSettings):
    shard_size: int = 4096  # pictures a shard, at most
    max_pixels: int = MAX_PIXELS  # pictures of more are recorded and never decoded; it can be lowered only

    def __post_init__(self) -> None:
        if self.shard_size < 1 or self.max_pixels < 1:
            raise UsageError("shard_size and max_pixels must be at least 1")
        if self.max_pixels > MAX_PIXELS:
            hint = "a machine's memory is sized for it; scale larger pictures down first"
            raise UsageError(f"max_pixels = {self.max_pixels:,} is above {MAX_PIXELS:,}", hint=hint)


# ----------------------------------------------------------------------------------------------------- listing and plan


@dataclass(frozen=True)
class ListContainer:
    """Writes `list/<number>` for container `number`."""

    work: Work
    found: tuple[PictureContainer, ...]
    settings: ListSettings

    def stamp(self, number: int) -> str | None:
        """None for a folder: only looking at all of it tells whether it changed."""
        container = self.found[number]
        if container.kind == "folder":
            return None
        stat = os.stat(container.path)
        listed = {key: getattr(self.settings, key) for key in ListSettings.__dataclass_fields__}
        return stamp(VERSION, listed, container.kind, container.path, str(stat.st_size), str(stat.st_mtime_ns))

    def __call__(self, number: int) -> None:
        table, note = list_container(self.found[number], self.settings, self.work.folder)
        table = table.replace_schema_metadata({"note": note} if note else None)
        known = self.stamp(number) or stamp(VERSION, {"note": note}, _sha256(table))
        if not self.work.done("list", number, known):
            self.work.write("list", number, table, known)


def make_plan(
    work: Work, sources: Sequence[PictureSource], settings: ScanSettings, engine: str, workers: int | None
) -> tuple[list[int], list[str]]:
    """List what changed, deal all pictures into shards of one container each; returns the shards and what to warn of.

    Raises UsageError where two sources share a name or there is no picture.
    """
    names = [source.name for source in sources]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(
                f"two sources are named {name!r}", hint="give names: lens train data scan WORK NAME=PATH …"
            )
    found = tuple(container for source in sources for container in containers(source, work.folder))
    lister = ListContainer(work, found, settings)
    changed = [n for n in range(len(found)) if (s := lister.stamp(n)) is None or not work.done("list", n, s)]
    run_shards(lister, changed, engine, workers)

    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    for number, container in enumerate(found):
        table = work.read("list", number)
        note = (table.schema.metadata or {}).get(b"note")
        notes += [note.decode()] if note else []
        for first in range(0, table.num_rows, settings.shard_size):
            part = table.slice(first, settings.shard_size)
            row = {"source": container.source, "prefix": container.prefix, "listing": number, "first": first}
            rows.append({**row, "rows": part.num_rows, "sha256": _sha256(part)})
    rows = _in_their_places(rows, read_plan(work).to_pylist() if work.mark("plan", 0) is not None else [])
    if not rows:
        raise UsageError(
            f"no pictures in {', '.join(s.path for s in sources)}",
            hint="; ".join(notes) or f"known endings: {' '.join(sorted(SUFFIXES))}",
        )
    plan = pa.Table.from_pylist(rows, schema=PLAN)
    known = stamp(VERSION, {}, _sha256(plan))
    if not work.done("plan", 0, known):
        work.write("plan", 0, plan, known)
    return list(range(len(rows))), notes


def _in_their_places(rows: list[dict[str, Any]], before: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The plan's rows, of which those that were in it before keep their number: a new tar shall not shift all shards
    behind it, with their scores and the answers that were paid for. New ones take what is free."""
    places = {_identity(row): number for number, row in enumerate(before) if number < len(rows)}
    out: list[dict[str, Any] | None] = [None] * len(rows)
    new: list[dict[str, Any]] = []
    for row in rows:
        number = places.pop(_identity(row), None)  # popped: of two equal ones the second is new
        if number is None:
            new.append(row)
        else:
            out[number] = row
    left = iter(new)
    return [next(left) if row is None else row for row in out]


def _identity(row: dict[str, Any]) -> tuple[str, str, str]:
    return row["source"], row["prefix"], row["sha256"]


def planned(work: Work) -> list[int]:
    """Numbers of all shards of the work folder. Raises LensError where nothing was scanned yet, or not all that was
    listed: a scan was interrupted."""
    shards = list(range(read_plan(work).num_rows))
    stage = Scan(work, section(ScanSettings, "scan", work.folder)[0].max_pixels)
    if missing := [shard for shard in shards if not work.done("scan", shard, stage.stamp(shard))]:
        raise LensError(
            f"{work.folder}: {len(missing):,} of {len(shards):,} shards are not scanned yet",
            hint=f"finish it first: lens train data scan {work.folder}",
        )
    return shards


def read_plan(work: Work) -> pa.Table:
    if work.mark("plan", 0) is None:
        raise LensError(f"{work.folder}: nothing was scanned yet", hint=f"lens train data scan {work.folder} PICTURES/")
    return _plan(work.folder, work.sha256("plan", 0))


@lru_cache(maxsize=2)
def _plan(folder: Path, _sha256: str) -> pa.Table:
    return Work(folder).read("plan", 0)


def _sha256(table: pa.Table) -> str:
    """Hash a table's contents, however they are cut into chunks."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema.remove_metadata()) as writer:
        # from_pylist copies: a slice's buffers would hold its neighbours, too
        writer.write_table(pa.Table.from_pylist(table.to_pylist(), schema=table.schema.remove_metadata()))
    return hashlib.sha256(sink.getvalue()).hexdigest()


# ------------------------------------------------------------------------------------------------------------ the stage


@dataclass(frozen=True)
class Scan:
    """Writes `scan/<shard>`."""

    work: Work
    max_pixels: int

    def stamp(self, shard: int) -> str:
        row = read_plan(self.work).slice(shard, 1).to_pylist()[0]
        return stamp(VERSION, {"max_pixels": self.max_pixels}, row["source"], row["prefix"], row["sha256"])

    def __call__(self, shard: int) -> None:
        known = self.stamp(shard)
        if self.work.done("scan", shard, known):
            return
        row = read_plan(self.work).slice(shard, 1).to_pylist()[0]
        listing = _read_rows(self.work.path("list", row["listing"]), row["first"], row["rows"])
        prefix = f"{row['source']}/{row['prefix']}"
        self.work.write("scan", shard, scan_rows(listing, row["source"], prefix, self.max_pixels), known)


def scan_rows(
    listing: pa.Table,
    source: str,
    prefix: str,
    max_pixels: int = MAX_PIXELS,
    read: Callable[[dict[str, Any]], bytes] = open_picture,
) -> pa.Table:
    """Rows of SCAN from rows of LISTING: bytes hashed, head read, caption taken from beside. Nothing is decoded."""
    return pa.Table.from_pylist(
        [_scan(row, source, prefix, max_pixels, read) for row in listing.to_pylist()], schema=SCAN
    )


def _scan(
    row: dict[str, Any], source: str, prefix: str, max_pixels: int, read: Callable[[dict[str, Any]], bytes]
) -> dict[str, Any]:
    place = {key: row[key] for key in ("path", "member", "offset")}
    out: dict[str, Any] = {"key": prefix + row["name"], "source": source, **place, "nbytes": row["nbytes"] or 0}
    out["caption"], out["caption_error"] = _caption(row)
    try:
        data = read({**place, "nbytes": row["nbytes"] or 0})
        out |= {"nbytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        head, out["error"] = read_head(data, max_pixels)
        out |= asdict(head)
    except (FileError, Unreadable) as error:
        out["error"] = str(error)
    return out


def _caption(row: dict[str, Any]) -> tuple[str | None, str | None]:
    """(caption, why one that is there cannot be used). Blank ones are none."""
    if row["caption_path"] is None:
        return _usable(row["caption"] or "")
    if row["caption_nbytes"] > MAX_BYTES:
        return None, f"{row['caption_nbytes']:,} bytes are no caption"
    try:
        with open(row["caption_path"], "rb") as file:
            file.seek(row["caption_offset"])
            data = file.read(row["caption_nbytes"])
    except OSError as error:
        return None, f"cannot be read: {os_reason(error)}"
    if len(data) < row["caption_nbytes"]:
        return None, "cut short"
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None, "not UTF-8"
    return _usable(text)


def _usable(text: str) -> tuple[str | None, str | None]:
    if not text.strip():
        return None, None
    reason = unusable(text)
    return (text.strip(), None) if reason is None else (None, reason)


def _read_rows(path: Path, first: int, count: int) -> pa.Table:
    """Rows of a Parquet file, of which only the row groups that hold them are read."""
    with pq.ParquetFile(path) as file:
        groups: list[int] = []
        start = before = 0
        for group in range(file.metadata.num_row_groups):
            end = before + file.metadata.row_group(group).num_rows
            if before < first + count and end > first:
                start = start if groups else before
                groups.append(group)
            before = end
        return file.read_row_groups(groups).slice(first - start, count)


def totals(work: Work) -> dict[str, Any]:
    """Pictures, bytes, unreadable ones and captions of the scanned shards, for a line of talk."""
    counted = {"shards": 0, "pictures": 0, "bytes": 0, "unreadable": 0, "captions": 0, "captions_unusable": 0}
    for shard in planned(work):
        table = work.read("scan", shard, columns=["nbytes", "error", "caption", "caption_error"])
        counted["shards"] += 1
        counted["pictures"] += table.num_rows
        counted["bytes"] += total(table["nbytes"])
        counted["unreadable"] += table.num_rows - table["error"].null_count
        counted["captions"] += table.num_rows - table["caption"].null_count
        counted["captions_unusable"] += table.num_rows - table["caption_error"].null_count
    return counted
