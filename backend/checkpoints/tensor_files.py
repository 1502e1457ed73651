"""The tensors of one or several weights files, one at a time, from memory maps: safetensors and GGUF behind one door.

Plain tensors are views of the map (no copy until they are converted); packed GGUF types go through gguf.quants in
slabs, so the float32 scratch stays near SLAB_BYTES whatever the tensor's size.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from backend.checkpoints.headers import FileFormat, TensorHeader, read_header
from backend.errors import CheckpointError
from backend.packing import ggml
from backend.packing.block_scaled import ggml_mxfp4

SLAB_BYTES = 64 * 2**20  # float32 scratch of one dequantisation step
TORCH_TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu,
}  # fmt: skip
FLOATS = frozenset({"F32", "F16", "BF16"})  # what a plain weight may be stored in
GGML_FLOATS = {"0": "F32", "1": "F16", "30": "BF16"}  # ggml types that need no dequantisation


class TensorFiles:
    """Random access by stored name. All files are of one format; no name may occur twice."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Raises CheckpointError for a truncated or foreign file, mixed formats or a tensor stored twice."""
        if not paths:
            raise CheckpointError("no weights file given")
        headers = [read_header(path) for path in paths]
        self.origin = str(paths[0]) if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"
        self.format = headers[0].format
        self.metadata: dict[str, Any] = {}
        self._where: dict[str, tuple[int, TensorHeader]] = {}
        for index, header in enumerate(headers):
            if header.format is not self.format:
                raise CheckpointError(f"{header.path}: {header.format} among {self.format} files")
            for name, tensor in header.tensors.items():
                if name in self._where:
                    raise CheckpointError(f"{header.path}: tensor {name!r} is also in {paths[self._where[name][0]]}")
                self._where[name] = (index, tensor)
            self.metadata = {**header.metadata, **self.metadata}
        self._paths = tuple(paths)
        # "c": copy on write, so torch accepts the arrays as writable and the files stay untouched.
        self._maps = [np.memmap(path, dtype=np.uint8, mode="c") for path in paths]

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def names(self) -> list[str]:
        return list(self._where)

    def header(self, name: str) -> TensorHeader:
        return self._where[name][1]

    def shape(self, name: str) -> tuple[int, ...]:
        return self._where[name][1].shape

    def kind(self, name: str) -> str:
        """The stored dtype: "F32", "BF16", "U8", ... or, for a packed GGUF type, "ggml N"."""
        dtype = self._where[name][1].dtype
        if self.format is FileFormat.safetensors:
            return dtype
        return GGML_FLOATS.get(dtype, f"ggml {dtype}")

    def raw(self, name: str) -> torch.Tensor:
        """The stored elements of an unpacked tensor, on the CPU, usually a view of the file."""
        raw, dtype = self._bytes(name), TORCH_TYPES[self.kind(name)]
        if self.header(name).start % dtype.itemsize:  # after a U8 tensor of odd length; arithmetic there is undefined
            raw = raw.clone()
        return raw.view(dtype).reshape(self.shape(name))

    def floats(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        """A weight in `dtype`. Raises CheckpointError where it is stored as something that is no weight."""
        kind = self.kind(name)
        if kind in FLOATS:
            return self.raw(name).to(dtype)
        if self.format is FileFormat.gguf:
            return self._dequantised(name, dtype)
        raise CheckpointError(
            f"{self._path(name)}: tensor {name!r} is stored as {kind}, expected {', '.join(sorted(FLOATS))}",
            hint="a quantised file of a kind lens does not know" if kind.startswith(("F8", "U8", "I8")) else None,
        )

    def part(self, name: str, dtype: torch.dtype, device: torch.device | str, first: int, last: int) -> torch.Tensor:
        """Rows `first` to `last` (exclusive) of the first axis of a weight, on `device`; only their bytes are read.

        Raises CheckpointError as `floats` does.
        """
        if self.kind(name) in FLOATS:
            return self.raw(name)[first:last].to(device, dtype)
        if self.format is FileFormat.gguf:
            return self._dequantised(name, dtype, first, last, device)
        return self.floats(name, dtype)  # raises: no format of whole weights but these

    def packed_rows(self, name: str) -> torch.Tensor:
        """The stored bytes of a packed GGUF weight, U8 (rows, bytes of a row): a view of the file."""
        info = self.header(name)
        return self._bytes(name).reshape(math.prod(info.shape[:-1]), -1)

    def release(self) -> None:
        """Give the pages that were read back to the system; whoever reads on reads them from the files again.

        Otherwise a file that is read once from front to back counts wholly as this process's memory.
        """
        if hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
            for mapped in self._maps:
                mapped._mmap.madvise(mmap.MADV_DONTNEED)  # pyright: ignore[reportAttributeAccessIssue]

    def _path(self, name: str) -> Path:
        return self._paths[self._where[name][0]]

    def _bytes(self, name: str) -> torch.Tensor:
        index, info = self._where[name]
        return torch.from_numpy(np.asarray(self._maps[index][info.start : info.start + info.nbytes]))

    def _dequantised(
        self, name: str, dtype: torch.dtype, first: int = 0, last: int | None = None, device: torch.device | str = "cpu"
    ) -> torch.Tensor:
        import gguf  # only for packed types; 60 ms

        info = self.header(name)
        kind = gguf.GGMLQuantizationType(int(info.dtype))
        elements, block = gguf.GGML_QUANT_SIZES[kind]
        last = info.shape[0] if last is None else last
        width, inner = info.shape[-1], math.prod(info.shape[1:-1])
        packed = self._bytes(name).reshape(-1, width // elements * block)[first * inner : last * inner]
        rows, shape = len(packed), (last - first, *info.shape[1:])
        out = torch.empty(rows, width, dtype=dtype, device=device)
        slab = max(1, SLAB_BYTES // (4 * width))
        for at in range(0, rows, slab):
            if kind is gguf.GGMLQuantizationType.MXFP4:  # the experts of every gpt-oss: ours is faster, on any device
                out[at : at + slab] = ggml_mxfp4(packed[at : at + slab].to(device), dtype)
                continue
            if ggml.can_dequantise(int(kind)):  # the same values, and the same speed and more
                out[at : at + slab] = ggml.dequantise(packed[at : at + slab].to(device), int(kind), dtype)
                continue
            try:
                values = gguf.quants.dequantize(packed[at : at + slab].numpy(), kind)
            except NotImplementedError as error:
                raise CheckpointError(
                    f"{self._path(name)}: tensor {name!r} has the type {kind.name}, which cannot be dequantised",
                    hint="use a file in Q8_0, Q4_K, MXFP4, F16 or BF16",
                ) from error
            out[at : at + slab] = torch.from_numpy(values)
        return out.reshape(shape)
