"""A search writes a few small files a picture, each made sure of on the disk. On a busy disk that takes longer than all
the rest of these tests, and no test here cuts the power: fsync does nothing."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True, scope="package")
def no_fsync() -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield
