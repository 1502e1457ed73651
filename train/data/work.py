"""The work folder of the data stages: one Parquet file a stage and shard, and beside it a mark that it is complete.

A stage is a pure function of a shard, so its result can be told from its inputs: the mark holds a *stamp*, the hash of
the stage's version, its own config and the SHA-256 of what it read. A shard whose stamp is another is computed again,
that shard only. The mark also lists what was read: where one of these tables is another by now, no later stage goes on
with the old result, whoever forgot to run the stages between.

    WORK/<stage>/00000.parquet  + 00000.done        <stage> may have a slash: "score/clarity"

Heavy ring: pyarrow.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from backend.disk import file_sha256, make_folder, name_problem, replacing, write_atomic
from backend.errors import FileError, LensError
from backend.foreign import documents
from train.data.pictures import PICTURE_BYTES

ROWS_PER_GROUP = 4096  # of what is written here: the unit in which a reader fetches


@dataclass(frozen=True)
class Mark:
    """What `<shard>.done` says."""

    rows: int
    sha256: str  # of the Parquet file
    stamp: str  # of the stage's version, config and inputs
    reads: Mapping[str, str]  # stage -> SHA-256 of its table of this shard when it was read


@dataclass(frozen=True)
class Work:
    """A work folder. Cheap to make and to pickle: it holds nothing but the path."""

    folder: Path

    def path(self, stage: str, shard: int) -> Path:
        return self.folder / stage / f"{shard:05d}.parquet"

    def shards(self, stage: str) -> list[int]:
        """Numbers of the complete shards of a stage, ascending. For "score/x" and "plan" alike."""
        return sorted(int(file.stem) for file in (self.folder / stage).glob("*.done") if file.stem.isdecimal())

    def mark(self, stage: str, shard: int) -> Mark | None:
        """What is said of a complete shard; None where it is not complete or the mark is damaged."""
        try:
            said = documents.parse_json(documents.read_bytes(self.path(stage, shard).with_suffix(".done")))
            reads = {str(stage): str(sha) for stage, sha in said["reads"].items()}
            if any(name_problem(stage) for stage in reads):  # each becomes a folder of this one
                return None
            return Mark(rows=int(said["rows"]), sha256=str(said["sha256"]), stamp=str(said["stamp"]), reads=reads)
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, AttributeError):
            return None  # edited by hand or cut by a full disk: as good as no mark

    def done(self, stage: str, shard: int, stamp: str) -> bool:
        """Whether the shard was computed from just these inputs, and its file is still there."""
        mark = self.mark(stage, shard)
        return mark is not None and mark.stamp == stamp and self.path(stage, shard).exists()

    def changed(self, stage: str, shard: int) -> str | None:
        """The stage whose table is another now than when this one, or one that this one was made from, read it.

        None: none is, and this one is complete. Its own name: it is not complete.
        """
        marks: dict[str, Mark | None] = {}  # each is read once
        waiting: list[tuple[str, str | None]] = [(stage, None)]
        while waiting:
            name, was = waiting.pop()
            seen = name in marks
            mark = marks[name] if seen else marks.setdefault(name, self.mark(name, shard))
            if mark is None or was not in (None, mark.sha256):
                return name
            waiting += [] if seen else mark.reads.items()
        return None

    def sha256(self, stage: str, shard: int) -> str:
        """Give the hash of a complete shard's file, an input of a next stage. Raises LensError where it is outdated."""
        mark = self._complete(stage, shard)
        if (other := self.changed(stage, shard)) is not None:
            of_score = f"lens train data score {self.folder}; a score that is no longer wanted: delete its folder"
            raise LensError(
                f"{self.folder}: {stage} of shard {shard} is out of date: {other} has changed since",
                hint=of_score if stage.startswith("score/") else f"all stages anew: lens train data run {self.folder}",
            )
        return mark.sha256

    def inputs(self, shard: int, stages: Iterable[str]) -> dict[str, str]:
        """SHA-256 of what a stage is about to read, for its stamp and its mark. Raises what `sha256` raises."""
        return {stage: self.sha256(stage, shard) for stage in stages}

    def _complete(self, stage: str, shard: int) -> Mark:
        mark = self.mark(stage, shard)
        if mark is None:
            raise LensError(
                f"{self.folder}: {stage} is not done for shard {shard}",
                hint=f"run the stage first: lens train data {stage.split('/')[0]} {self.folder}",
            )
        return mark

    def read(self, stage: str, shard: int, columns: Sequence[str] | None = None) -> pa.Table:
        """The table of a complete shard. Raises LensError where it is not complete, FileError where it is damaged."""
        self._complete(stage, shard)
        path = self.path(stage, shard)
        try:
            return pq.read_table(path, columns=None if columns is None else list(columns))
        except (OSError, pa.ArrowException) as error:
            raise FileError(
                f"cannot read {path}: {str(error).splitlines()[0]}",
                hint=f"delete {path.with_suffix('.done')} and run the stage again: it redoes this shard only",
            ) from error

    def write(
        self, stage: str, shard: int, table: pa.Table, stamp: str, reads: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        """Put a shard's table in place, then its mark: a reader sees the old pair, or no mark, or the new pair.

        `reads`: what `inputs` said before the stage read it.
        Raises FileError (a full disk among them); then nothing changed, or the mark is missing and the shard is redone.
        """
        path = self.path(stage, shard)
        make_folder(path.parent)
        done = path.with_suffix(".done")
        with replacing(path) as temporary:
            pq.write_table(table, temporary, compression="zstd", row_group_size=ROWS_PER_GROUP)
            digest = file_sha256(temporary)
            # Between the two renames the old mark would vouch for the new file.
            done.unlink(missing_ok=True)
        said = {"rows": table.num_rows, "sha256": digest, "stamp": stamp, "reads": dict(reads)}
        write_atomic(done, (json.dumps(said, indent=1) + "\n").encode())


def stamp(version: int, config: Mapping[str, Any], *inputs: str) -> str:
    """Hash of a stage's version (raised when its results change), its own config and the SHA-256 of what it reads."""
    text = json.dumps([version, config, inputs], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def total(column: pa.ChunkedArray) -> int:
    """Sum of a column of integers; nulls count nothing."""
    return int(pc.call_function("sum", [column]).as_py() or 0)


# ---------------------------------------------------------------------------------------------------- a picture's bytes


def open_picture(row: Mapping[str, Any]) -> bytes:
    """The bytes of a picture's file from a row of `scan`: `path`, `member`, `offset`, `nbytes`.

    A plain file (member None), a member of an uncompressed tar (offset: of its first byte), or a row of a Parquet
    file with image bytes (offset: the row's number; member begins with the column's name and a colon).
    Raises FileError where the file is gone, shorter than it was when it was scanned, or larger than `PICTURE_BYTES`.
    """
    path, member, offset, nbytes = str(row["path"]), row["member"], row["offset"], int(row["nbytes"])
    try:
        if member is None:
            return documents.read_bytes(Path(path), PICTURE_BYTES)
        if nbytes > PICTURE_BYTES:
            raise FileError(f"{nbytes:,} bytes are more than {PICTURE_BYTES:,}: not read")
        if path.endswith(".parquet"):
            return _cell(path, str(member).split(":", 1)[0], int(offset))
        with open(path, "rb") as file:
            file.seek(int(offset))
            data = file.read(nbytes)
    except documents.Unreadable as error:
        raise FileError(f"{path} {error}: not read") from error
    except (OSError, pa.ArrowException) as error:
        raise FileError(f"cannot read {path}: {str(error).splitlines()[0]}", hint="scan again") from error
    if len(data) < nbytes:
        raise FileError(f"{path} is cut short at {member}: {len(data)} of {nbytes} bytes", hint="scan again")
    return data


def _cell(path: str, column: str, number: int) -> bytes:
    changed = Path(path).stat().st_mtime_ns
    starts = _group_starts(path, changed)
    group = bisect.bisect_right(starts, number) - 1
    if not 0 <= number < starts[-1]:
        raise FileError(f"{path} has no row {number}", hint="scan again")
    return _group(path, changed, column, group)[number - starts[group]]


@lru_cache(maxsize=8)
def _group_starts(path: str, _changed: int) -> list[int]:
    """Number of each row group's first row; the last entry is the number of rows."""
    with pq.ParquetFile(path) as file:
        sizes = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
    return list(itertools.accumulate(sizes, initial=0))


@lru_cache(maxsize=1)  # rows are asked for in order, and a group may hold hundreds of megabytes
def _group(path: str, _changed: int, column: str, group: int) -> list[bytes]:
    with pq.ParquetFile(path) as file:
        cells = file.read_row_group(group, columns=[column])[column].to_pylist()
    # Hugging Face datasets store {"bytes": …, "path": …}.
    return [bytes((cell.get("bytes") if isinstance(cell, dict) else cell) or b"") for cell in cells]
