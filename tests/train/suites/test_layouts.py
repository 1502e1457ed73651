"""Exports are the file sets that official evaluators walk, and whatever would make their score wrong is told.

Trusted because the golden trees are written out by hand from the evaluators' own descriptions, and because `listings`
states what their listing code reads without knowing how an export is made.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from backend.errors import FileError, UsageError
from tests.train.suites import published
from train.suites.folder import FAILED, REFUSED
from train.suites.layouts import ABOUT, LAYOUTS, export
from train.suites.listings import Checked, check

TREES = {
    "geneval": [f"0000{n}/{part}" for n in range(3)
                for part in ("metadata.jsonl", *(f"samples/0000{k}.png" for k in range(4)))],
    "oneig-en": ["images/anime/lens/000.webp", "images/human/lens/000.webp", "images/text/lens/007.webp"],
    "longtext-en": [f"{own}_{k}.png" for own in ("0079", "0100", "0160") for k in (1, 2, 3, 4)],
    "cvtg": [f"{part}/{n}/3.png" for part in ("CVTG", "CVTG-Style") for n in (2, 3, 4, 5)],
    "geneval2": ["pictures.json", "pictures/0000.png", "pictures/0001.png"],
    "unigenbench": [f"{own}_{k}.png" for own in (0, 1) for k in range(4)],
}  # fmt: skip


def files(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p.name != ABOUT)


@pytest.mark.parametrize("name", TREES)
def test_an_export_is_the_tree_that_is_walked(tmp_path: Path, name: str) -> None:
    data = published.write(tmp_path / "data", name)
    images = 1 if name in ("cvtg", "geneval2") else 4
    run, suite, prompts = published.draw_run(tmp_path / "run", name, data, images)
    done = export(run, prompts, LAYOUTS[suite.layout], tmp_path / "x", link=True)
    assert files(tmp_path / "x") == sorted(TREES[name])
    assert done.made == len(prompts) * images and not done.unmade
    found = check(tmp_path / "x", prompts)
    assert found == Checked(expected=done.made, read=done.made, unmade=0, faults=())
    with pytest.raises(UsageError, match="not empty"):
        export(run, prompts, LAYOUTS[suite.layout], tmp_path / "x")


def test_genevals_metadata_are_the_published_lines(tmp_path: Path) -> None:
    data = published.write(tmp_path / "data", "geneval")
    run, _, prompts = published.draw_run(tmp_path / "run", "geneval", data, 1)
    export(run, prompts, LAYOUTS["geneval"], tmp_path / "x")
    lines = (data / "evaluation_metadata.jsonl").read_text().splitlines()
    assert [(tmp_path / "x" / f"0000{n}" / "metadata.jsonl").read_text() for n in range(3)] == [f"{x}\n" for x in lines]


def test_a_grid_keeps_every_pixel_and_is_black_where_nothing_was_made(tmp_path: Path) -> None:
    data = published.write(tmp_path / "data", "oneig-en")
    states = {("anime-000", 3): REFUSED, **{("human-000", k): FAILED for k in range(4)}}
    run, _, prompts = published.draw_run(tmp_path / "run", "oneig-en", data, 4, states)
    done = export(run, prompts, LAYOUTS["oneig"], tmp_path / "x")
    assert done.made + len(done.unmade) == 12 and len(done.unmade) == 5
    with Image.open(tmp_path / "x/images/anime/lens/000.webp") as grid:
        assert grid.mode == "RGB" and grid.size == (64, 64)
        for k, at in enumerate([(31, 0), (63, 0), (31, 32)]):
            assert grid.getpixel(at) == published.colour_of(prompts[0], k)
        assert grid.getpixel((40, 40)) == (0, 0, 0)
    # What the run says it refused is accounted for: 7 are read, 5 told, none is a fault.
    assert check(tmp_path / "x", prompts) == Checked(expected=12, read=7, unmade=5, faults=())
    with pytest.raises(UsageError, match="square"):
        run2, _, _ = published.draw_run(tmp_path / "run2", "oneig-en", data, 2)
        export(run2, prompts, LAYOUTS["oneig"], tmp_path / "y")


def spoil(what: str) -> Callable[[Path], object]:
    picture = Image.new("RGB", (32, 32), "black")

    def grown(path: Path) -> None:
        Image.open(path).resize((48, 48)).save(path)

    return {
        "missing": lambda x: (x / "0100_2.png").unlink(),
        "black": lambda x: picture.save(x / "0100_2.png"),
        "white": lambda x: Image.new("RGB", (32, 32), "white").save(x / "0100_2.png"),
        "grey": lambda x: Image.open(x / "0100_2.png").convert("L").save(x / "0100_2.png"),
        "size": lambda x: grown(x / "0100_2.png"),
        "cut": lambda x: (x / "0100_2.png").write_bytes((x / "0100_2.png").read_bytes()[:60]),
        "text": lambda x: (x / "0100_2.png").write_text("no picture"),
        "extra": lambda x: picture.save(x / "0101_1.png"),
        "crash": lambda x: picture.save(x / "cover.png"),
        "beside": lambda x: (x / "notes.txt").write_text("hello"),
    }[what]


@pytest.mark.parametrize(
    ("what", "kinds"),
    [
        ("missing", ["missing"]), ("black", ["one colour"]), ("white", ["one colour"]), ("grey", ["size"]),
        ("size", ["size"]), ("cut", ["unreadable"]), ("text", ["unreadable"]), ("extra", ["extra"]),
        ("crash", ["listing"]), ("beside", ["extra"]),
    ],
)  # fmt: skip
def test_what_would_make_a_score_wrong_is_a_fault(tmp_path: Path, what: str, kinds: list[str]) -> None:
    data = published.write(tmp_path / "data", "longtext-en")
    run, _, prompts = published.draw_run(tmp_path / "run", "longtext-en", data)
    export(run, prompts, LAYOUTS["longtext"], tmp_path / "x")
    spoil(what)(tmp_path / "x")
    found = check(tmp_path / "x", prompts)
    assert [fault.what for fault in found.faults] == kinds
    assert all(len(fault.row()) < 300 for fault in found.faults)


def test_surprises_of_other_evaluators(tmp_path: Path) -> None:
    """GenEval scores what else is in a folder and ends at one without metadata; OneIG reads ids from names."""
    for name, change, kinds in (
        ("geneval", lambda x: shutil.copy(x / "00000/samples/00000.png", x / "00000/samples/00009.png"), {"extra"}),
        ("geneval", lambda x: (x / "00001/metadata.jsonl").write_text("{}"), {"text"}),
        ("geneval", lambda x: shutil.rmtree(x / "00002"), {"missing"}),
        ("geneval", lambda x: (x / "00007").mkdir(), {"listing"}),
        ("oneig-en", lambda x: (x / "images/anime/lens/000.json").write_text("{}"), {"listing", "extra"}),
    ):
        shutil.rmtree(tmp_path, ignore_errors=True)
        data = published.write(tmp_path / "data", name)
        run, suite, prompts = published.draw_run(tmp_path / "run", name, data)
        export(run, prompts, LAYOUTS[suite.layout], tmp_path / "x")
        change(tmp_path / "x")
        found = {fault.what for fault in check(tmp_path / "x", prompts).faults}
        assert found and found <= kinds | {"listing"}, (name, found)


@pytest.mark.parametrize("damage", ['{"layout": "nonsense"}', "[]", '{"layout": "flat", "images": "x"}', "\x00"])
def test_a_damaged_export_says_so(tmp_path: Path, damage: str) -> None:
    (tmp_path / ABOUT).write_text(damage)
    with pytest.raises(FileError, match="damaged"):
        check(tmp_path, ())


def test_a_name_in_an_export_leads_nowhere(tmp_path: Path) -> None:
    data = published.write(tmp_path / "data", "geneval2")
    run, _, prompts = published.draw_run(tmp_path / "run", "geneval2", data, 1)
    export(run, prompts, LAYOUTS["geneval2"], tmp_path / "x")
    (tmp_path / "x/pictures.json").write_text(json.dumps({p.prompt: "/etc/passwd" for p in prompts}))
    assert {"listing", "text"} <= {fault.what for fault in check(tmp_path / "x", prompts).faults}
