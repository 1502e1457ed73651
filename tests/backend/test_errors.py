"""The registry of errors: every leaf has a stable snake_case code of its own and an exit code of the table."""

from __future__ import annotations

import importlib
import re
import sys

import pytest

from backend import errors
from backend.errors import LensError, as_missing_package, optional_package

# code -> exit code, as scripts rely on them. A change here is a change of the interface.
TABLE = {
    "failure": 1,
    "file": 1,
    "untrusted": 1,
    "history": 1,
    "bad_checkpoint": 1,
    "bad_reply": 1,
    "budget_spent": 1,
    "non_finite": 1,
    "usage": 2,
    "network": 3,
    "busy": 3,
    "timeout": 4,
    "model_missing": 5,
    "out_of_memory": 6,
    "refused": 7,
    "partial_batch": 8,
    "cancelled": 130,
}


def leaves() -> list[type[LensError]]:
    return [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, LensError)]


def test_both_ways() -> None:
    assert {leaf.code: leaf.exit_code for leaf in leaves()} == TABLE
    assert len(leaves()) == len(TABLE)  # no code is used twice
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*", leaf.code) for leaf in leaves())


def test_hint_is_kept() -> None:
    error = errors.UsageError("what", hint="do this")
    assert (str(error), error.hint) == ("what", "do this")


def test_a_missing_optional_package_is_named_with_its_extra() -> None:
    """The packages of an extra come from the installed package's own metadata."""
    for module, package, extra in (("llama_cpp", "llama-cpp-python", "llama"), ("faiss", "faiss-cpu", "train")):
        error = as_missing_package(ModuleNotFoundError(name=module))
        assert error is not None and package in str(error)
        assert error.hint is not None and f"pip install {package}" in error.hint and f"lens[{extra}]" in error.hint
    assert as_missing_package(ModuleNotFoundError(name="backend.gone")) is None  # a bug of ours stays one


def test_an_import_that_fails_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for package, module, hint in (
        (None, "c2pa", "pip install c2pa-python   (one of the packages of lens[credentials])"),
        ("ray[serve]", "fastapi", "pip install 'ray[serve]'   (one of the packages of lens[cluster])"),
        (None, "torchao", "pip install torchao"),
    ):
        monkeypatch.setitem(sys.modules, module, None)
        with (
            pytest.raises(LensError, match="is not installed, and this needs it") as missing,
            optional_package(package),
        ):
            importlib.import_module(module)
        assert (missing.value.exit_code, missing.value.hint) == (1, hint)
    with pytest.raises(LensError, match=r"^matplotlib cannot be loaded: an old one$") as broken:
        with optional_package(otherwise="--json"):
            raise ImportError("an old one", name="matplotlib")
    assert str(broken.value.hint).endswith("lens[train]); or --json")
    with pytest.raises(ModuleNotFoundError, match="gone"), optional_package():
        importlib.import_module("backend.gone")
