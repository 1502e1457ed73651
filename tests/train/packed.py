"""Small packed folders for the tests of packing and reading."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image

from train.data.buckets import BucketConfig, bucket_rows
from train.data.tars.pack import PackConfig, pack_rows
from train.data.work import Work

SMALL = BucketConfig(bases=(32, 64), ratios=("1:2", "1:1", "2:1"), least_kept=0.0)


def picture(number: int, width: int, height: int) -> bytes:
    """A PNG of one colour, which tells its number: red and green hold it."""
    image = Image.new("RGB", (width, height), (number % 256, number // 256, 128))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def corpus(numbers: range, sizes: tuple[tuple[int, int], ...]) -> tuple[pa.Table, dict[str, bytes]]:
    """Rows as packing gets them, bucketed, and the files by key. Picture n has sizes[n % …] and "caption n"."""
    rows: list[dict[str, Any]] = []
    files: dict[str, bytes] = {}
    for number in numbers:
        width, height = sizes[number % len(sizes)]
        key = f"here/{number}.png"
        files[key] = picture(number, width, height)
        rows.append({"key": key, "source": "here", "width": width, "height": height, "caption": f"caption {number}"})
    table = pa.Table.from_pylist(rows)
    placed = bucket_rows(table, SMALL)
    for name in ("source", "caption"):
        placed = placed.append_column(name, table[name])
    return placed, files


def pack(
    folder: Path, shards: list[range], sizes: tuple[tuple[int, int], ...], config: PackConfig | None = None
) -> Path:
    """`folder`/pack with these shards; returns it."""
    config = config or PackConfig(format="png")
    work = Work(folder)
    for shard, numbers in enumerate(shards):
        rows, files = corpus(numbers, sizes)

        def read(row: Mapping[str, Any], files: dict[str, bytes] = files) -> bytes:
            return files[row["key"]]

        work.write("pack", shard, pack_rows(rows, read, config, folder / "pack", shard), "stamp")
    return folder / "pack"
