"""Packs matrices into ggml's types: the gguf package where it can write a type, ggml itself for the K types.

gguf 0.19 reads Q4_K, Q5_K and Q6_K but does not write them; the library that llama-cpp-python installs does.
"""

from __future__ import annotations

import ctypes
import functools
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import gguf
import numpy as np
import torch
from numpy.typing import NDArray

from backend.errors import LensError
from backend.packing.ggml import quantise_q8_0
from backend.packing.ggml_library import default_threads, load_ggml

Array = NDArray[Any]
Type = gguf.GGMLQuantizationType
K_TYPES = frozenset({Type.Q4_K, Type.Q5_K, Type.Q6_K})


def pack(matrix_OI: Array, kind: Type) -> Array:
    """Float32 (O, I) -> U8 (O, bytes of a row); I is a multiple of the type's block. Raises LensError without ggml."""
    if kind in K_TYPES:
        return _by_ggml(matrix_OI, kind)
    if kind is Type.Q8_0:  # the same bytes, several times faster
        return quantise_q8_0(torch.from_numpy(matrix_OI)).numpy()
    if kind is Type.F32:
        return matrix_OI.view(np.uint8)
    if kind is Type.F16:
        return matrix_OI.astype(np.float16).view(np.uint8)
    return gguf.quants.quantize(matrix_OI, kind).view(np.uint8).reshape(len(matrix_OI), -1)


def _by_ggml(matrix_OI: Array, kind: Type) -> Array:
    block, size = gguf.GGML_QUANT_SIZES[kind]
    rows, width = matrix_OI.shape
    assert width % block == 0 and matrix_OI.dtype == np.float32
    source = np.ascontiguousarray(matrix_OI)
    packed = np.empty((rows, width // block * size), np.uint8)
    quantise = _quantise()

    def part(first: int) -> int:
        chosen, into = source[first : first + step], packed[first : first + step]
        return quantise(int(kind), chosen.ctypes.data, into.ctypes.data, 0, len(chosen), width, None)

    threads = default_threads()
    step = max(1, -(-rows // threads))
    with ThreadPoolExecutor(threads) as pool:  # C code, without the interpreter's lock; rows know nothing of each other
        written = sum(pool.map(part, range(0, rows, step)))
    if written != packed.nbytes:
        raise LensError(f"ggml wrote {written} bytes of {kind.name} instead of {packed.nbytes}")
    return packed


@functools.cache
def _quantise() -> Any:
    """size_t ggml_quantize_chunk(type, float * source, void * target, first, rows, row width, importance or null)."""
    function = load_ggml().ggml_quantize_chunk
    size, pointer = ctypes.c_int64, ctypes.c_void_p
    function.restype, function.argtypes = ctypes.c_size_t, [ctypes.c_int, pointer, pointer, size, size, size, pointer]
    return function
