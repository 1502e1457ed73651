"""Fixtures that several files of tests need."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.backend.llama_models import note_batches, write_random


@pytest.fixture(scope="session")
def random_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model of random weights as a GGUF."""
    return write_random(tmp_path_factory.mktemp("random"))


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Every batch of token ids that any llama.cpp context runs from here on."""
    return note_batches(monkeypatch)
