"""Beginnings kept across processes: the numbers of a model that computes everything are the independent statement.

Every "process" is a `LlamaModel` of its own, which shares nothing with the one before but the folder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load, save

from backend.cache.store import Store
from backend.text.llama import LlamaModel
from backend.text.prefixes import PrefixCache
from tests.backend.llama_models import GGUF, TAKE, answer, asked, encode, note_batches


@pytest.fixture
def warnings() -> list[str]:
    return []


@pytest.fixture
def store(tmp_path: Path, warnings: list[str]) -> Store:
    return Store(tmp_path / "prefixes", ".safetensors", 50_000_000, warnings.append)


def features(store: Store | None, prompt: str, take: Sequence[int] = TAKE, *, more: int = 0) -> torch.Tensor:
    """`more`: tokens behind the prompt, whatever they say."""
    with LlamaModel(GGUF, threads=1, prefixes=store) as model:
        return model.hidden_states((*encode(model, prompt), *range(100, 100 + more)), take)


def test_features_of_a_kept_beginning_are_the_same(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = note_batches(monkeypatch)
    first, second = features(store, "a cat"), features(store, "two red boats")
    third = features(store, "a cat", more=500)  # needs a larger context than the one that was saved
    assert len(batches[0]) > 60 and len(batches[1]) < 20 and len(batches[2]) > 400  # the beginning ran once
    assert torch.equal(first, features(None, "a cat"))
    assert torch.equal(second, features(None, "two red boats"))
    assert torch.equal(third, features(None, "a cat", more=500)) and len(third) > 512


def test_other_blocks_are_another_beginning(store: Store) -> None:
    features(store, "a cat")
    other = TAKE[:1]
    assert torch.equal(features(store, "a dog", other), features(None, "a dog", other))
    assert len(list(store.folder.iterdir())) == 2


def test_one_process_uses_what_it_kept(store: Store) -> None:
    """Keeping cuts the cache back to the beginning; what follows must not notice."""
    with LlamaModel(GGUF, threads=1, prefixes=store) as model:
        found = [model.hidden_states(encode(model, prompt), TAKE) for prompt in ("a cat", "two red boats", "a cat")]
    assert torch.equal(found[0], found[2]) and torch.equal(found[1], features(None, "two red boats"))


def test_answers_of_a_kept_beginning_are_the_same(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = note_batches(monkeypatch)

    def reply(store: Store | None, request: str) -> object:
        with LlamaModel(GGUF, threads=1, prefixes=store) as model:
            return answer(model, asked(model, request))

    wanted, other = reply(None, "a cat"), reply(None, "two red boats")
    reading = [len(batch) for batch in batches if len(batch) > 1]
    assert reply(store, "a cat") == wanted
    batches.clear()
    assert reply(store, "two red boats") == other
    # The same batches as in a process that keeps nothing, without the beginning's.
    assert [len(batch) for batch in batches if len(batch) > 1] == reading[len(reading) // 2 + 1 :]


def test_a_damaged_file_is_removed_and_made_again(store: Store, warnings: list[str]) -> None:
    wanted = features(store, "a cat")
    (path,) = store.folder.iterdir()
    whole = path.read_bytes()
    for damaged in (whole[:-100], whole[:-1] + bytes([whole[-1] ^ 1]), b"", b"x" * 1000):
        path.write_bytes(damaged)
        assert torch.equal(features(store, "a cat"), wanted)
        assert path.read_bytes() == whole
    assert len(warnings) == 4 and all("is damaged" in text for text in warnings)


def test_what_llama_cpp_refuses_is_computed(store: Store, warnings: list[str]) -> None:
    """A whole file whose content is none of llama.cpp's."""
    wanted = features(store, "a cat")
    (path,) = store.folder.iterdir()
    arrays = load(path.read_bytes())
    for wrong in (arrays["cache"][:-8], np.zeros(64, np.uint8), np.empty(0, np.uint8)):
        plain = save({**arrays, "cache": wrong})
        digest = hashlib.sha256(plain[8 + int.from_bytes(plain[:8], "little") :]).hexdigest()
        path.write_bytes(save({**arrays, "cache": wrong}, {"sha256": digest}))
        assert torch.equal(features(store, "a cat"), wanted)
    assert len(warnings) == 3 and all("does not take back" in text for text in warnings)


def test_nothing_is_kept_under_a_cap_of_zero(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path / "prefixes", ".safetensors", 0, pytest.fail)
    monkeypatch.setattr(PrefixCache, "_key", lambda *_: pytest.fail("looked for nothing"))
    features(store, "a cat")
    assert not store.folder.exists()
