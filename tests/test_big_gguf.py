"""The synthetic file of the benchmark is the published model's twin in everything that costs time or memory."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import gguf
import numpy as np
import pytest

from backend.checkpoints.gguf_keys import EXPERT_SUFFIXES, text_names
from backend.errors import FileError
from backend.params import TextEncoderParams
from benchmarks import big_gguf


def test_tensors_are_the_published_ones() -> None:
    found = list(big_gguf.slots())
    experts = {f"blk.{layer}.{suffix}" for layer in range(24) for suffix in EXPERT_SUFFIXES}
    assert {slot.name for slot in found} == set(text_names(24)) | experts
    assert len(found) == 459
    parameters = sum(int(np.prod(slot.shape, dtype=np.int64)) for slot in found)
    assert 20.8e9 < parameters < 21.0e9
    assert 12.0e9 < sum(slot.nbytes for slot in found) < 12.2e9
    assert all(slot.nbytes % gguf.GGUF_DEFAULT_ALIGNMENT == 0 for slot in found)


def test_vocabulary_is_as_long_as_the_real_one() -> None:
    tokens, types, merges = big_gguf.vocabulary()
    assert len(tokens) == len(set(tokens)) == len(types) == TextEncoderParams().vocab_size
    assert all(tokens[number] == text for text, number in big_gguf.CONTROL.items())
    known = set(tokens)
    assert len(merges) > 300_000
    assert all({left, right, left + right} <= known for left, right in (merge.split(" ") for merge in merges))


@pytest.mark.parametrize("kind", [gguf.GGMLQuantizationType.MXFP4, gguf.GGMLQuantizationType.Q8_0])
def test_blocks_have_the_size_of_weights(kind: gguf.GGMLQuantizationType) -> None:
    raw = big_gguf.blocks(kind, 4000, 0.02, np.random.default_rng(1))
    values = gguf.quants.dequantize(raw, kind)
    assert values.size == 4000 * 32
    assert np.isfinite(values).all()
    assert 0.01 < values.std() < 0.04
    assert abs(float(values.mean())) < 0.001


def test_data_fills_every_tensor_exactly() -> None:
    generator = np.random.default_rng(2)
    for slot in [*list(big_gguf.slots())[2:18], list(big_gguf.slots())[1]]:
        if slot.nbytes < 2e8:
            assert sum(len(piece) for piece in big_gguf.data(slot, generator)) == slot.nbytes, slot


def test_a_full_disk_is_an_error_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(big_gguf.shutil, "disk_usage", lambda _: SimpleNamespace(free=10**10))
    with pytest.raises(FileError, match=r"10\.0 GB free, 13\.\d GB needed"):
        big_gguf.write(tmp_path / "big.gguf")
    assert list(tmp_path.iterdir()) == []
