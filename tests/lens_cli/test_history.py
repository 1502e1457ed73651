"""`lens history` and ids in the place of files, from the outside; the engine is a stand-in.

Trusted because files are made, moved, cut and foreign for real, and answers are held against what was asked for.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from backend.paths import history_file
from backend.picture.history import History
from lens_cli.options import complete_id
from lens_cli.terminal.history_table import columns, fit
from tests.lens_cli.cli import Run, lens_inside, recorded

Lens = Callable[..., Run]


@pytest.fixture
def lens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Lens:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LENS_HOME", str(tmp_path / "home"))
    return lambda *words: lens_inside(monkeypatch, capfd, *words)


def make(lens: Lens, prompt: str, *words: str) -> str:
    """The id of a new picture."""
    run = lens("gen", prompt, "--steps", "1", "--base", "128", "--json", *words)
    assert run.code == 0, run.err
    return run.json["data"]["images"][0]["id"]


def foreign(path: Path, seed: str = "3") -> None:
    chunks = PngInfo()
    said = f"a foreign cat\nNegative prompt: dogs\nSteps: 2, Sampler: Euler, CFG scale: 1.5, Seed: {seed}, Model: sdxl"
    chunks.add_text("parameters", said)
    Image.new("RGB", (32, 16), "red").save(path, pnginfo=chunks)


def test_what_was_made_is_found(lens: Lens) -> None:
    fish, cat = make(lens, "a red fish", "-s", "5"), make(lens, "a [bold] cat " + "and more " * 30, "-s", "1234567890")
    make(lens, "a secret", "--no-history")
    every = lens("history")
    assert [line[:8] for line in every.lines] == ["id      ", cat[:8], fish[:8]]
    assert all(columns(line) <= 80 for line in every.lines) and "a [bold] cat" in every.lines[1]
    assert "128x128" in every.lines[2] and every.lines[2].endswith("a red fish")
    found = lens("history", "-q", "fis", "--json").json["data"]["pictures"]
    assert [(row["id"], row["seed"], row["prompt"]) for row in found] == [(fish, 5, "a red fish")]
    assert lens("history", "-q", "fish", "--paths").out.decode() == found[0]["path"] + "\n"
    assert len(lens("history", "-n", "1").lines) == 2
    nothing = lens("history", "-q", "whale")
    assert (nothing.code, nothing.out, nothing.err) == (0, b"", "no picture fits\n")


def test_ratings(lens: Lens) -> None:
    one, _ = make(lens, "a fish"), make(lens, "a cat")
    assert lens("history", "rate", one[:6], "4").code == 0
    assert [row["id"] for row in lens("history", "--rating", "3", "--json").json["data"]["pictures"]] == [one]
    assert lens("history", "rate", one, "none").code == 0 and lens("history", "--rating", "0").out == b""
    for bad in ("6", "-1", "x", "", "12"):
        run = lens("history", "rate", "--", one, bad)
        assert run.code == 2 and "no rating" in run.err, bad


def test_a_rerun_by_id_is_followed(lens: Lens) -> None:
    one = make(lens, "a fish", "-o", "one.png")
    two = lens("rerun", one[:8], "--seed", "9", "--json", "-o", "two.png").json["data"]["images"][0]["id"]
    assert recorded("two.png").prompt == "a fish"
    Path("one.png").unlink()  # what was recorded is enough
    three = lens("rerun", two, "--steps", "2", "--json", "-o", "three.png").json["data"]["images"][0]["id"]
    lines = lens("history", "tree", three).lines
    assert [line.split()[-4:] for line in lines] and lines[0].startswith(one[:8])
    assert lines[1].startswith(f"`- {two[:8]} rerun: ") and lines[2].startswith(f"   `- {three[:8]} rerun: ")
    family = lens("history", "tree", one, "--json").json["data"]
    assert family["children"][0]["children"][0]["id"] == three
    assert "a fish" in lens("info", one[:10]).out.decode() and "seed            9" in lens("info", two).out.decode()
    gone = lens("rerun", one, "--verify")
    assert gone.code == 1 and "is gone" in gone.err
    assert lens("rerun", two, "--verify").out == b"identical\n"


def test_forget_and_reconcile(lens: Lens) -> None:
    one, two = make(lens, "a fish", "-o", "a.png"), make(lens, "a cat", "-o", "b.png")
    Path("sub").mkdir()
    Path("a.png").rename("sub/c.png")
    Path("b.png").unlink()
    run = lens("history", "reconcile")
    assert run.err == "0 in their places, 1 found elsewhere, 1 gone\n"
    assert lens("history", "--paths").lines == [str(Path("sub/c.png").absolute())]
    assert lens("history", "forget", two[:8]).code == 0
    assert [row["id"] for row in lens("history", "--json").json["data"]["pictures"]] == [one]
    assert lens("history", "reconcile", "absent").code == 1


def test_import_enters_once_and_survives_anything(lens: Lens) -> None:
    Path("in").mkdir()
    one = make(lens, "a fish", "-o", "in/a.png")
    foreign(Path("in/b.png"))
    foreign(Path("in/huge.png"), seed=str(2**64))  # the same pixels; and a seed that no database holds
    Image.new("RGB", (8, 8)).save("in/silent.jpg")
    Path("in/cut.png").write_bytes(Path("in/b.png").read_bytes()[:60])
    history_file().unlink()
    first, second = lens("history", "import", "in"), lens("history", "import", "in")
    assert first.err.endswith("2 new, 1 known before, 1 that do not say how they were made, 1 damaged\n")
    assert second.err.endswith("0 new, 3 known before, 1 that do not say how they were made, 1 damaged\n")
    assert "cut.png" in first.err
    rows = lens("history", "--json").json["data"]["pictures"]
    assert {row["id"] for row in rows} > {one} and len(rows) == 2
    (cat,) = (row for row in rows if row["relation"] == "import")
    assert (cat["prompt"], cat["negative"], cat["seed"], cat["steps"], cat["guidance"], cat["model"]) == (
        "a foreign cat", "dogs", 3, 2, 1.5, "sdxl",
    )  # fmt: skip
    assert "a foreign cat" in lens("info", cat["id"]).out.decode()
    again = lens("rerun", cat["id"][:8], "-o", "again.png")
    assert again.code == 0 and "note: " in again.err
    wish = recorded("again.png")
    assert (wish.prompt, wish.negative_prompt, wish.seeds) == ("a foreign cat", "dogs", ("3",))
    assert wish.width == 2 * (wish.height or 0)


def test_a_record_from_elsewhere_cannot_break_an_import(lens: Lens) -> None:
    Path("in").mkdir()
    made = make(lens, "a fish", "-o", "in/a.png")
    with History(history_file()) as history:
        told = dict(history.find(made).record)
    bad = [{"seed": 2**63}, {"width": -(2**70)}, {"prompt": "\ud800"}, {"model": 3}, {"imported": {}}]
    for number, change in enumerate(bad):
        chunks = PngInfo()
        chunks.add_itxt("lens", json.dumps({**told, "id": f"bad{number}", **change}))
        Image.new("RGB", (8, 8)).save(f"in/{number}.png", pnginfo=chunks)
    run = lens("history", "import", "in", "--json")
    assert run.code == 0 and run.json["data"] == {"new": 1, "known": 1, "silent": 0, "damaged": 4}
    assert lens("info", "bad4").code == 0


def test_ids_that_fit_none_or_several(lens: Lens) -> None:
    with History(history_file()) as history:
        make(lens, "a fish")
        told = dict(history.search()[0].record)
        history.add_all([({**told, "id": "abc1"}, None), ({**told, "id": "abc2"}, None)])
    for words in (("history", "tree"), ("history", "forget"), ("rerun",), ("info",)):
        for name, said in (("abc", "several pictures begin with 'abc'"), ("nope", "no picture 'nope' in the history")):
            run = lens(*words, name)
            assert run.code == 2 and run.err.startswith(f"error: {said}") and run.err.count("\n") == 2
    assert lens("info", "absent.png").err.startswith("error: absent.png does not exist")
    assert sorted(name for name, _ in complete_id("abc")) == ["abc1", "abc2"] and complete_id("zz") == []


def test_a_history_of_the_future_or_cut_in_half(lens: Lens) -> None:
    assert complete_id("") == [] and not history_file().exists()
    make(lens, "a fish")
    with sqlite3.connect(history_file()) as db:
        db.execute("PRAGMA user_version = 9")
    db.close()
    run = lens("history")
    assert run.code == 1 and "newer lens" in run.err and run.err.count("\n") == 2
    assert lens("gen", "a cat", "-o", "cat.png", "--steps", "1").code == 0 and Path("cat.png").exists()
    assert complete_id("") == []
    whole = history_file().read_bytes()
    history_file().write_bytes(whole[: len(whole) // 2])
    assert lens("history").code == 1 and "damaged" in lens("history", "-q", "x").err


def test_columns() -> None:
    assert [fit("日本語", width) for width in (7, 6, 5, 4)] == ["日本語 ", "日本語", "日本…", "日… "]
    assert fit("ab", 4, right=True) == "  ab" and columns("e\u0301") == 1
