"""ggml's types in torch against the gguf package, which states them independently, on blocks of random bits."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch

from backend.packing import ggml, ggml_write
from backend.packing.ggml_layout import GGML_BLOCKS, GGML_NAMES, ggml_name

Type = gguf.GGMLQuantizationType
KINDS = [Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1, Type.Q8_0, Type.Q4_K, Type.Q5_K, Type.Q6_K]


def random_rows(kind: Type, rows: int, blocks: int) -> np.ndarray:
    """Any bits, but finite float16 scales: every code, sign and six-bit scale occurs."""
    generator = np.random.default_rng(int(kind))
    size = GGML_BLOCKS[int(kind)][1]
    packed = generator.integers(0, 256, (rows * blocks, size), dtype=np.uint8)
    halves = generator.standard_normal((rows * blocks, 2)).astype(np.float16).view(np.uint8)
    at = 208 if kind is Type.Q6_K else 0  # the only one whose scale stands at its end
    packed[:, at : at + 2] = halves[:, :2]
    if kind in (Type.Q4_1, Type.Q5_1, Type.Q4_K, Type.Q5_K):
        packed[:, 2:4] = halves[:, 2:]
    return packed.reshape(rows, -1)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_decoding_equals_the_gguf_package(kind: Type) -> None:
    rows = random_rows(kind, rows=7, blocks=3)
    expected = torch.from_numpy(gguf.quants.dequantize(rows, kind))
    packed = torch.from_numpy(rows)
    assert torch.equal(ggml.dequantise(packed, int(kind), torch.float32), expected)
    for slab in (1, 1000, 10**9):  # one row at a time, some, all
        assert torch.equal(ggml.dequantise(packed, int(kind), torch.float32, slab=slab), expected)
    assert torch.equal(ggml.dequantise(packed, int(kind), torch.bfloat16), expected.to(torch.bfloat16))


def test_no_rows_decode_to_no_rows() -> None:
    empty = torch.empty(0, 34, dtype=torch.uint8)
    assert ggml.dequantise(empty, int(Type.Q8_0), torch.float32).shape == (0, 32)


def test_names_agree_with_the_package() -> None:
    for number, name in GGML_NAMES.items():
        assert Type(number).name.lower() == name
    assert {int(kind) for kind in KINDS} == {n for n in range(50) if ggml.can_dequantise(n)}
    assert ggml_name(12) == "q4_k" and ggml_name(41) == "ggml 41"


def test_q8_0_has_the_packages_bytes() -> None:
    """Zeros, exact halves (which ggml rounds away from zero) and the value just below a half among them."""
    weight = torch.randn(40, 96, generator=torch.Generator().manual_seed(0))
    weight[0] = 0
    weight[1, :32] = torch.arange(32) / 2 - 8
    weight[2, :32] = torch.tensor([127.0, 0.49999997, 0.5, 1.5] * 8)
    expected = gguf.quants.quantize(weight.numpy(), Type.Q8_0)
    assert np.array_equal(ggml.quantise_q8_0(weight).numpy(), expected)


# Relative error of normally distributed weights, about what one step of so many levels gives.
BOUNDS = {Type.Q4_K: 0.085, Type.Q5_K: 0.045, Type.Q6_K: 0.022, Type.Q8_0: 0.007, Type.Q5_0: 0.05, Type.BF16: 0.003}


@pytest.mark.parametrize("kind", BOUNDS, ids=lambda kind: kind.name)
def test_packing_is_read_back_by_the_package(kind: Type, monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = np.random.default_rng(0).standard_normal((37, 512)).astype(np.float32)
    packed = ggml_write.pack(matrix, kind)
    back = gguf.quants.dequantize(packed, kind)
    error = np.linalg.norm(back - matrix) / np.linalg.norm(matrix)
    assert BOUNDS[kind] / 3 < error < BOUNDS[kind]
    monkeypatch.setattr(ggml_write, "default_threads", lambda: 5)  # 37 rows do not divide among them
    assert np.array_equal(ggml_write.pack(matrix, kind), packed)
