"""What `--json` writes, held to the JSON Schemas of docs/schemas by a validator that others wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator, ValidationError

from tests.lens_cli.cli import Run, lens_inside, real_inside

SCHEMAS = Path(__file__).resolve().parents[2] / "docs" / "schemas"


def schema(name: str) -> Draft202012Validator:
    text = json.loads((SCHEMAS / f"{name}.json").read_text())
    Draft202012Validator.check_schema(text)
    return Draft202012Validator(text)


def held(run: Run, name: str) -> dict[str, Any]:
    """The data of a command that worked, by both schemas."""
    assert run.code == 0, run.err
    schema("envelope").validate(run.json)
    schema(name).validate(run.json["data"])
    return run.json["data"]


def test_what_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """By the fake engine, in the working folder: gen, its plan, the picture's record, the history, an error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LENS_HOME", str(tmp_path / "home"))

    def lens(*words: str) -> Run:
        return lens_inside(monkeypatch, capfd, *words, "--json")

    data = held(lens("gen", "a fish", "-s", "1..2", "-o", "x.png"), "gen")
    assert len(data["images"]) == 2
    held(lens("info", "x.png"), "info")
    held(lens("history"), "history")
    held(lens("rerun", "x.png", "-o", "y.png"), "gen")
    failed = lens("gen", "a fish", "--steps", "0")
    schema("envelope").validate(failed.json)
    assert failed.code == 2 and failed.json["data"] is None
    # The schemas are not so wide that anything passes.
    for wrong in ({**data, "more": 1}, {k: v for k, v in data.items() if k != "again"}, {**data, "images": [{}]}):
        with pytest.raises(ValidationError):
            schema("gen").validate(wrong)
    with pytest.raises(ValidationError):
        schema("envelope").validate({**failed.json, "error": None})


def test_what_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """By the real program: plans for a model that is here and one that is not, the registry, the machine."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LENS_HOME", str(tmp_path / "home"))

    def lens(*words: str) -> Run:
        return real_inside(monkeypatch, capfd, *words, "--json")

    assert held(lens("gen", "a fish", "-m", "nano", "--dry-run"), "gen-dry-run")["cards"] == []
    assert held(lens("gen", "a fish", "-m", "lens-turbo", "--dry-run"), "gen-dry-run")["cards"]
    held(lens("models", "list"), "models-list")
    for name in ("nano", "lens-turbo", "lens-base"):
        held(lens("models", "show", name), "models-show")
    held(lens("doctor"), "doctor")


def test_every_schema_is_on_the_page() -> None:
    page = (SCHEMAS.parent / "json.md").read_text()
    assert all(f"schemas/{path.name}" in page for path in SCHEMAS.glob("*.json"))
