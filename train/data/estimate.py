"""What a run would cost, from a listing and from trying a few pictures: nothing is written.

Heavy ring: pyarrow, Pillow.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from train.data.buckets import BucketConfig, bucket_rows
from train.data.scan import ScanSettings, scan_rows
from train.data.score import score_rows
from train.data.sources import PictureSource, containers, list_container
from train.data.tars.pack import TEXTS, PackConfig, sample_of
from train.data.work import Work, open_picture, total

SAMPLE = 64  # pictures that are tried, spread over all
_PATIENCE = 20.0  # seconds after which no more are tried


@dataclass(frozen=True)
class Listing:
    """What the sources hold, without having read any of it."""

    pictures: int
    shards: int
    nbytes: int  # of the pictures whose size the listing tells
    unknown: int  # pictures whose size only reading tells: a Parquet's cells
    captions: int  # pictures with a caption beside them
    notes: tuple[str, ...]  # what is wrong with containers
    sample: pa.Table  # of LISTING, with the columns `source` and `prefix` added
    by_source: dict[str, int]  # pictures


@dataclass(frozen=True)
class ShardTrial:
    """A sample that was scanned and scored in this process."""

    pictures: int
    scan_seconds: float  # a picture, of one core
    score_seconds: float  # the same, for the filters asked for
    row_bytes: float  # of Parquet a picture, scan and scores together
    pack_seconds: float  # a picture, of one core; 0 where none of those tried has a bucket
    packed_bytes: float  # of tars a picture, those without a bucket among them


def list_sources(sources: Sequence[PictureSource], settings: ScanSettings, without: Path) -> Listing:
    """List all containers, one after the other."""
    shards = nbytes = unknown = captions = 0
    notes: list[str] = []
    samples: list[pa.Table] = []
    by_source: dict[str, int] = {}
    found = [(source, container) for source in sources for container in containers(source, without)]
    for source, container in found:
        table, note = list_container(container, settings, without)
        notes += [note] if note else []
        shards += -(-table.num_rows // settings.shard_size)
        nbytes += total(table["nbytes"])
        unknown += table["nbytes"].null_count
        captions += table.num_rows - _both_null(table["caption_path"], table["caption"])
        by_source[source.name] = by_source.get(source.name, 0) + table.num_rows
        part = table.take(spread(table.num_rows, SAMPLE))
        part = part.append_column("source", pa.array([source.name] * part.num_rows, pa.string()))
        samples.append(part.append_column("prefix", pa.array([container.prefix] * part.num_rows, pa.string())))
        if len(samples) > SAMPLE:  # thousands of tars: thin them out as they come
            samples = [_thin(samples)]
    sample = _thin(samples) if samples else pa.table({})
    return Listing(sum(by_source.values()), shards, nbytes, unknown, captions, tuple(notes), sample, by_source)


def _thin(samples: list[pa.Table]) -> pa.Table:
    table = pa.concat_tables(samples)
    return table.take(spread(table.num_rows, SAMPLE))


def spread(count: int, wanted: int) -> list[int]:
    """At most `wanted` numbers below `count`, evenly spread."""
    wanted = min(count, wanted)
    return [i * count // wanted for i in range(wanted)]


def try_sample(
    listed: Listing, filters: tuple[str, ...], max_pixels: int, buckets: BucketConfig, pack: PackConfig
) -> ShardTrial:
    """Scan, score and pack the sample until it ends or patience does."""
    listing = listed.sample
    spent = [0.0, 0.0, 0.0]  # scan, score, pack: seconds
    packed = 0
    scans: list[pa.Table] = []
    scores: dict[str, list[pa.Table]] = {}

    def scan(number: int) -> pa.Table:
        row: dict[str, Any] = listing.slice(number, 1).to_pylist()[0]
        prefix = f"{row['source']}/{row['prefix']}"
        return scan_rows(listing.slice(number, 1), row["source"], prefix, max_pixels)

    score_rows(scan(0), filters, max_pixels=max_pixels)  # what is imported on the way is no picture's time
    began = time.monotonic()
    for number in range(listing.num_rows):
        times = [time.perf_counter()]
        scanned = scan(number)
        times.append(time.perf_counter())
        for name, table in score_rows(scanned, filters, max_pixels=max_pixels).items():
            scores.setdefault(name, []).append(table)
        times.append(time.perf_counter())
        packed += _packed_bytes(scanned, buckets, pack)
        times.append(time.perf_counter())
        spent = [total + end - start for total, (start, end) in zip(spent, itertools.pairwise(times), strict=True)]
        scans.append(scanned)
        if time.monotonic() - began > _PATIENCE:
            break
    tables = [scans, *scores.values()]
    size = sum(_parquet_bytes(pa.concat_tables(parts)) for parts in tables)
    n = len(scans)
    return ShardTrial(n, spent[0] / n, spent[1] / n, size / n, spent[2] / n, packed / n)


def _packed_bytes(scanned: pa.Table, buckets: BucketConfig, pack: PackConfig) -> int:
    """Bytes that one picture would take in a tar, its texts left out; 0 for one that gets no bucket."""
    row = {**scanned.to_pylist()[0], **bucket_rows(scanned, buckets).to_pylist()[0]}
    if row["error"] is not None:
        return 0
    made = sample_of({**row, pack.text or TEXTS[0]: "a"}, open_picture, pack)
    return 0 if isinstance(made, str) else sum(-(-len(data) // 512) * 512 + 512 for data in made.values())


def time_scoring(work: Work, shard: int, filters: tuple[str, ...], max_pixels: int) -> tuple[int, float]:
    """(pictures tried, seconds a picture) of a scanned shard, in this process."""
    rows = work.read("scan", shard)
    rows = rows.take(spread(rows.num_rows, SAMPLE))
    start = time.perf_counter()
    score_rows(rows, filters, max_pixels=max_pixels)
    return rows.num_rows, (time.perf_counter() - start) / rows.num_rows


def _both_null(one: pa.ChunkedArray, other: pa.ChunkedArray) -> int:
    return int((one.is_null().to_numpy() & other.is_null().to_numpy()).sum())


def _parquet_bytes(table: pa.Table) -> int:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue().size
