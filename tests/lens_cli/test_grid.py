"""`lens grid` from the outside; the engine is a stand-in whose pixels tell which request they came from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.lens_cli.cli import Run, lens_inside, recorded

Lens = Callable[..., Run]


@pytest.fixture
def lens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Lens:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LENS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("LENS_GENERATE__BASE", "128")
    return lambda *words: lens_inside(monkeypatch, capfd, *words)


def tile(prompt: str, seed: int, steps: int, guidance: float) -> bytes:
    """The first pixels of the stand-in's picture (`tests/fake_engine.py`)."""
    return hashlib.sha256(f"{prompt}|{seed}|{steps}|{guidance}".encode()).digest()[:30]


def test_every_cell_is_the_picture_its_labels_say(lens: Lens) -> None:
    run = lens("grid", "a fish", "--x", "guidance=1,3,5", "--y", "seed=1..2", "--steps", "2", "-o", "grid.png")
    assert run.code == 0 and run.out == b"grid.png\n" and sorted(Path().glob("*.png")) == [Path("grid.png")]
    sheet = Image.open("grid.png").convert("RGB")
    pixels = sheet.tobytes()
    found = {
        (guidance, seed): pixels.find(tile("a fish", seed, 2, guidance))
        for guidance in (1.0, 3.0, 5.0)
        for seed in (1, 2)
    }
    places = {key: divmod(at // 3, sheet.width) for key, at in found.items()}
    assert all(at >= 0 for at in found.values())
    assert len({places[key][0] for key in places}) == 2 and places[1.0, 1][0] < places[1.0, 2][0]
    assert places[1.0, 1][1] < places[3.0, 1][1] < places[5.0, 1][1] and places[1.0, 1][1] == places[1.0, 2][1]
    assert min(sheet.crop((0, 0, sheet.width, 26)).tobytes()) < 100  # letters above
    assert lens("history", "--json").json["data"]["pictures"] == []  # no cell has a file


def test_cells_can_be_kept(lens: Lens) -> None:
    run = lens("grid", "a fish", "--x", "steps=1,2", "-s", "7", "--cells", "cells/", "-o", "g.jpg", "--json")
    assert run.code == 0, run.err
    rows = run.json["data"]["images"]
    assert [recorded(row["path"]).steps for row in rows] == [1, 2] and run.json["data"]["sheet"] == "g.jpg"
    entered = lens("history", "--json").json["data"]["pictures"]
    assert [(row["steps"], row["relation"]) for row in entered] == [(2, "grid"), (1, "grid")]
    assert Image.open("g.jpg").format == "JPEG" and all(row["path"].endswith(".png") for row in rows)


def test_a_cell_that_fails_stays_empty(lens: Lens) -> None:
    run = lens("grid", "a nan fish", "--x", "seed=1..4", "--steps", "1", "--json")
    assert run.code == 8 and "2 of 4 pictures failed" in run.json["error"]["message"]
    assert Path(run.json["data"]["sheet"]).is_file() and "a-nan-fish" in run.json["data"]["sheet"]
    assert lens("grid", "an oom fish", "--x", "seed=1..4").code == 6


def test_what_is_refused_before_anything_is_drawn(lens: Lens) -> None:
    for words, said in (
        (("a", "--x", "guidanse=1"), "--x: 'guidanse' is nothing that a grid can change"),
        (("a", "--x", "steps=0,1"), "steps 0: --steps 0 is outside"),
        (("a", "--x", "steps=1", "-o", "-"), "a grid is a file"),
        (("a", "--x", "steps=1", "-n", "3"), "a cell of a grid is one picture"),
    ):
        run = lens("grid", *words)
        assert run.code == 2 and run.err.startswith(f"error: {said}"), run.err
    dry = lens("grid", "a", "--x", "steps=1,2", "--dry-run")
    assert dry.code == 0 and list(Path().glob("*.png")) == []
