"""Every test gets a home of its own: nothing of the person's settings, cache or environment leaks in or out."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

import pytest

# The shapes here are tiny: one thread is as fast, and on a busy machine several wait for each other (with a training
# run beside them the decoder's tests took 205 s with two threads, 17 s with one). Set before torch is loaded.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Every child would compile lens's own modules anew, 0.3 s each.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False


_known_modules = 0


@pytest.fixture(autouse=True)
def imported_objects_apart() -> None:
    """An engine that lets its networks go collects garbage, as do most tests of memory: 0.15 s and more each time for
    half a million objects of modules and collected tests. After each large import they are looked at once, and then
    left out."""
    global _known_modules
    if len(sys.modules) > _known_modules + 100:
        _known_modules = len(sys.modules)
        gc.collect()
        gc.freeze()


@pytest.fixture(autouse=True)
def isolated_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty HOME; no LENS_*, HF_*, XDG_* or colour variables, no network through the hub."""
    home = tmp_path_factory.mktemp("home")
    for name in list(os.environ):
        if name.startswith(("LENS_", "HF_", "XDG_", "HUGGINGFACE_")) or name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS"):
            monkeypatch.delenv(name)
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY"):  # a command run in this process sets them, for its children too
        monkeypatch.setenv(name, os.environ.get(name, ""))
        if not os.environ[name]:
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return home
