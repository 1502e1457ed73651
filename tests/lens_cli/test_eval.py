"""`lens eval nano` through Typer's runner: the proof needs no model, and bad input is refused before one is loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from backend.errors import UsageError
from backend.paths import nano_dir
from lens_cli.app import app


def test_prove_verifier_prints_a_table_and_json() -> None:
    answer = CliRunner().invoke(app, ["eval", "nano", "--prove-verifier", "--scenes", "2", "--json"])
    assert answer.exit_code == 0, answer.output
    data = json.loads(answer.stdout)["data"]
    assert data["yes"]["all"]["total"] == 2 and data["no"]["all"]["total"] >= 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--kind", "nonsense"], "nonsense"),
        (["--prompts", "requests", "--kind", "counting"], "counting"),
        (["--prompts", "long"], "none of brief, dense, requests"),
        (["--prove-verifier", "--degrade", "melted"], "melted"),
        (["--degrade", "noisy", "--limit", "1"], "--degrade is of the verifier's proof"),
        (["--scenes", "10"], "--scenes is of the verifier's proof"),
        (["--contact-sheet", "sheet.pdf"], "the sheet is a PNG"),
    ],
)
def test_bad_input_is_refused(words: list[str], message: str) -> None:
    error = CliRunner().invoke(app, ["eval", "nano", *words]).exception
    assert isinstance(error, UsageError) and message in str(error)


@pytest.mark.nano
def test_results_of_other_weights_under_the_same_name_are_not_gone_on_with(tmp_path: Path) -> None:
    """Training and exporting again leaves the model's path as it was."""
    if not (nano_dir() / "transformer.gguf").exists():
        pytest.skip("the shipped weights are not in this checkout")
    model, results = tmp_path / "model", tmp_path / "results"
    shutil.copytree(nano_dir(), model)
    words = ["eval", "nano", "-m", str(model), "--limit", "1", "--steps", "1", "--base", "128", "--out", str(results)]
    assert CliRunner().invoke(app, words).exit_code == 0
    assert "1 of 1 pictures were judged before" in CliRunner().invoke(app, words).stderr
    with open(model / "transformer.gguf", "r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    error = CliRunner().invoke(app, words).exception
    assert isinstance(error, UsageError) and "other settings (weights)" in str(error)
