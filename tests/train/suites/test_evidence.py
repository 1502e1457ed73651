"""The file of measured claims: what it keeps, and when a row no longer holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from backend.checkpoints.identity import identify_model
from backend.checkpoints.resolve import resolve_model
from backend.errors import FileError
from tests.train.suites.test_claims import BY_ID, reports
from train.suites.claims import UNMEASURED, finding
from train.suites.evidence import Row, evidence, read_rows, still_true, write_rows

ROOT = Path(__file__).parents[3]


def arm(transformer: str = "aa", **more: Any) -> dict[str, Any]:
    return {
        "weights": {"transformer": transformer}, "verifier": 4, "seed": 0, "dtype": "auto", "width": 256, "height": 256,
        "steps": 20, "guidance": 3.0, "loras": [], **more,
    }  # fmt: skip


def row(claim: str, **arms: dict[str, Any]) -> Row:
    return Row(finding=finding(BY_ID[claim], *reports(10, 30)), arms=arms)


def test_rows_come_back_and_stand_in_the_table(tmp_path: Path) -> None:
    rows = {"rl": row("rl", base=arm("bb"), nano=arm()), "turbo": row("turbo", nano=arm(), turbo=arm("cc", steps=4))}
    write_rows(tmp_path / "e.json", rows)
    assert read_rows(tmp_path / "e.json") == rows
    text = evidence(rows, {"rl-half": "no weights: nano-rl-half"})
    lines = {line.split(" | ")[0]: line for line in text.splitlines() if line.startswith("| ")}
    assert "0.250 → 0.750 | +0.500" in lines["| reward tuning beats the base model"]
    assert (
        "**not measured**: no weights: nano-rl-half"
        in lines["| reward tuning on all prompts beats tuning on half of them"]
    )
    assert "bb base; aa nano; cc turbo" in text and "20 steps" in text


@pytest.mark.parametrize(
    ("now", "left"),
    [
        ({"nano": arm()}, {"rl", "turbo"}),
        ({"turbo": arm("dd")}, {"rl"}),  # its weights are others now
        ({"nano": arm("dd")}, set[str]()),
        ({"other": arm(verifier=5)}, set[str]()),  # no arm of theirs, but another verifier
        ({"other": arm(dtype="bfloat16")}, set[str]()),
        ({"other": arm("ee", steps=9)}, {"rl", "turbo"}),
    ],
)
def test_a_row_falls_with_what_it_was_drawn_with(now: dict[str, dict[str, Any]], left: set[str]) -> None:
    rows = {"rl": row("rl", base=arm("bb"), nano=arm()), "turbo": row("turbo", nano=arm(), turbo=arm("cc"))}
    assert set(still_true(rows, now)) == left


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"format": 9, "claims": {}}', "format 9"), ("[]", "damaged"), ("{", "damaged"),
        ('{"format": 1, "claims": {"rl": {"arms": {}}}}', "damaged"),
        ('{"format": 1, "claims": {"rl": 7}}', "damaged"), ('{"format": 1}', "damaged"),
    ],
)  # fmt: skip
def test_a_damaged_file_says_so(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "e.json").write_text(text)
    with pytest.raises(FileError, match=said):
        read_rows(tmp_path / "e.json")


def test_no_file_is_no_row_and_a_claim_that_is_no_more_is_left_out(tmp_path: Path) -> None:
    assert read_rows(tmp_path / "none.json") == {}
    write_rows(tmp_path / "e.json", {"rl": row("rl", nano=arm())})
    whole = json.loads((tmp_path / "e.json").read_text())
    whole["claims"]["of-old"] = whole["claims"]["rl"]
    (tmp_path / "e.json").write_text(json.dumps(whole))
    assert set(read_rows(tmp_path / "e.json")) == {"rl"}


def measured(page: list[str]) -> list[str]:
    """Without what was not measured, and what was lacking there."""
    return [line for line in page if UNMEASURED not in line]


def test_the_table_that_ships_is_of_the_weights_that_ship() -> None:
    """Whoever ships other weights measures again: `lens eval claims --to docs/evidence.md`."""
    rows = read_rows(ROOT / "docs/evidence.json")
    page = (ROOT / "docs/evidence.md").read_text().splitlines()
    assert measured(page) == measured(evidence(rows, {}).splitlines())
    presets = {"nano": "nano", "base": "nano-base", "turbo": "nano-turbo"}
    now = {name: dict(identify_model(resolve_model(model)).sha256) for name, model in presets.items()}
    for claim, its in rows.items():
        for name, settings in its.arms.items():
            if name in now:
                assert settings["weights"] == now[name], f"{claim}: {name} was drawn with other weights"
