"""Reads tensors out of a GGUF file, dequantised, one at a time, from a memory map.

F32, F16 and BF16 tensors are views of the map (no copy until they are converted); packed types go through
gguf.quants in slabs, so the float32 scratch stays near SLAB_BYTES whatever the tensor's size.
"""

from __future__ import annotations

import math
from pathlib import Path

import gguf
import numpy as np
import torch

from backend.errors import CheckpointError
from backend.model.headers import FileHeader, TensorHeader, read_header

SLAB_BYTES = 64 * 2**20  # float32 scratch of one dequantisation step
_PLAIN = {  # ggml type -> torch dtype of tensors that need no dequantisation
    "0": torch.float32,
    "1": torch.float16,
    "30": torch.bfloat16,
}


class GGUFReader:
    """Random access to the tensors of one GGUF file."""

    def __init__(self, path: Path) -> None:
        """Raises CheckpointError for a truncated or foreign file."""
        self.header: FileHeader = read_header(path)
        # "c": copy on write, so torch accepts the array as writable and the file stays untouched.
        self._data = np.memmap(path, dtype=np.uint8, mode="c")

    def tensor(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        """Tensor `name` in `dtype` on the CPU, shape as PyTorch has it."""
        return _decode(self._data, self.header.tensors[name], dtype, self.header.path)


def _decode(data: np.memmap, info: TensorHeader, dtype: torch.dtype, path: Path) -> torch.Tensor:
    raw = np.asarray(data[info.start : info.start + info.nbytes])
    if info.dtype in _PLAIN:
        return torch.from_numpy(raw).view(_PLAIN[info.dtype]).reshape(info.shape).to(dtype)
    kind = gguf.GGMLQuantizationType(int(info.dtype))
    elements, block = gguf.GGML_QUANT_SIZES[kind]
    width = info.shape[-1]
    rows = math.prod(info.shape[:-1])
    packed = raw.reshape(rows, width // elements * block)
    out = torch.empty(rows, width, dtype=dtype)
    slab = max(1, SLAB_BYTES // (4 * width))
    for first in range(0, rows, slab):
        try:
            values = gguf.quants.dequantize(packed[first : first + slab], kind)
        except NotImplementedError as error:
            raise CheckpointError(
                f"{path}: tensor {info.name!r} has the type {kind.name}, which cannot be dequantised",
                hint="use a file in Q8_0, Q4_K, MXFP4, F16 or BF16",
            ) from error
        out[first : first + slab] = torch.from_numpy(values)
    return out.reshape(info.shape)
