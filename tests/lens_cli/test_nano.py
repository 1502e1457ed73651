"""The real thing: the shipped Lens-Nano makes pictures through the command line a person types."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from backend import presets
from backend.checkpoints.resolve import resolve_model
from backend.errors import ModelMissingError
from backend.paths import nano_dir
from tests.lens_cli.cli import lens, real_inside


def _missing() -> str | None:
    try:
        resolve_model(presets.default_name())
    except ModelMissingError as error:
        return str(error)
    return None


pytestmark = [
    pytest.mark.nano,
    pytest.mark.skipif(_missing() is not None, reason=f"the shipped weights are not in this checkout: {_missing()}"),
]
WORDS = ["gen", "three red balloons over a green hill", "--ar", "16:9", "--base", "128", "--steps", "4", "-s", "7"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_picture_and_the_same_again() -> None:
    run = lens(*WORDS, "-n", "2", real=True, timeout=600)
    assert run.code == 0, run.err
    assert len(run.lines) == 2
    for path in run.lines:
        with Image.open(path) as image:
            assert image.size == (176, 96)
            assert len(image.getcolors(10**6) or []) > 100  # a picture, not one colour
    verified = lens("rerun", run.lines[1], "--verify", real=True, timeout=600)
    assert (verified.code, verified.lines) == (0, ["identical"]), verified.err


def test_the_prompt_matters() -> None:
    first = lens(*WORDS, "-q", real=True, timeout=600).lines[0]
    words = [*WORDS]
    words[1] = "a blue fish on a yellow ground"
    second = lens(*words, "-q", real=True, timeout=600).lines[0]
    assert Image.open(first).tobytes() != Image.open(second).tobytes()


def test_a_model_is_looked_up_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """By its path, rewritten by its own language model and read by it: everybody below has what was found."""
    from backend.checkpoints import resolve

    monkeypatch.setenv("LENS_HOME", str(tmp_path / "home"))
    found, look_up = list[str](), resolve._resolve

    def noted(name: str, *rest: Any) -> Any:
        found.append(name)
        return look_up(name, *rest)

    monkeypatch.setattr(resolve, "_resolve", noted)
    words = ["gen", "two red balls", "-m", str(nano_dir()), "--reasoner", "local", "--encoder", "llama"]
    run = real_inside(monkeypatch, capfd, *words, "--steps", "1", "--base", "128", "-s", "1", "-o", "a.png")
    assert run.code == 0, run.err
    assert "rewritten by" in run.err and found == [str(nano_dir())]
    found.clear()
    assert real_inside(monkeypatch, capfd, *words, "--dry-run").code == 0
    assert found == [str(nano_dir())]
