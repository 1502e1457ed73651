"""Stage `dedup`: of pictures that are the same, or nearly, the best one stays (paper section 2.1, 9).

    exact         the same file, by SHA-256
    perceptual    looks the same: scaled, encoded again (`train.data.duplicates.perceptual`)
    clip          CLIP embeddings with a cosine above 0.985 (`train.data.duplicates.neighbours`), where `score` made
    some

The three follow one another, each among what the one before left. "Best" is one order for all: has a caption or will
be given one, most pixels, then the best aesthetic score, then the key; so the result does not depend on how pictures
are dealt into shards. A picture is a duplicate only of one that stays, and within a kind it is like that very one:
likeness makes no chains.

First every shard by itself (`dedup/look/00000.parquet`, each picture decoded once), then one pass over all of them,
which holds under a kilobyte a picture in memory and the embeddings in a file.

Heavy ring: pyarrow, numpy.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import IO, Any

import numpy as np
import pyarrow as pa

from backend.disk import make_folder, write_error
from backend.errors import FileError, LensError, UsageError
from backend.fields import check_ranges, within
from train.data.duplicates import perceptual
from train.data.duplicates.neighbours import first_alike
from train.data.selection import selected_rows
from train.data.work import Work, open_picture, stamp

VERSION = 2
KINDS = ("exact", "perceptual", "clip")
LOOK = pa.schema([("key", pa.string()), ("bits", pa.binary(32)), ("colours", pa.binary(192))])  # null: unreadable
SCHEMA = pa.schema(
    [
        ("key", pa.string()),  # of every picture that `select` kept
        ("kept", pa.bool_()),
        ("duplicate_of", pa.string()),  # the key of one that is kept; None: it is kept itself
        ("kind", pa.string()),  # in KINDS
    ]
)


@dataclass(frozen=True, kw_only=True)
class DedupSettings:
    """What the stage `dedup` is told. The threshold of 0.985 is the paper's, the rest are ours."""

    kinds: tuple[str, ...] = KINDS
    most_bits: int = within(10, 0, 63)  # of 256 that may differ; scaled or encoded again: 0 to 8, others: 100 and more
    most_colour: float = 6.0  # of 255: the mean difference of 8 x 8 pixels
    cosine: float = within(0.985, 0, 1, ends=False)  # of CLIP embeddings; above it they are duplicates
    probes: int = within(4, 1)  # lists that are searched, beyond 2 million pictures
    device: str = "cpu"  # of the comparison of embeddings: cpu or cuda

    def __post_init__(self) -> None:
        if unknown := [kind for kind in self.kinds if kind not in KINDS]:
            raise UsageError(f"{unknown[0]!r} is no kind of duplicate", hint=f"known: {', '.join(KINDS)}")
        check_ranges(self)
        if not re.fullmatch(r"cpu|cuda(:\d+)?", self.device):
            raise UsageError(f"device = {self.device!r} is unknown", hint="cpu, cuda or cuda:N")


@dataclass(frozen=True)
class Look:
    """Writes `dedup/look/<shard>`: what each selected picture looks like."""

    work: Work

    def stamp(self, shard: int) -> str:
        return stamp(perceptual.VERSION, {}, *self._inputs(shard).values())

    def _inputs(self, shard: int) -> dict[str, str]:
        return self.work.inputs(shard, ["scan", "select"])

    def __call__(self, shard: int) -> None:
        known, read = self.stamp(shard), self._inputs(shard)
        if not self.work.done("dedup/look", shard, known):
            columns = ["key", "path", "member", "offset", "nbytes"]
            rows = selected_rows(self.work, shard, columns)
            self.work.write("dedup/look", shard, look_rows(rows, open_picture), known, read)


def look_rows(rows: pa.Table, read: Callable[[Mapping[str, Any]], bytes]) -> pa.Table:
    """LOOK for each row, in order."""
    from train.data.pictures import Unreadable, decode

    made: list[dict[str, Any]] = []
    for row in rows.to_pylist():
        try:
            bits, colours = perceptual.look(decode(read(row)))
        except (Unreadable, FileError):
            bits = colours = None
        made.append({"key": row["key"], "bits": bits, "colours": colours})
    return pa.Table.from_pylist(made, schema=LOOK)


# ---------------------------------------------------------------------------------------------------- the pass over all


def dedup(work: Work, shards: Sequence[int], settings: DedupSettings, captioned: Collection[str] = ()) -> Counter[str]:
    """Write `dedup/<shard>` for all shards at once; returns how many of each kind were dropped. Idempotent.

    `captioned`: the sources whose pictures are given captions later, so that none counts as without one.
    Raises FileError for a key that stands for two pictures, LensError where a stage before is missing, or where some
    shards have embeddings and others have none.
    """
    known = whole_stamp(work, shards, settings, captioned)
    if not all(work.done("dedup", shard, known) for shard in shards):
        everything = _gather(work, shards, captioned)
        found, kinds = _decide(work, shards, everything, settings)
        stages = stages_read(work, shards, settings)
        reads = {shard: work.inputs(shard, stages) for shard in shards}
        _write(work, shards, everything, found, kinds, known, reads)
    tables = (work.read("dedup", shard, columns=["kind"]) for shard in shards)
    return Counter(kind for table in tables for kind in table["kind"].to_pylist() if kind is not None)


def whole_stamp(work: Work, shards: Sequence[int], settings: DedupSettings, captioned: Collection[str]) -> str:
    """Hash all that the pass reads: a change in one shard may change what stays in another."""
    read = hashlib.sha256()
    for stage in stages_read(work, shards, settings):
        for shard in shards:
            read.update(f"{stage} {shard} {work.sha256(stage, shard)}\n".encode())
    rules = {key: value for key, value in asdict(settings).items() if key != "device"}
    return stamp(VERSION, {**rules, "captioned": sorted(captioned)}, read.hexdigest())


def stages_read(work: Work, shards: Sequence[int], settings: DedupSettings) -> list[str]:
    """What the pass reads of every shard."""
    stages = ["scan", "select"]
    stages += ["dedup/look"] if "perceptual" in settings.kinds else []
    stages += ["score/clip"] if with_embeddings(work, shards, settings) else []
    return stages + (["score/aesthetic"] if all(work.mark("score/aesthetic", shard) for shard in shards) else [])


def with_embeddings(work: Work, shards: Sequence[int], settings: DedupSettings) -> bool:
    """Whether CLIP's embeddings are there and wanted. Raises LensError where only some shards have them."""
    if "clip" not in settings.kinds:
        return False
    there = [work.mark("score/clip", shard) is not None for shard in shards]
    if any(there) and not all(there):
        raise LensError(
            f"{work.folder}: {there.count(False):,} of {len(there):,} shards have no CLIP embeddings",
            hint="score again with the same clip model, or dedup with --set kinds=exact,perceptual",
        )
    return all(there) and bool(there)


@dataclass(frozen=True)
class _Everything:
    """All selected pictures, in order of preference."""

    keys: pa.ChunkedArray  # in order of shards, not of preference
    order: np.ndarray  # int64: place in `keys` of each
    shard: np.ndarray  # int32, in order of shards, as all that follow
    sha256: np.ndarray  # bytes of 32
    ratio: np.ndarray  # float64: width over height


def _gather(work: Work, shards: Sequence[int], captioned: Collection[str]) -> _Everything:
    keys: list[pa.ChunkedArray] = []
    names = ("shard", "sha", "width", "height", "aesthetic", "text")
    parts: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for shard in shards:
        rows = selected_rows(work, shard, ["key", "source", "sha256", "width", "height", "caption"])
        keys.append(rows["key"])
        parts["shard"].append(np.full(rows.num_rows, shard, np.int32))
        files = zip(rows["key"].to_pylist(), rows["sha256"].to_pylist(), strict=True)
        shas = [bytes.fromhex(sha) if sha else hashlib.sha256(key.encode()).digest() for key, sha in files]
        parts["sha"].append(np.array(shas, dtype="V32"))
        for side in ("width", "height"):
            parts[side].append(np.maximum(rows[side].fill_null(1).to_numpy().astype(np.int64), 1))
        parts["aesthetic"].append(_aesthetic(work, shard, rows["key"]))
        told = zip(rows["source"].to_pylist(), rows["caption"].is_valid().to_pylist(), strict=True)
        parts["text"].append(np.array([own or source in captioned for source, own in told], bool))
    whole = {name: np.concatenate(arrays) if arrays else np.empty(0) for name, arrays in parts.items()}
    joined = pa.chunked_array([chunk for key in keys for chunk in key.chunks], pa.string())
    names = np.array(joined.to_pylist(), dtype=object)
    by_key = np.argsort(names, kind="stable")
    twins = np.flatnonzero(names[by_key][1:] == names[by_key][:-1])
    if len(twins):
        key = str(names[by_key][twins[0]])
        raise FileError(f"the key {key!r} stands for two pictures", hint="give their sources two names and scan again")
    rank = np.empty(len(names), np.int64)
    rank[by_key] = np.arange(len(names))
    # A picture without a text cannot be trained on: that it is larger helps nobody.
    order = np.lexsort((rank, -whole["aesthetic"], -(whole["width"] * whole["height"]), whole["text"] == 0))
    return _Everything(joined, order, whole["shard"], whole["sha"], whole["width"] / whole["height"])


def _aesthetic(work: Work, shard: int, keys: pa.ChunkedArray) -> np.ndarray:
    """Scores where they were made; 0 for all where they were not."""
    if work.mark("score/aesthetic", shard) is None:
        return np.zeros(len(keys))
    table = work.read("score/aesthetic", shard)
    score = dict(zip(table["key"].to_pylist(), table["score"].to_pylist(), strict=True))
    return np.array([score.get(key) or 0.0 for key in keys.to_pylist()])


def _decide(
    work: Work, shards: Sequence[int], everything: _Everything, settings: DedupSettings
) -> tuple[np.ndarray, np.ndarray]:
    """For every place in order of preference: the place of what it is a duplicate of or -1, and its kind or -1."""
    order = everything.order
    found = np.full(len(order), -1, np.int64)
    kinds = np.full(len(order), -1, np.int8)

    def drop(kind: str, left: np.ndarray, of: np.ndarray) -> None:
        """`of`: among the places `left`, what each is a duplicate of, or -1."""
        out = of >= 0
        found[left[out]], kinds[left[out]] = left[of[out]], KINDS.index(kind)

    if "exact" in settings.kinds:
        drop("exact", np.arange(len(order)), _exact(everything.sha256[order]))
    if "perceptual" in settings.kinds:
        left = np.flatnonzero(found < 0)
        bits, colours, readable = _looks(work, shards, order[left])
        left, bits, colours = left[readable], bits[readable], colours[readable]
        ratios = everything.ratio[order[left]]
        limits = {"most_bits": settings.most_bits, "most_colour": settings.most_colour}
        drop("perceptual", left, perceptual.first_alike(bits, colours, ratios, **limits))
    if with_embeddings(work, shards, settings):
        left = np.flatnonzero(found < 0)
        make_folder(work.folder / "dedup")
        with tempfile.TemporaryFile(dir=work.folder / "dedup") as file:  # without a name: gone with this process
            vectors, readable = _embeddings(work, shards, order[left], file)
            alike = first_alike(vectors, settings.cosine, device=settings.device, probes=settings.probes)
            drop("clip", left[readable], alike)
            del vectors
    return _stay(found), kinds


def _stay(found: np.ndarray) -> np.ndarray:
    """Point past what a later kind dropped: "a is b's copy, b looks like c" names c for a, which stays."""
    while True:
        through = np.where(found >= 0, found[found], -1)
        if not (through >= 0).any():
            return found
        found = np.where(through >= 0, through, found)


def _exact(shas: np.ndarray) -> np.ndarray:
    _, firsts, group = np.unique(shas, return_index=True, return_inverse=True)
    first = firsts[group]  # np.unique gives the first of each: the most preferred
    return np.where(first == np.arange(len(shas)), -1, first)


def _looks(work: Work, shards: Sequence[int], places: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    tables = [work.read("dedup/look", shard, columns=["bits", "colours"]) for shard in shards]
    table = pa.concat_tables(tables).take(pa.array(places)) if tables else LOOK.empty_table()
    readable = np.array([bits is not None for bits in table["bits"].to_pylist()], bool)

    def matrix(name: str, width: int) -> np.ndarray:
        cells = (cell or bytes(width) for cell in table[name].to_pylist())
        return np.frombuffer(b"".join(cells), np.uint8).reshape(-1, width)

    return matrix("bits", perceptual.BITS // 8), matrix("colours", perceptual.COLOURS), readable


def _embeddings(
    work: Work, shards: Sequence[int], places: np.ndarray, file: IO[bytes]
) -> tuple[np.ndarray, np.ndarray]:
    """((m, d) float16 of those that have one, mapped from `file`; which of `places` they are), both in order.

    Raises FileError where the disk has no room for them.
    """
    found = [_embedded(work, shard) for shard in shards]
    there = np.concatenate([rows >= 0 for rows, _ in found]) if found else np.empty(0, bool)
    readable = np.flatnonzero(there[places])
    width = max((width for _, width in found), default=1)
    if not len(readable):
        return np.empty((0, width), np.float16), readable
    try:
        if hasattr(os, "posix_fallocate"):  # or a full disk would be found out by a signal, in the middle of a copy
            os.posix_fallocate(file.fileno(), 0, len(readable) * width * 2)
        vectors = np.memmap(file, np.float16, "r+", shape=(len(readable), width))  # pyright: ignore[reportArgumentType]
    except OSError as error:
        raise write_error(work.folder / "dedup", error) from error
    row_of = np.full(len(there), -1, np.int64)  # place in order of shards -> row of the file
    row_of[places[readable]] = np.arange(len(readable))
    begin = 0
    for shard, (rows, _) in zip(shards, found, strict=True):
        mine = row_of[begin : begin + len(rows)]
        begin += len(rows)
        if len(chosen := np.flatnonzero(mine >= 0)):
            cells = work.read("score/clip", shard, columns=["embedding"])["embedding"].combine_chunks()
            values = cells.take(pa.array(rows[chosen])).flatten().to_numpy(zero_copy_only=False)
            vectors[mine[chosen]] = values.reshape(-1, width)
    return vectors, readable


def _embedded(work: Work, shard: int) -> tuple[np.ndarray, int]:
    """(of every selected picture of a shard the row of its embedding or -1, the embeddings' width)."""
    table = work.read("score/clip", shard)
    row_in = {key: row for row, key in enumerate(table["key"].to_pylist())}
    valid = table["embedding"].is_valid().to_numpy()
    rows = (row_in.get(key, -1) for key in selected_rows(work, shard, ["key"])["key"].to_pylist())
    return np.array([row if row >= 0 and valid[row] else -1 for row in rows], np.int64), table[
        "embedding"
    ].type.list_size


def _write(
    work: Work, shards: Sequence[int], everything: _Everything, found: np.ndarray, kinds: np.ndarray, known: str,
    reads: Mapping[int, Mapping[str, str]],
) -> None:  # fmt: skip
    """From order of preference back to a table a shard."""
    order, keys = everything.order, everything.keys
    of, kind = np.full(len(order), -1, np.int64), np.full(len(order), -1, np.int8)
    of[order], kind[order] = np.where(found >= 0, order[found], -1), kinds
    for shard in shards:
        rows = np.flatnonzero(everything.shard == shard)
        targets = pa.array(of[rows], mask=of[rows] < 0)
        names = [KINDS[k] if k >= 0 else None for k in kind[rows].tolist()]
        columns = [keys.take(pa.array(rows)), pa.array(of[rows] < 0), keys.take(targets), pa.array(names, pa.string())]
        work.write("dedup", shard, pa.table(columns, schema=SCHEMA), known, reads[shard])
