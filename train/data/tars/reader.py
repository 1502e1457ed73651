"""Packed tars in an order that is a pure function of (seed, position).

    epoch      every full batch of every bucket once, in shuffled order; which samples meet in a batch is shuffled too
    position   a batch's number since the beginning of training, over all epochs and all ranks

So the order in which batches are taken does not depend on the number of ranks, and where a run stands is one number:
a run of 8 ranks that is stopped goes on with 3 exactly where it was. Shuffling is a keyed permutation that is computed
for the numbers that are asked for (a Feistel network that walks until it is inside the range), not a list: nothing is
stored, nothing is drawn ahead, and an epoch of a billion samples begins as fast as one of ten.

Every batch has one shape. Batches of different shapes may fall on different ranks in a step (the paper's mixed
stage); the sizes per base, 24, 10 and 6 in the paper, make them take about the same time.

In memory a sample takes 28 bytes. Heavy ring: numpy, pyarrow.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from backend.disk import path_below, read_error
from backend.errors import FileError, UsageError, first_line, os_reason
from backend.foreign.documents import parse_json
from train.data.tars.pack import read_members
from train.data.work import Work

_PICTURES = ("jpg", "webp", "png")
_NUMBERS = ("base", "width", "height", "tar_bytes", "offset", "nbytes")  # columns of the index
_SAMPLE_BYTES = 2**30  # of one sample: what is larger was not packed here
_OPEN_TARS = 64  # kept open by one reader: well below the 256 files that a process may have open on macOS


@dataclass(frozen=True)
class TarSample:
    """One packed picture."""

    picture: bytes  # the file, as packed: JPEG, WebP or PNG
    text: str
    record: Mapping[str, Any]  # what .json says: key, source, brief, crop, …

    def pixels(self) -> np.ndarray:
        """(H, W, 3) uint8, sRGB."""
        from train.data.pictures import decode

        return np.array(decode(self.picture))  # writable, as torch wants it


@dataclass(frozen=True)
class TarBucket:
    """Where the samples of one shape lie: arrays over its samples, ordered by shard and place in the shard."""

    base: int
    width: int
    height: int
    tar: np.ndarray  # int32: number of the tar in PackedIndex.tars
    offset: np.ndarray  # int64: bytes
    nbytes: np.ndarray  # int64
    digest: np.ndarray  # uint64: the first eight bytes of the SHA-256

    def __len__(self) -> int:
        return len(self.offset)


@dataclass(frozen=True)
class PackedIndex:
    """All complete shards of a folder of packed tars."""

    folder: Path
    tars: tuple[tuple[str, int], ...]  # (path below the folder, bytes)
    buckets: tuple[TarBucket, ...]  # by base, then width
    fingerprint: str  # of the order and contents of all samples

    @classmethod
    def load(cls, folder: Path) -> PackedIndex:
        """Read the index. `folder`: a work folder's `pack`.

        Raises FileError: no shard, or a tar gone or resized; UntrustedError: a tar whose name leads out of the folder.
        """
        work = Work(folder.parent)
        shards = work.shards(folder.name)
        tars: dict[tuple[str, int], int] = {}
        parts: dict[tuple[int, int, int], list[tuple[np.ndarray, ...]]] = {}
        whole = hashlib.sha256()
        for shard in shards:
            mark = work.mark(folder.name, shard)  # not `sha256`: a run goes on with what was packed, whatever is newer
            whole.update(mark.sha256.encode() if mark is not None else b"")
            _collect(work, folder, shard, tars, parts)
        if not parts:
            raise FileError(f"{folder} holds no packed pictures", hint="pack some first: lens train data pack WORK")
        for name, size in tars:
            _check_tar(path_below(folder, name, source=f"the index of {folder}"), size)
        columns = {shape: zip(*parts[shape], strict=True) for shape in sorted(parts)}
        buckets = tuple(TarBucket(*shape, *map(np.concatenate, arrays)) for shape, arrays in columns.items())
        return cls(folder=folder, tars=tuple(tars), buckets=buckets, fingerprint=whole.hexdigest())

    def __len__(self) -> int:
        return sum(len(bucket) for bucket in self.buckets)


def _collect(
    work: Work,
    folder: Path,
    shard: int,
    tars: dict[tuple[str, int], int],
    parts: dict[tuple[int, int, int], list[tuple[np.ndarray, ...]]],
) -> None:
    """Add one shard's samples to `parts`, its tars to `tars`."""
    try:
        table = work.read(folder.name, shard, (*_NUMBERS, "tar", "sha256", "error"))
        table = table.filter(table["error"].is_null())
        if not table.num_rows:
            return
        number = {name: _whole(table[name], name) for name in _NUMBERS}
        digests = [int.from_bytes(sha[:8], "big") for sha in table["sha256"].to_pylist()]
        names = [str(name) for name in table["tar"].to_pylist()]
        _check_places(number)
    except (pa.ArrowException, ValueError, TypeError, KeyError, OverflowError) as error:
        raise FileError(
            f"the index of {folder}, shard {shard}, is damaged: {first_line(error)}",
            hint=f"delete {folder / f'{shard:05d}.done'} and pack again: only that shard is redone",
        ) from error
    pairs = zip(names, number["tar_bytes"].tolist(), strict=True)
    tar = np.array([tars.setdefault(pair, len(tars)) for pair in pairs], np.int32)
    arrays = (tar, number["offset"], number["nbytes"], np.array(digests, np.uint64))
    shapes = np.stack([number[name] for name in ("base", "width", "height")], axis=1)
    for shape in np.unique(shapes, axis=0):
        chosen = (shapes == shape).all(axis=1)
        base, width, height = (int(number) for number in shape)
        parts.setdefault((base, width, height), []).append(tuple(array[chosen] for array in arrays))


def _whole(column: pa.ChunkedArray, name: str) -> np.ndarray:
    """A column of whole numbers as int64. Raises ValueError where one is missing, ArrowException where it is none."""
    if column.null_count or not pa.types.is_integer(column.type):
        raise ValueError(f"{name} holds what is no whole number")
    return column.cast(pa.int64()).to_numpy()


def _check_places(number: Mapping[str, np.ndarray]) -> None:
    """Raises ValueError where a sample lies outside its tar, is too large, or has no shape."""
    offset, nbytes, size = number["offset"], number["nbytes"], number["tar_bytes"]
    inside = (offset >= 0) & (nbytes > 0) & (nbytes <= np.minimum(size, _SAMPLE_BYTES)) & (offset <= size - nbytes)
    if not inside.all():
        raise ValueError("a sample lies outside its tar")
    for name in ("base", "width", "height"):
        if not ((number[name] > 0) & (number[name] < 2**20)).all():
            raise ValueError(f"{name} is no side of a picture")


def _check_tar(path: Path, size: int) -> None:
    try:
        found = path.stat().st_size
    except OSError as error:
        raise FileError(f"cannot read {path}: {os_reason(error)}", hint=_again(path)) from error
    if found != size:
        raise FileError(f"{path} has {found:,} bytes, its index says {size:,}: changed or cut short", hint=_again(path))


def _again(path: Path) -> str:
    shard = path.stem.split("-")[0]
    return f"delete {path.parent.parent / shard}.done and pack again: only that shard is redone"


class TarReader:
    """Says which samples make the batch at a position, and reads them.

    `batches`: pictures of a batch for every base that occurs. The last samples of a bucket that fill no batch are left
    out for this epoch; the next leaves out others.
    """

    def __init__(self, index: PackedIndex, *, seed: int, batches: Mapping[int, int]) -> None:
        self.index, self.seed = index, seed
        self.batches = {base: int(size) for base, size in batches.items()}
        for bucket in index.buckets:
            if self.batches.get(bucket.base, 0) < 1:
                raise UsageError(
                    f"{index.folder} holds pictures of base {bucket.base}, and no batch size is given for it",
                    hint="a recipe with that base, or pack for this one alone: lens train data run WORK2 … "
                    f"--set bucket.bases={','.join(str(base) for base in sorted(self.batches))}",
                )
        if not self.epoch_batches:
            raise UsageError(
                f"no bucket of {index.folder} fills a batch ({len(index):,} pictures in {len(index.buckets)} buckets)",
                hint="smaller batches, more pictures, fewer bases or ratios",
            )

    # ------------------------------------------------------------------------------------------------------ the order

    @cached_property
    def _ends(self) -> np.ndarray:
        """Running number of batches an epoch after each bucket."""
        return np.cumsum([len(bucket) // self.batches[bucket.base] for bucket in self.index.buckets])

    @property
    def epoch_batches(self) -> int:
        """Batches an epoch, all ranks together."""
        return int(self._ends[-1])

    def left_out(self) -> dict[tuple[int, int], int]:
        """(width, height) -> samples that an epoch leaves out, where there are any."""
        rest = {(b.width, b.height): len(b) % self.batches[b.base] for b in self.index.buckets}
        return {shape: number for shape, number in rest.items() if number}

    def plan(self, position: int) -> tuple[int, TarBucket, np.ndarray]:
        """What lies at a position: its epoch, its bucket and its samples' numbers in the bucket."""
        epoch, number = divmod(position, self.epoch_batches)
        shuffled = int(permute(np.array([number]), self.epoch_batches, f"{self.seed} {epoch} batches")[0])
        place = int(np.searchsorted(self._ends, shuffled, side="right"))
        bucket = self.index.buckets[place]
        size = self.batches[bucket.base]
        first = (shuffled - (int(self._ends[place - 1]) if place else 0)) * size
        numbers = np.arange(first, first + size)
        name = f"{self.seed} {epoch} {bucket.width}x{bucket.height}"
        return epoch, bucket, permute(numbers, len(bucket), name)

    # ------------------------------------------------------------------------------------------------------ the bytes

    def sample(self, bucket: TarBucket, number: int) -> TarSample:
        """Sample `number` of a bucket, as `plan` names it. Raises FileError. Not for several threads at once."""
        name, _ = self.index.tars[int(bucket.tar[number])]
        path = self.index.folder / name
        offset, nbytes = int(bucket.offset[number]), int(bucket.nbytes[number])
        try:
            block = os.pread(self._handle(path), nbytes, offset)
        except OSError as error:
            raise read_error(path, error) from error
        if hashlib.sha256(block).digest()[:8] != int(bucket.digest[number]).to_bytes(8, "big"):
            raise FileError(f"{path} is not what was packed: the sample at byte {offset:,} changed", hint=_again(path))
        try:
            members = read_members(block)
            picture = next(members[suffix] for suffix in _PICTURES if suffix in members)
            return TarSample(picture, members["txt"].decode(), parse_json(members["json"]))
        except (tarfile.TarError, ValueError, KeyError, StopIteration) as error:
            raise FileError(f"{path} holds no sample at byte {offset:,}", hint=_again(path)) from error

    @cached_property
    def _handles(self) -> dict[Path, int]:
        return {}

    def _handle(self, path: Path) -> int:
        """An open tar; the one not used for longest is closed when there are too many."""
        handle = self._handles.pop(path, None)
        if handle is None:
            if len(self._handles) >= _OPEN_TARS:
                os.close(self._handles.pop(next(iter(self._handles))))
            handle = os.open(path, os.O_RDONLY)
        self._handles[path] = handle
        return handle

    def close(self) -> None:
        """Close the tars; they are opened again where one is needed."""
        while self._handles:
            os.close(self._handles.popitem()[1])

    def __del__(self) -> None:
        with contextlib.suppress(OSError):
            self.close()

    def __getstate__(self) -> dict[str, Any]:
        """For worker processes: without the open files."""
        return {key: value for key, value in self.__dict__.items() if key != "_handles"}


# ------------------------------------------------------------------------------------------------- a keyed permutation


def permute(numbers: np.ndarray, size: int, key: str) -> np.ndarray:
    """Where a shuffle of range(size), the one that `key` names, puts these numbers (int64, each in range(size)).

    A Feistel network of six rounds over the least even number of bits that holds `size`; what falls outside the range
    goes through again, which keeps it one to one. Fixed arithmetic on 64-bit integers: the same on every machine and
    in every version of numpy, which its own shuffles do not promise.
    """
    half = max(1, -(-(size - 1).bit_length() // 2))  # bits; 4**half >= size, and less than 4 * size from 2 on
    mask = np.uint64((1 << half) - 1)
    rounds = np.frombuffer(hashlib.sha512(key.encode()).digest(), "<u8")[:6].astype(np.uint64)
    values = numbers.astype(np.uint64)
    outside = np.ones(values.shape, bool)
    while outside.any():
        left, right = values[outside] >> np.uint64(half), values[outside] & mask
        for subkey in rounds:
            left, right = right, left ^ (_mix(right ^ subkey) & mask)
        values[outside] = left << np.uint64(half) | right
        outside = values >= size
    return values.astype(np.int64)


def _mix(values: np.ndarray) -> np.ndarray:
    """The finishing steps of SplitMix64: every bit of the input moves every bit of the result. Wraps around."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
