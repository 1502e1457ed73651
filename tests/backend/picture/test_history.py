"""The history of pictures. Trusted because searches are held against a plain scan of what was entered, because two
real processes raise the layout at once, and because damage is made with bytes and not with mocks."""

from __future__ import annotations

import json
import os
import random
import sqlite3
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest

from backend.errors import FileError, HistoryError, UsageError
from backend.picture.history import LEVELS, History, Node


def record(prompt: str = "a red ball", *, second: int = 0, **more: Any) -> dict[str, Any]:
    return {
        "v": 1, "id": uuid.uuid4().hex, "parent_id": None, "created": f"2026-11-30T{second // 3600:02d}:"
        f"{second // 60 % 60:02d}:{second % 60:02d}+00:00", "prompt": prompt, "original_prompt": None,
        "negative_prompt": "", "model": {"name": "nano"}, "width": 256, "height": 192, "seed": 7, "steps": 20,
        "guidance": 3.0, "pixel_sha256": uuid.uuid4().hex, "timings": {"denoise": 1.5, "decode": 0.25}, **more,
    }  # fmt: skip


@pytest.fixture
def history(tmp_path: Path) -> History:
    return History(tmp_path / "data" / "history.db")


def test_what_is_entered_comes_back(history: History, tmp_path: Path) -> None:
    told = record("a blue fish", original_prompt="fish")
    history.add(told, tmp_path / "a.png")
    entry = history.find(told["id"][:8])
    assert (entry.prompt, entry.original, entry.seconds) == ("a blue fish", "fish", 1.75)
    assert entry.path == tmp_path / "a.png"
    assert dict(entry.record) == told and json.loads(json.dumps(entry.data()))["rating"] is None
    history.add(told, tmp_path / "b.png")  # the same picture once more
    assert len(history) == 1 and history.find(told["id"]).path == tmp_path / "a.png"


def test_a_path_that_is_no_text_comes_back_and_is_followed(history: History, tmp_path: Path) -> None:
    r"""A name in another encoding, \xff: Linux has such files."""
    told, place = record(), tmp_path / os.fsdecode(b"\xff.png")
    place.touch()
    history.add(told, place)
    assert history.find(told["id"]).path == place
    place.rename(moved := tmp_path / os.fsdecode(b"\xfe.png"))
    assert history.reconcile([tmp_path], lambda path: told["pixel_sha256"]).moved == 1
    assert history.find(told["id"]).path == moved
    for ask in (history.find, history.tree, history.forget, lambda name: history.search(model=name)):
        with pytest.raises(UsageError, match="no Unicode text"):
            ask("\udcff")
    assert history.search("\udcff") == []


def test_a_search_finds_what_a_plain_scan_finds(history: History) -> None:
    words = "red blue green fish cat castle über naïve 猫 x1".split()
    rng = random.Random(0)
    told = [record(" ".join(rng.choices(words, k=5)), second=k) for k in range(300)]
    assert history.add_all((row, None) for row in told) == 300
    for query in ("red", "red fish", "cast", "uber", "猫", "x1 cat", "RED", "red, fish!"):
        terms = query.lower().replace(",", "").replace("!", "").split()
        plain: dict[str, str] = {"über": "uber", "naïve": "naive"}
        expected = [
            row["id"]
            for row in reversed(told)
            if all(any(plain.get(w, w).startswith(t) for w in str(row["prompt"]).split()) for t in terms)
        ]
        assert [entry.id for entry in history.search(query, limit=1000)] == expected, query


@pytest.mark.parametrize("query", ['"', "red OR", "NEAR(", "a*b^", "prompt:red", "-- ;", "'); DROP TABLE pictures; --"])
def test_what_is_typed_is_no_query_language(history: History, query: str) -> None:
    history.add(record("red or near prompt"), None)
    history.search(query)
    assert len(history) == 1


def test_pages_models_and_ratings(history: History) -> None:
    told = [record(second=k, model={"name": "nano" if k % 2 else "lens"}) for k in range(6)]
    history.add_all((row, None) for row in told)
    assert [e.id for e in history.search(limit=2, before=told[4]["id"])] == [told[3]["id"], told[2]["id"]]
    assert {e.model for e in history.search(model="lens")} == {"lens"} and len(history.search(model="lens")) == 3
    history.rate(told[0]["id"], 5)
    assert [e.id for e in history.search(rating=4)] == [told[0]["id"]]
    assert history.rate(told[0]["id"], None).rating is None
    for bad in (-1, 6):
        with pytest.raises(UsageError, match="no rating"):
            history.rate(told[0]["id"], bad)


def test_names_that_fit_none_or_several(history: History) -> None:
    history.add_all([(record(id="abc1"), None), (record(id="abc2"), None)])
    for name, said in (("", "no"), ("x", "no"), ("abc", "several"), ("%", "no"), ("_", "no")):
        with pytest.raises(UsageError, match=f"^{said}"):
            history.find(name)


def test_a_family(history: History) -> None:
    one = record(id="one")
    two, three = record(id="two", parent_id="one"), record(id="three", parent_id="one")
    four = record(id="four", parent_id="two")
    stray = record(id="stray", parent_id="nobody")
    loop = [record(id="loop1", parent_id="loop2"), record(id="loop2", parent_id="loop1")]
    history.add_all((row, None) for row in (one, two, three, four, stray, *loop))

    def shape(node: Node) -> Any:
        return {node.entry.id: [shape(child) for child in node.children]}

    assert shape(history.tree("four")) == {"one": [{"two": [{"four": []}]}, {"three": []}]}
    assert history.find("two").relation == "rerun" and shape(history.tree("stray")) == {"stray": []}
    assert len(shape(history.tree("loop1"))) == 1  # a record from elsewhere may go in circles


def test_a_family_deeper_than_a_tree(history: History) -> None:
    history.add_all((record(id=f"p{k:04}", parent_id=f"p{k - 1:04}" if k else None), None) for k in range(2000))
    node, depth = history.tree("p1000"), 0
    assert node.entry.id == f"p{1000 - LEVELS // 2:04}"
    while node.children:
        (node,) = node.children
        depth += 1
    assert (depth, node.more) == (LEVELS, 1)


def test_files_that_move_are_followed(history: History, tmp_path: Path) -> None:
    told = [record(), record(), record()]
    here = [tmp_path / f"{k}.png" for k in range(3)]
    for row, path in zip(told, here, strict=True):
        path.write_text(row["pixel_sha256"])
        history.add(row, path)
    (tmp_path / "sub").mkdir()
    here[1].rename(tmp_path / "sub" / "moved.png")
    here[2].unlink()
    asked: list[Path] = []

    def pixels_of(path: Path) -> str | None:
        asked.append(path)
        return path.read_text()

    found = history.reconcile([tmp_path], pixels_of)
    assert (found.seen, found.moved, found.gone) == (1, 1, 1)
    assert history.find(told[1]["id"]).path == tmp_path / "sub" / "moved.png"
    assert history.find(told[2]["id"]).gone and here[0] not in asked
    here[2].write_text(told[2]["pixel_sha256"])
    assert history.reconcile([tmp_path], pixels_of).gone == 0 and not history.find(told[2]["id"]).gone


@pytest.mark.parametrize(
    "damage", [{"id": None}, {"prompt": 5}, {"model": None}, {"width": "x"}, {"timings": 3}, {"seed": True}]
)
def test_a_record_that_is_none(history: History, damage: dict[str, Any]) -> None:
    with pytest.raises(FileError, match="cannot enter the history"):
        history.add(record(**damage), None)
    assert len(history) == 0


def test_a_file_of_the_future_cut_short_or_foreign(tmp_path: Path) -> None:
    path = tmp_path / "history.db"
    History(path).close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(HistoryError, match="newer lens"):
        History(path)
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 1")
    db.close()
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(HistoryError, match="damaged") as raised:
        history = History(path)
        history.search("x")
        history.add(record(), None)
    assert "history import" in str(raised.value.hint)
    foreign = tmp_path / "foreign.db"
    foreign.write_bytes(b"no database at all" * 100)
    with pytest.raises(HistoryError, match="damaged"):
        History(foreign)
    assert foreign.read_bytes() == b"no database at all" * 100


def test_two_processes_raise_the_layout_once(tmp_path: Path) -> None:
    path = tmp_path / "history.db"
    code = (
        "import sys, uuid; from pathlib import Path\n"
        "from backend.picture.history import History\nfrom tests.backend.picture.test_history import record\n"
        "history = History(Path(sys.argv[1]))\n"
        "for _ in range(50): history.add(record(), None)"
    )
    root = Path(__file__).resolve().parents[3]
    children = [subprocess.Popen([sys.executable, "-c", code, str(path)], cwd=root) for _ in range(4)]
    assert [child.wait(120) for child in children] == [0, 0, 0, 0]
    assert len(History(path)) == 200


def test_nothing_half_written_after_a_kill(history: History) -> None:
    """A transaction that never ends is as if it had never begun."""
    other = sqlite3.connect(history.path, isolation_level=None)
    history.add(record(), None)
    other.execute("BEGIN IMMEDIATE")
    other.execute("DELETE FROM pictures")
    other.close()
    assert len(history) == 1 and len(history.search("red")) == 1
