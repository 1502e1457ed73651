"""What a weights file says about itself: formats told apart by their first bytes, headers read and checked for length.

Standard library only, and never the tensor data: `lens models verify` and the detection of a model by its tensors
stay free of torch. What this does not know: whether the numbers are right; only SHA-256 tells that.
"""

from __future__ import annotations

import functools
import mmap
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from stat import S_ISREG
from typing import Any

from backend.cache.notes import note_of
from backend.errors import CheckpointError, os_reason, shown
from backend.foreign import documents
from backend.foreign.documents import Unreadable
from backend.packing.ggml_layout import GGML_BLOCKS

SAFETENSORS_BITS = {  # bits of one element, by the dtype string of the header
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U8": 8, "BOOL": 8,
    "U16": 16, "U32": 32, "U64": 64, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4,
}  # fmt: skip
MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library itself
LFS_MARK = b"version https://git-lfs.github.com/spec/"


class FileFormat(StrEnum):
    """Told from the first bytes, never from the name."""

    safetensors = "safetensors"
    gguf = "gguf"


@dataclass(frozen=True)
class TensorHeader:
    """One tensor of a file: `shape` row-major (GGUF's order reversed), `start` and `nbytes` absolute in the file."""

    name: str
    dtype: str  # safetensors: "F32", "BF16", ...; GGUF: the number of the ggml type as text
    shape: tuple[int, ...]
    start: int
    nbytes: int


@dataclass(frozen=True)
class FileHeader:
    """The parsed header of one weights file."""

    path: Path
    format: FileFormat
    tensors: Mapping[str, TensorHeader]
    metadata: Mapping[str, Any]  # safetensors: `__metadata__` (strings); GGUF: every key

    @property
    def parameters(self) -> int:
        """Number of stored elements (packed formats count their bytes)."""
        total = 0
        for tensor in self.tensors.values():
            count = 1
            for side in tensor.shape:
                count *= side
            total += count
        return total


def read_header(path: Path) -> FileHeader:
    """Parse the header of `path` and check that all the data it promises is there.

    Remembered while the file's time and size stay the same: gpt-oss's GGUF header takes half a second.
    Raises CheckpointError for a missing, empty, truncated or foreign file, an LFS pointer and a pickle.
    """
    stat = _stat(path)
    return _read_header(path, stat.st_mtime_ns, stat.st_size)


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise CheckpointError(f"{path}: {os_reason(error)}") from error


@functools.lru_cache(maxsize=64)
def _read_header(path: Path, _mtime: int, _size: int) -> FileHeader:
    kind = detect_format(path)
    return _read_safetensors(path) if kind is FileFormat.safetensors else _read_gguf(path)


def read_summary(path: Path) -> FileHeader:
    """What `read_header` says, without long metadata values, from a note where the file has not changed since.

    Enough to tell what a file is and which parameters it states, without opening it again: a prompt whose features
    are known must not touch the language model. A value that is left out (a list of over 1000 entries, a text of over
    100,000 characters: the tokenizer) keeps its key and is None. Raises CheckpointError as `read_header` does.
    """
    stat = _stat(path)
    return _read_summary(path, stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=64)
def _read_summary(path: Path, _mtime: int, _size: int) -> FileHeader:
    found = note_of("header-1", path, _stat(path), lambda: _summary(read_header(path)))
    try:
        tensors = {
            str(name): TensorHeader(str(name), str(dtype), tuple(map(int, shape)), int(start), int(nbytes))
            for name, dtype, shape, start, nbytes in found["tensors"]
        }
        return FileHeader(path, FileFormat(found["format"]), tensors, dict(found["metadata"]))
    except (KeyError, TypeError, ValueError):  # a note that somebody else wrote
        return read_header(path)


def _summary(header: FileHeader) -> dict[str, Any]:
    def short(value: Any) -> Any:
        long = (isinstance(value, list) and len(value) > 1000) or (isinstance(value, str) and len(value) > 100_000)
        return None if long else value

    return {
        "format": str(header.format),
        "tensors": [[t.name, t.dtype, list(t.shape), t.start, t.nbytes] for t in header.tensors.values()],
        "metadata": {key: short(value) for key, value in header.metadata.items()},
    }


def detect_format(path: Path) -> FileFormat:
    """The format by magic bytes. Raises CheckpointError that names what the file is instead."""
    if not S_ISREG(_stat(path).st_mode) and not path.is_dir():  # of a folder the system says so
        raise CheckpointError(f"{path}: no regular file")  # a FIFO would be waited for
    try:
        with path.open("rb") as file:
            head = file.read(512)
            size = path.stat().st_size
    except OSError as error:
        raise CheckpointError(f"{path}: {os_reason(error)}") from error
    if not head:
        raise CheckpointError(f"{path}: empty file", hint="download it again: lens models pull")
    if head.startswith(LFS_MARK):
        raise CheckpointError(
            f"{path}: a Git LFS pointer of {size} bytes, not the weights themselves",
            hint="run `git lfs pull` in that clone, or fetch the file with `lens models pull`",
        )
    if head.startswith(b"GGUF"):
        return FileFormat.gguf
    if head.startswith(b"PK\x03\x04") or (head[0] == 0x80 and len(head) > 1 and head[1] in range(1, 6)):
        raise a_pickle(path)
    if head.lstrip()[:1] == b"<":
        raise CheckpointError(f"{path}: a web page, not weights", hint="download it again: lens models pull")
    if size < 8:
        raise CheckpointError(f"{path}: cut short before its header ({size} bytes)", hint="download it again")
    length = int.from_bytes(head[:8], "little")
    if 2 <= length <= MAX_HEADER_BYTES and head[8:9] == b"{":
        return FileFormat.safetensors
    raise CheckpointError(f"{path}: neither safetensors nor GGUF", hint="lens reads .safetensors and .gguf weights")


PICKLES = (".bin", ".pt", ".pth", ".ckpt")  # how the names of PyTorch's own files end


def a_pickle(path: Path) -> CheckpointError:
    """The error for a file of PyTorch's own format, which is told by its name or by its first bytes."""
    return CheckpointError(
        f"{path}: a pickle (PyTorch .pt/.ckpt/.bin); opening one can run code, so lens never does",
        hint="use a .safetensors or .gguf file of the same weights",
    )


def _truncated(path: Path, have: int, need: int, where: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: cut short in its {where}: {have:,} bytes on disk, at least {need:,} needed",
        hint="an interrupted download; fetch it again with `lens models pull`",
    )


# safetensors ---------------------------------------------------------------------------------------------------------


def _read_safetensors(path: Path) -> FileHeader:
    """Layout: u64 header length, JSON header, tensor bytes. Source: the safetensors format description."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if 8 + length > size:
            raise _truncated(path, size, 8 + length, "header")
        raw = file.read(length)
    try:
        table = documents.parse_json(raw)
    except Unreadable as error:
        raise CheckpointError(f"{path}: unreadable safetensors header ({error})", hint="download it again") from error
    if not isinstance(table, dict):
        raise CheckpointError(f"{path}: unreadable safetensors header (not a table)", hint="download it again")
    metadata = table.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict):
        raise CheckpointError(f"{path}: unreadable safetensors header (its metadata are no table)")
    base = 8 + length
    tensors: dict[str, TensorHeader] = {}
    end = base
    for name, entry in table.items():
        try:
            dtype, shape = str(entry["dtype"]), tuple(_whole(side) for side in entry["shape"])
            first, last = (_whole(offset) for offset in entry["data_offsets"])
            if len(shape) > _SIDES:
                raise ValueError("more sides than any tensor has")
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path}: tensor {shown(name)} has a broken header entry") from error
        bits = SAFETENSORS_BITS.get(dtype)
        if bits is None:
            raise CheckpointError(f"{path}: tensor {shown(name)} has the unknown dtype {shown(dtype)}")
        count = 1
        for side in shape:
            count *= side
        if first < 0 or last < first or (last - first) * 8 != count * bits:
            raise CheckpointError(
                f"{path}: tensor {shown(name)} of shape {list(shape)} ({dtype}) claims {last - first} bytes, "
                f"expected {count * bits // 8}"
            )
        tensors[name] = TensorHeader(name, dtype, shape, base + first, last - first)
        end = max(end, base + last)
    if end > size:
        raise _truncated(path, size, end, "tensor data")
    return FileHeader(path, FileFormat.safetensors, tensors, metadata)


_SIDES = 8


def _whole(value: Any) -> int:
    """A size or place of a header. Raises ValueError for what cannot be one."""
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise ValueError("no size")
    return value


# GGUF ----------------------------------------------------------------------------------------------------------------

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_ENTRIES = 2**24  # of a list: a tokenizer has 200,000 tokens and 450,000 merges; each takes 50 bytes here
_NESTED = 4  # arrays within arrays; llama.cpp reads one


class _Cursor:
    """Reads forward through a mapped file; running past its end is a CheckpointError, not an IndexError."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.at, self.size = path, data, 0, len(data)

    def take(self, layout: str) -> Any:
        need = struct.calcsize("<" + layout)
        if self.at + need > self.size:
            raise _truncated(self.path, self.size, self.at + need, "header")
        (value,) = struct.unpack_from("<" + layout, self.data, self.at)
        self.at += need
        return value

    def text(self) -> str:
        length = self.take("Q")
        if self.at + length > self.size:
            raise _truncated(self.path, self.size, self.at + length, "header")
        raw = self.data[self.at : self.at + length]
        self.at += length
        return raw.decode("utf-8", errors="replace")  # a token may be a lone byte; keys are ASCII

    def value(self, kind: int, depth: int = 0) -> Any:
        if depth > _NESTED:
            raise CheckpointError(f"{self.path}: arrays of the GGUF header are nested too deeply")
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            inner, count = self.take("I"), self.take("Q")
            if count > _ENTRIES:
                raise CheckpointError(f"{self.path}: a list of the GGUF header has {count:,} entries")
            if inner in _SCALARS:
                layout = f"<{count}{_SCALARS[inner]}"
                need = struct.calcsize(layout) if count <= self.size else self.size + 1
                if self.at + need > self.size:
                    raise _truncated(self.path, self.size, self.at + need, "header")
                values = list(struct.unpack_from(layout, self.data, self.at))
                self.at += need
                return values
            return [self.value(inner, depth + 1) for _ in range(count)]
        if kind not in _SCALARS:
            raise CheckpointError(f"{self.path}: unknown GGUF value type {kind} in the header")
        return self.take(_SCALARS[kind])


def _read_gguf(path: Path) -> FileHeader:
    """Layout: magic, version, counts, key-values, tensor table, padding, data. Source: the GGUF specification v3."""
    size = path.stat().st_size
    if size < 24:
        raise _truncated(path, size, 24, "header")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        cursor = _Cursor(path, data)
        cursor.take("I")  # the magic, seen by detect_format
        version = cursor.take("I")
        if version not in (2, 3):
            raise CheckpointError(f"{path}: GGUF version {version}; lens reads little-endian versions 2 and 3")
        tensor_count, key_count = cursor.take("Q"), cursor.take("Q")
        metadata: dict[str, Any] = {}
        for _ in range(key_count):
            key = cursor.text()
            metadata[key] = cursor.value(cursor.take("I"))
        entries: list[tuple[str, tuple[int, ...], int, int]] = []
        for _ in range(tensor_count):
            name, sides = cursor.text(), cursor.take("I")
            if sides > 4:
                raise CheckpointError(f"{path}: tensor {name!r} claims {sides} dimensions; GGUF has at most 4")
            shape = tuple(cursor.take("Q") for _ in range(sides))[::-1]
            entries.append((name, shape, cursor.take("I"), cursor.take("Q")))
        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or not 1 <= alignment <= 1 << 20:
            raise CheckpointError(f"{path}: general.alignment is no number of bytes")
        base = -(-cursor.at // alignment) * alignment
    tensors: dict[str, TensorHeader] = {}
    for name, shape, kind, offset in entries:
        if kind not in GGML_BLOCKS:
            raise CheckpointError(f"{path}: tensor {name!r} has the unknown ggml type {kind}")
        elements, block = GGML_BLOCKS[kind]
        count = 1
        for side in shape:
            count *= side
        if shape and shape[-1] % elements:
            raise CheckpointError(f"{path}: tensor {name!r} of shape {list(shape)} does not divide into blocks")
        nbytes = count // elements * block
        if base + offset + nbytes > size:
            raise _truncated(path, size, base + offset + nbytes, f"tensor data, at {name!r}")
        tensors[name] = TensorHeader(name, str(kind), shape, base + offset, nbytes)
    return FileHeader(path, FileFormat.gguf, tensors, metadata)
