"""`lens eval nano` through Typer's runner: the proof needs no model, and bad input is refused before one is loaded."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from backend.errors import UsageError
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
        (["--prompts", "long"], "brief nor dense"),
        (["--prove-verifier", "--degrade", "melted"], "melted"),
    ],
)
def test_bad_input_is_refused(words: list[str], message: str) -> None:
    error = CliRunner().invoke(app, ["eval", "nano", *words]).exception
    assert isinstance(error, UsageError) and message in str(error)
