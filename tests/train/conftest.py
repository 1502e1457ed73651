"""What the tests of fine-tuning share: a tiny model, a folder of pictures, a cache of their latents."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.backend.tiny_weights import write_runnable
from tests.train.drawn_folder import draw_folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole model of random weights, as Lens-Nano is stored."""
    return write_runnable(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_folder(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shared by the runs here, as a person's may share one."""
    return tmp_path_factory.mktemp("cache")
