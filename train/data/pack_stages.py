"""Stages `bucket` and `pack` in a work folder: what they read, and their marks. Their bodies are `buckets` and `pack`.

Heavy ring: pyarrow.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from backend.errors import LensError
from train.data import buckets
from train.data.buckets import BucketConfig, bucket_rows
from train.data.filters import NUMBERS
from train.data.selection import kept_rows, stages_read
from train.data.tars import pack as packs
from train.data.tars.pack import PackConfig, pack_rows
from train.data.work import Work, open_picture, stamp

_SCAN = ("key", "source", "path", "member", "offset", "nbytes", "width", "height", "caption", "sha256")
_CAPTIONS = ("caption", "brief", "language", "words", "model")


@dataclass(frozen=True)
class Bucket:
    """Writes `bucket/<shard>`: a row for every picture that `select` and `dedup` kept."""

    work: Work
    config: BucketConfig

    def stamp(self, shard: int) -> str:
        return stamp(buckets.VERSION, asdict(self.config), *self._inputs(shard).values())

    def _inputs(self, shard: int) -> dict[str, str]:
        return self.work.inputs(shard, stages_read(self.work, shard, deduplicated=True))

    def __call__(self, shard: int) -> None:
        known, read = self.stamp(shard), self._inputs(shard)
        if not self.work.done("bucket", shard, known):
            rows = kept_rows(self.work, shard, ["key", "width", "height"], deduplicated=True)
            self.work.write("bucket", shard, bucket_rows(rows, self.config), known, read)


@dataclass(frozen=True)
class PackTrial:
    """A few pictures that were packed to see what it takes."""

    pictures: int
    nbytes: float  # of a tar, a picture
    seconds: float  # a picture, of one core


@dataclass(frozen=True)
class Pack:
    """Writes the tars of a shard and then `pack/<shard>`, their index. `config.text` is not None: see `choose_text`."""

    work: Work
    config: PackConfig

    @property
    def captioned(self) -> bool:
        return self.config.text != "alt"

    def stamp(self, shard: int) -> str:
        return stamp(packs.VERSION, asdict(self.config), *self._inputs(shard).values())

    def _inputs(self, shard: int) -> dict[str, str]:
        stages = ["bucket", "scan", *(["caption"] if self.captioned else [])]
        return self.work.inputs(shard, stages + [f"score/{name}" for name in self._scored(shard)])

    def _scored(self, shard: int) -> list[str]:
        return [name for name in NUMBERS if self.work.changed(f"score/{name}", shard) is None]

    def rows(self, shard: int) -> pa.Table:
        """What `pack_rows` is given: buckets, files, texts and what becomes the samples' .json, in `bucket`'s order."""
        table = self.work.read("bucket", shard)
        keys = table["key"].to_pylist()
        columns = {name: table[name] for name in table.column_names}
        scan = self._by_key("scan", shard, _SCAN, keys)
        columns |= {name: scan[name] for name in _SCAN if name not in ("key", "width", "height", "caption")}
        columns |= {"original_width": scan["width"], "original_height": scan["height"], "alt": scan["caption"]}
        if self.captioned:
            captions = self._by_key("caption", shard, ("key", *_CAPTIONS), keys)
            columns |= {name: captions[name] for name in _CAPTIONS}
        for name in self._scored(shard):
            columns[name] = self._by_key(f"score/{name}", shard, ("key", "score"), keys)["score"]
        return pa.table(columns)

    def _by_key(self, stage: str, shard: int, columns: Sequence[str], keys: Sequence[str]) -> pa.Table:
        """The rows of a stage for these keys, in their order; nulls where it has none."""
        table = self.work.read(stage, shard, columns=columns)
        place = {key: row for row, key in enumerate(table["key"].to_pylist())}
        return table.take(pa.array([place.get(key) for key in keys], pa.int64()))

    def __call__(self, shard: int) -> None:
        known, read = self.stamp(shard), self._inputs(shard)
        if self.work.done("pack", shard, known):
            return
        # The tars are replaced one by one: until all are, no mark may vouch for them.
        self.work.path("pack", shard).with_suffix(".done").unlink(missing_ok=True)
        index = pack_rows(self.rows(shard), open_picture, self.config, self.work.folder / "pack", shard)
        self.work.write("pack", shard, index, known, read)

    def try_some(self, shard: int, count: int = 32) -> PackTrial:
        """Pack a few pictures of a shard into a folder that is then gone."""
        rows = self.rows(shard)
        count = min(count, rows.num_rows)
        rows = rows.take([i * rows.num_rows // count for i in range(count)])
        with tempfile.TemporaryDirectory(prefix="lens-pack-") as folder:
            start = time.process_time()
            index = pack_rows(rows, open_picture, self.config, Path(folder), 0)
            seconds = time.process_time() - start
        sizes: list[Any] = [size for size in index["nbytes"].to_pylist() if size is not None]
        return PackTrial(len(sizes), sum(sizes) / len(sizes), seconds / len(sizes)) if sizes else PackTrial(0, 0.0, 0.0)


def forget_others(work: Work, shards: Sequence[int]) -> None:
    """Take away the packed shards that the plan no longer has: training and every reader of tars would go on with them.

    Marks first: what an interruption leaves has none.
    """
    folder, kept = work.folder / "pack", set(shards)
    for shard in set(work.shards("pack")) - kept:
        work.path("pack", shard).with_suffix(".done").unlink(missing_ok=True)
    for file in (*folder.glob("*.parquet"), *folder.glob("*x*/*-*.tar")):
        number = file.stem.split("-")[0]
        if number.isdecimal() and int(number) not in kept:
            file.unlink()


def choose_text(work: Work, shards: Sequence[int], config: PackConfig) -> PackConfig:
    """The settings with `text` decided. Raises LensError where captions are wanted, or begun, and not all there."""
    there = [work.mark("caption", shard) is not None for shard in shards]
    if config.text is None and not any(there):
        return replace(config, text="alt")
    if config.text != "alt" and not all(there):
        raise LensError(
            f"{work.folder}: {there.count(False):,} of {len(there):,} shards have no captions",
            hint="lens train data caption WORK; or train on the text that came with the pictures: --set text=alt",
        )
    return config if config.text is not None else replace(config, text="caption")
