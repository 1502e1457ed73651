"""Where pictures come from: folders of pictures, tars (WebDataset's among them) and Parquet files, and what is in them.

A source is a name and a path. Its *containers* are listed one by one (in parallel, and again only where they changed);
a listing has a row a picture and reads no picture.

    folder     every picture below it; its caption is the text file of the same name. Tars and Parquet files below it
               are containers of their own
    tar        uncompressed; a caption is the member of the same name up to its first dot that ends in .txt
    Parquet    a column of paths (relative ones start at the Parquet's folder) or of image bytes, maybe one of captions

Heavy ring: pyarrow.
"""

from __future__ import annotations

import os
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from backend.errors import FileError, UsageError, os_reason
from backend.paths import expanded, resolved
from train.data.pictures import SUFFIXES

LISTING = pa.schema(
    [
        ("name", pa.string()),  # unique in the container: path below the folder, member of the tar, row of the Parquet
        ("path", pa.string()),
        ("member", pa.string()),  # None: a plain file
        ("offset", pa.int64()),  # bytes into the tar; the row's number in a Parquet; 0 for a plain file
        ("nbytes", pa.int64()),  # None: told only by reading it (a Parquet's cells, a listed file that is missing)
        ("changed", pa.int64()),  # nanoseconds since 1970, of a plain file
        ("caption_path", pa.string()),  # where the caption's bytes lie; None: none, or it is in `caption`
        ("caption_offset", pa.int64()),
        ("caption_nbytes", pa.int64()),
        ("caption", pa.string()),  # of a Parquet's column
    ]
)
IMAGE_COLUMNS = ("image", "bytes", "jpg", "png", "webp", "content")
PATH_COLUMNS = ("path", "file", "file_name", "filename", "image_path")
# Pictures that Pillow alone does not open: their number is told.
UNREAD = frozenset((".heic", ".heif", ".jxl", ".jp2", ".psd", ".svg", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raw"))
CAPTION_COLUMNS = ("caption", "text", "TEXT", "prompt", "alt")


@dataclass(frozen=True)
class PictureSource:
    name: str  # the first part of its pictures' keys, and what thresholds can be set for
    path: str  # absolute


@dataclass(frozen=True)
class PictureContainer:
    """One listing's worth of a source."""

    source: str
    kind: str  # "folder", "tar" or "parquet"
    path: str  # absolute
    prefix: str = ""  # put before the names in keys: where a source has several containers


@dataclass(frozen=True, kw_only=True)
class ListSettings:
    """What is read as what."""

    caption_suffix: str = ".txt"  # of caption files beside pictures
    image_column: str | None = None  # of Parquet files; None: the first known name with bytes in it
    path_column: str | None = None  # None: the first known name with text in it, where there is no image column
    caption_column: str | None = None  # None: the first known name with text in it, maybe none


def parse_source(text: str) -> PictureSource:
    """`NAME=PATH` or `PATH` (named like its last part). Raises UsageError for a path that is not there."""
    name, separator, path = text.partition("=")
    if not separator or "/" in name or os.path.exists(text):
        name, path = "", text
    return find_source(path, name)


def find_source(path: str, name: str = "") -> PictureSource:
    """`name` empty: named like the path's last part. Raises UsageError for a path that is not there, or no source."""
    found = resolved(expanded(path))
    if not found.exists():
        raise UsageError(f"no such source: {path}", hint="give folders, .tar or .parquet files, or NAME=PATH")
    if found.is_file() and found.suffix.lower() not in (".tar", ".parquet"):
        raise UsageError(
            f"{path} is no folder, .tar or .parquet file",
            hint="a compressed tar must be unpacked first: its pictures cannot be reached one by one"
            if found.suffix.lower() in (".gz", ".tgz", ".zst", ".xz", ".bz2")
            else "give the folder it is in",
        )
    return PictureSource(name or found.stem or found.name, str(found))


def containers(source: PictureSource, without: Path) -> list[PictureContainer]:
    """In a fixed order. `without`: a folder that is passed over, the work folder itself.

    Hidden files and folders are passed over too; links to folders are not followed.
    """
    top = Path(source.path)
    if top.is_file():
        return [PictureContainer(source.name, "tar" if top.suffix.lower() == ".tar" else "parquet", source.path)]
    found: list[PictureContainer] = []
    loose = False
    for file in walk(top, without):
        kind = {".tar": "tar", ".parquet": "parquet"}.get(file.suffix.lower())
        if kind is not None:
            found.append(PictureContainer(source.name, kind, str(file), f"{file.relative_to(top).as_posix()}/"))
        loose = loose or file.suffix.lower() in SUFFIXES | UNREAD
    return ([PictureContainer(source.name, "folder", source.path)] if loose else []) + found


def walk(top: Path, without: Path) -> Iterator[Path]:
    """Files below `top`, each folder's by name. Raises FileError for a folder that cannot be listed."""

    def refuse(error: OSError) -> None:
        said = f"cannot list {error.filename}: {os_reason(error)}"
        raise FileError(said, hint="let it be read, or name the folders beside it as sources") from error

    for folder, inner, names in os.walk(top, onerror=refuse):
        inner[:] = sorted(n for n in inner if not n.startswith(".") and Path(folder, n) != without)
        for name in sorted(names):
            if not name.startswith("."):
                yield Path(folder, name)


def list_container(container: PictureContainer, settings: ListSettings, without: Path) -> tuple[pa.Table, str | None]:
    """A row a picture, and what is wrong with the container as a whole (None: nothing).

    Raises FileError for a container that cannot be opened, UsageError for a Parquet without a usable column.
    """
    try:
        if container.kind == "folder":
            rows, note = list_folder(Path(container.path), settings, without)
        elif container.kind == "tar":
            rows, note = list_tar(container.path, settings)
        else:
            rows, note = list_parquet(container.path, settings), None
    except (OSError, pa.ArrowException) as error:
        raise FileError(f"cannot read {container.path}: {str(error).splitlines()[0]}") from error
    return pa.Table.from_pylist(_unique(rows), schema=LISTING), note


def list_folder(top: Path, settings: ListSettings, without: Path) -> tuple[list[dict[str, Any]], str | None]:
    files = {str(file): file for file in walk(top, without)}
    rows: list[dict[str, Any]] = []
    unnamed = 0
    for path, file in files.items():
        if file.suffix.lower() not in SUFFIXES:
            continue
        if not _can_be_written(path):
            unnamed += 1
            continue
        stat = file.stat() if file.exists() else None  # a link that leads nowhere
        row: dict[str, Any] = {"name": file.relative_to(top).as_posix(), "path": path, "offset": 0}
        if stat is not None:
            row |= {"nbytes": stat.st_size, "changed": stat.st_mtime_ns}
        text = files.get(str(file.with_suffix(settings.caption_suffix)))
        if text is not None and text.exists():
            row |= {"caption_path": str(text), "caption_offset": 0, "caption_nbytes": text.stat().st_size}
            row["changed"] = max(row.get("changed", 0), text.stat().st_mtime_ns)
        rows.append(row)
    notes = [_passed_over(str(top), (file.suffix for file in files.values()))]
    if unnamed:
        notes.append(f"{top}: {unnamed:,} passed over, whose names are not UTF-8 (rename them)")
    return rows, "; ".join(filter(None, notes)) or None


def _can_be_written(path: str) -> bool:
    """Whether a path can be written down: Python carries bytes that are no UTF-8 as lone surrogates."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _passed_over(path: str, suffixes: Iterable[str]) -> str | None:
    """A note of pictures whose kind is not read; of other files nothing needs to be said."""
    found = Counter(suffix.lower() for suffix in suffixes if suffix.lower() in UNREAD)
    if not found:
        return None
    told = ", ".join(f"{count:,} {suffix}" for suffix, count in found.most_common())
    return f"{path}: {told} passed over, pictures of a kind that is not read (make them .jpg or .png)"


def list_tar(path: str, settings: ListSettings) -> tuple[list[dict[str, Any]], str | None]:
    """Name a tar's pictures; of one that was cut those that begin before the cut (the one that was hit fails later)."""
    size = os.path.getsize(path)
    pictures: list[tarfile.TarInfo] = []
    texts: dict[str, tarfile.TarInfo] = {}
    others: list[str] = []  # suffixes
    note: str | None = None
    end = 0
    try:
        with tarfile.open(path, "r:") as tar:
            while (member := tar.next()) is not None:
                end = member.offset_data + member.size
                tar.members = []  # pyright: ignore[reportAttributeAccessIssue]  it would keep all it has met
                if not member.isreg() or member.issparse():
                    continue
                if member.name.lower().endswith(settings.caption_suffix):
                    texts[_before_dot(member.name)] = member
                elif Path(member.name).suffix.lower() in SUFFIXES:
                    pictures.append(member)
                else:
                    others.append(Path(member.name).suffix)
    except tarfile.TarError as error:
        if not end:
            raise FileError(f"cannot read {path}: {error}", hint="it must be an uncompressed tar") from error
        note = f"{path} is cut short or damaged ({error}); what lies before is used"
    if end > size:
        note = f"{path} is cut short: at least {end - size:,} bytes are missing at its end; what lies before is used"
    elif note is None and not _ends(path, size, end):
        note = f"{path} has no end mark: it may be cut short; what is there is used"
    rows: list[dict[str, Any]] = []
    for member in pictures:
        row: dict[str, Any] = {"name": member.name, "path": path, "member": member.name}
        row |= {"offset": member.offset_data, "nbytes": member.size}
        text = texts.get(_before_dot(member.name))
        if text is not None:
            row |= {"caption_path": path, "caption_offset": text.offset_data, "caption_nbytes": text.size}
        rows.append(row)
    return rows, "; ".join(filter(None, (note, _passed_over(path, others)))) or None


def _before_dot(name: str) -> str:
    """WebDataset's key of a member: its path up to the first dot of the last part."""
    folder, _, last = name.rpartition("/")
    return f"{folder}/{last.split('.', 1)[0]}"


def _ends(path: str, size: int, end: int) -> bool:
    """Whether a block of zeros follows the last member, as at the end of every whole tar."""
    start = -(-end // 512) * 512
    with open(path, "rb") as file:
        file.seek(min(start, size))
        return file.read(512) == bytes(512)


def list_parquet(path: str, settings: ListSettings) -> list[dict[str, Any]]:
    with pq.ParquetFile(path) as file:
        schema = file.schema_arrow
        image = _column(schema, path, settings.image_column, IMAGE_COLUMNS, _is_bytes)
        where = None if image else _column(schema, path, settings.path_column, PATH_COLUMNS, _is_text)
        if image is None and where is None:
            raise UsageError(
                f"{path} has no column of image bytes or paths; its columns: {', '.join(schema.names)}",
                hint="name one: --set image_column=… or --set path_column=…",
            )
        caption = _column(schema, path, settings.caption_column, CAPTION_COLUMNS, _is_text)
        table = file.read(columns=[c for c in (where, caption) if c is not None])
        count = file.metadata.num_rows
    captions = table[caption].to_pylist() if caption else [None] * count
    if image is not None:
        return [
            {"name": str(i), "path": path, "member": f"{image}:{i}", "offset": i, "caption": captions[i]}
            for i in range(count)
        ]
    return [
        {"name": listed or str(i), **_listed_file(path, listed), "caption": captions[i]}
        for i, listed in enumerate(table[where].to_pylist())
    ]


def _listed_file(parquet: str, listed: str | None) -> dict[str, Any]:
    """One path of a Parquet's list. A file that is not there becomes a row that cannot be read."""
    if listed and "://" in listed:
        raise UsageError(
            f"{parquet} lists addresses ({listed[:60]})", hint="fetch them first, for example with img2dataset"
        )
    file = Path(parquet).parent / (listed or "")
    row: dict[str, Any] = {"path": str(file), "offset": 0}
    if listed and file.is_file():
        stat = file.stat()
        row |= {"nbytes": stat.st_size, "changed": stat.st_mtime_ns}
    return row


def _column(schema: pa.Schema, path: str, asked: str | None, known: Sequence[str], fits: Any) -> str | None:
    if asked is None:
        return next((name for name in known if name in schema.names and fits(schema.field(name).type)), None)
    if asked not in schema.names or not fits(schema.field(asked).type):
        raise UsageError(f"{path} has no such column as {asked!r}", hint=f"columns: {', '.join(map(str, schema))}")
    return asked


def _is_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _unique(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """A name that comes again (a tar may hold two members of one name) gets its count: `a.jpg#2`."""
    seen: Counter[str] = Counter()
    out: list[dict[str, Any]] = []
    for row in rows:
        seen[row["name"]] += 1
        again = seen[row["name"]]
        out.append(row if again == 1 else {**row, "name": f"{row['name']}#{again}"})
    return out
