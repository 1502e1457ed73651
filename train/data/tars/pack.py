"""Finished samples as WebDataset tars, and an index that says where each lies.

    pack/1024x1024/00003-0.tar    00003-000017.jpg, .txt, .json; 00003-000018.jpg, …     (shard 3, its first part)
    pack/00003.parquet + .done    the index of shard 3: one row a picture of its bucket table

Any WebDataset reader takes the tars: a folder is one bucket, so its samples stack into a batch as they are. A sample's
three members lie side by side, so one read of `nbytes` at `offset` gets it whole; `sha256` is of these bytes. The same
input gives the same tars, byte for byte: owner and time in the headers are nobody and zero.

Tars take their place one by one and whole, the index last: what a crash or a full disk leaves has no mark, and is
written again.

Heavy ring: pyarrow, Pillow.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from backend.disk import make_folder, replacing
from backend.errors import FileError, UsageError
from backend.fields import check_ranges, within
from train.data.text_rules import MAX_CHARS, unusable

VERSION = 1  # raised when results change
TEXTS = ("caption", "brief", "alt")  # alt: that came with the picture
SUFFIXES = {"jpeg": "jpg", "webp": "webp", "png": "png"}  # file format -> member's name
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("name", pa.string()),  # of the sample inside its tar; None with all that follows where there is an error
        ("base", pa.int32()),
        ("width", pa.int32()),  # of the bucket and of the packed picture, pixels
        ("height", pa.int32()),
        ("tar", pa.string()),  # relative to the folder of the index
        ("tar_bytes", pa.int64()),  # of the whole tar: tells at once that it is another one now
        ("offset", pa.int64()),  # of the sample's first header in its tar
        ("nbytes", pa.int64()),  # up to the end of its last member, padding included
        ("sha256", pa.binary(32)),  # of these bytes
        ("error", pa.string()),  # why the picture was not packed
    ]
)


@dataclass(frozen=True, kw_only=True)
class PackConfig:
    """What the stage `pack` is told."""

    # What becomes .txt: caption (dense), brief, or alt, the text that came with the picture. None: caption where the
    # stage `caption` has run, else alt; the command says which.
    text: str | None = None
    format: str = "jpeg"  # jpeg (4:4:4), webp or png (lossless)
    quality: int | None = within(None, 1, 100)  # 1..100; None: 95 for jpeg, lossless for webp
    tar_bytes: int = 1_000_000_000  # a bucket of a shard goes on in a next tar beyond this
    max_chars: int = MAX_CHARS  # of a caption; a longer one is no caption

    def __post_init__(self) -> None:
        if self.text is not None and self.text not in TEXTS:
            raise UsageError(f"text = {self.text!r} is no kind of caption", hint=f"known: {', '.join(TEXTS)}")
        if self.format not in SUFFIXES:
            raise UsageError(f"format = {self.format!r} is unknown", hint=f"known: {', '.join(SUFFIXES)}")
        check_ranges(self)
        if self.tar_bytes < 10_240:
            raise UsageError(f"tar_bytes = {self.tar_bytes:,} is less than an empty tar", hint="such as 1000000000")


@dataclass(frozen=True)
class Span:
    """Where a sample lies in its tar."""

    name: str
    offset: int
    nbytes: int
    sha256: bytes


def pack_rows(
    rows: pa.Table, read: Callable[[Mapping[str, Any]], bytes], config: PackConfig, folder: Path, shard: int
) -> pa.Table:
    """Write the tars of one shard below `folder`; returns its index (SCHEMA), in the order of `rows`.

    `rows`: what `bucket_rows` returns, with the columns that `read` needs, and caption, brief, alt, source and any
    others (all but pixels and paths go into .json). A picture without bucket, usable text or readable file gets an
    `error` and no sample. Raises FileError (a full disk among them; tars of this call that are complete stay, without
    an index), and for a key that occurs twice.
    """
    listed: list[dict[str, Any]] = rows.to_pylist()
    _refuse_twins([row["key"] for row in listed])
    index: list[dict[str, Any]] = [{"key": row["key"], "error": _problem(row, config)} for row in listed]
    buckets: dict[tuple[int, int], list[int]] = {}
    for number, row in enumerate(listed):
        if index[number]["error"] is None:
            buckets.setdefault((row["width"], row["height"]), []).append(number)
    written: set[Path] = set()
    for (width, height), numbers in sorted(buckets.items()):
        place = folder / f"{width}x{height}"
        make_folder(place)

        def samples(numbers: list[int] = numbers) -> Iterator[tuple[int, dict[str, bytes]]]:
            for number in numbers:
                made = sample_of(listed[number], read, config)
                if isinstance(made, str):
                    index[number]["error"] = made
                else:
                    yield number, made

        for tar, spans in write_tars(place, shard, samples(), config.tar_bytes):
            written.add(tar)
            size = tar.stat().st_size
            for number, span in spans:
                shape = {key: listed[number][key] for key in ("base", "width", "height")}
                where = {"tar": tar.relative_to(folder).as_posix(), "tar_bytes": size}
                index[number] |= {**vars(span), **shape, **where}
    # Of an earlier run with other settings: a reader of whole folders would see its samples twice.
    for stale in set(folder.glob(f"*x*/{shard:05d}-*.tar")) - written:
        stale.unlink()
    return pa.Table.from_pylist(index, schema=SCHEMA)


def write_tars(
    folder: Path, shard: int, samples: Iterator[tuple[int, dict[str, bytes]]], tar_bytes: int
) -> Iterator[tuple[Path, list[tuple[int, Span]]]]:
    """Write samples (number, suffix -> bytes) into `<shard>-<part>.tar`; yields each tar when it is complete.

    A tar is closed by the first sample that takes it beyond `tar_bytes`. Raises FileError.
    """
    head = next(samples, None)
    part = 0
    while head is not None:
        path = folder / f"{shard:05d}-{part}.tar"
        spans: list[tuple[int, Span]] = []
        with replacing(path) as temporary, temporary.open("w+b") as file:
            with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
                while head is not None and (not spans or tar.offset < tar_bytes):
                    number, members = head
                    spans.append((number, _add(tar, f"{shard:05d}-{number:06d}", members)))
                    head = next(samples, None)
        yield path, spans
        part += 1


def _add(tar: tarfile.TarFile, name: str, members: Mapping[str, bytes]) -> Span:
    start, digest = tar.offset, hashlib.sha256()
    for suffix, data in members.items():
        info = tarfile.TarInfo(f"{name}.{suffix}")
        info.size, info.mode = len(data), 0o644
        block = info.tobuf(tarfile.USTAR_FORMAT) + data + b"\0" * (-len(data) % tarfile.BLOCKSIZE)
        digest.update(block)
        assert tar.fileobj is not None
        tar.fileobj.write(block)
        tar.offset += len(block)
    return Span(name, start, tar.offset - start, digest.digest())


def sample_of(
    row: Mapping[str, Any], read: Callable[[Mapping[str, Any]], bytes], config: PackConfig
) -> dict[str, bytes] | str:
    """suffix -> bytes of one sample, or why there is none."""
    from backend.picture.images import encode
    from backend.types import ImageFormat
    from train.data.pictures import Unreadable, decode

    try:
        image = decode(read(row))
    except (Unreadable, FileError) as error:
        return str(error)
    if row["right"] > image.width or row["bottom"] > image.height:
        return f"the picture is {image.width}x{image.height} now: smaller than when it was scanned"
    from PIL import Image

    box = (row["left"], row["top"], row["right"], row["bottom"])
    size = (row["width"], row["height"])
    scaled = image.resize(size, Image.Resampling.LANCZOS, box=box)
    data = encode(scaled, ImageFormat(config.format), quality=config.quality, record=None)
    return {
        SUFFIXES[config.format]: data,
        "txt": row[config.text or TEXTS[0]].strip().encode(),
        "json": json.dumps(record(row), ensure_ascii=False).encode(),
    }


_OF_THE_FILE = ("path", "member", "offset", "nbytes", "error")  # of this machine, or said elsewhere


def record(row: Mapping[str, Any]) -> dict[str, Any]:
    """What .json says: all that is known of the picture but paths and what is not there."""
    known = {key: value for key, value in row.items() if key not in _OF_THE_FILE and value is not None}
    return {key: value.hex() if isinstance(value, bytes) else value for key, value in known.items()}


def _problem(row: Mapping[str, Any], config: PackConfig) -> str | None:
    if row.get("error") is not None:
        return str(row["error"])
    return unusable(row.get(config.text or TEXTS[0]), config.max_chars)


def _refuse_twins(keys: Sequence[str]) -> None:
    seen: set[str] = set()
    for key in keys:
        if key in seen:
            raise FileError(f"the key {key!r} stands for two pictures", hint="give them two names and scan again")
        seen.add(key)


def read_members(block: bytes) -> dict[str, bytes]:
    """suffix -> bytes of one sample's span. Raises tarfile.TarError for bytes that are no tar."""
    with tarfile.open(fileobj=io.BytesIO(block), mode="r:") as tar:
        found: dict[str, bytes] = {}
        for info in tar:
            file = tar.extractfile(info)
            if file is not None:
                found[info.name.split(".", 1)[-1]] = file.read()
        return found
