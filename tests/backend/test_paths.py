"""Folders where the surroundings say nothing, or something that is not there: an answer, never a library's error."""

from __future__ import annotations

from pathlib import Path

import pytest

from backend import paths
from backend.errors import UsageError
from tests.lens_cli.cli import real_inside


def test_a_user_that_is_not_there_is_refused() -> None:
    with pytest.raises(UsageError, match="no such home folder"):
        paths.expanded("~nosuchuser/x")
    assert paths.expanded("~") == Path.home() and paths.expanded("a/~") == Path("a/~")


@pytest.mark.parametrize(
    "words",
    [
        ("gen", "a fish", "-m", "~nosuchuser/x", "--dry-run"),
        ("gen", "a fish", "--lora", "~nosuchuser/x", "--dry-run"),
        ("models", "verify", "~nosuchuser/x"),
        ("train", "data", "scan", "~nosuchuser/w", "."),
    ],
)
def test_no_command_has_an_internal_error(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    run = real_inside(monkeypatch, capfd, *words)
    assert run.code == 2 and "~nosuchuser" in run.err and "internal error" not in run.err


@pytest.mark.parametrize("name", ["LENS_HOME", "LENS_CONFIG", "HF_HOME", "HF_HUB_CACHE"])
def test_nor_does_an_environment(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], name: str) -> None:
    monkeypatch.setenv(name, "~nosuchuser/x")
    run = real_inside(monkeypatch, capfd, "models", "list")
    assert "internal error" not in run.err and "Traceback" not in run.err


def test_no_home_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*words: object, **more: object) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("LENS_HOME", raising=False)
    monkeypatch.setattr("platformdirs.user_config_path", none)
    with pytest.raises(UsageError, match="no home folder"):
        paths.config_dir()
