"""Suites' files: GenEval's, which are part of the package, and others' in their published form."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from backend.errors import FileError, LensError, UsageError
from tests.train.suites import published
from train.suites.download import fetch, fetched_dir
from train.suites.folder import Shard
from train.suites.plan import cost_of, questions_of
from train.suites.prompts import choose, fingerprint, read_prompts
from train.suites.table import SHIPPED, SUITES, suite_of


def test_genevals_prompts_are_the_published_ones() -> None:
    """Counts, first and known later lines as published; the file's hash holds it to what was checked once."""
    data = (SHIPPED / "geneval" / "evaluation_metadata.jsonl").read_bytes()
    digest = "5c48e0813e812e3c373fa5c8ed07a8f0a483be30272b4427b0559c8048e67c13"
    assert len(data) == 85_209 and hashlib.sha256(data).hexdigest() == digest
    prompts = read_prompts(suite_of("geneval"), None)
    assert Counter(p.kind for p in prompts) == {
        "single_object": 80, "two_object": 99, "counting": 80, "colors": 94, "position": 100, "color_attr": 100
    }  # fmt: skip
    assert [p.prompt for p in prompts[:3]] == ["a photo of a bench", "a photo of a cow", "a photo of a bicycle"]
    said = {p.prompt for p in prompts}
    for known in (
        "two toothbrushs",
        "four benchs",
        "a hair drier below an elephant",
        "a black broccoli and a yellow cake",
    ):
        assert f"a photo of {known}" in said
    assert (
        json.loads(prompts[-1].line)["tag"] == "color_attr"
        and "MIT License" in (SHIPPED / "geneval" / "LICENSE").read_text()
    )


@pytest.mark.parametrize(
    ("name", "ids", "texts"),
    [
        ("oneig-en", ["anime-000", "human-000", "text-007"], [(), (), ("Open 24 hours",)]),
        ("oneig-zh", ["anime-000", "human-000", "text-007"], [(), (), ("你好 世界",)]),
        ("longtext-en", ["0079", "0100", "0160"], [("Fresh bread", "every day")] * 3),
        ("cvtg", ["CVTG-2-3", "CVTG-3-3"], [("Big Sale", "Today")] * 2),
        ("geneval2", ["0000", "0001"], [(), ()]),
        ("unigenbench", ["0", "1"], [(), ()]),
    ],
)
def test_published_files_are_read(tmp_path: Path, name: str, ids: list[str], texts: list[tuple[str, ...]]) -> None:
    prompts = read_prompts(suite_of(name), published.write(tmp_path, name))[: len(ids)]
    assert [p.id for p in prompts] == ids and [p.texts for p in prompts] == texts


def test_some_are_chosen_from_all_kinds_in_turn() -> None:
    prompts = read_prompts(suite_of("geneval"), None)
    assert len({p.kind for p in choose(prompts, limit=6)}) == 6
    assert Counter(p.kind for p in choose(prompts, per_kind=3)).most_common(1)[0][1] == 3
    assert fingerprint(choose(prompts, limit=6)) != fingerprint(prompts)
    with pytest.raises(UsageError, match="nonsense"):
        choose(prompts, kinds=("nonsense",))


_META, _TEXT, _ONEIG = "evaluation_metadata.jsonl", "text_prompts.jsonl", "OneIG-Bench.csv"
_ABOVE = {"tag": "a", "prompt": "x", "include": [{"class": "a", "count": 1, "position": ["above", 0]}]}
_LONG = {"category": "a", "prompt": "x" * 9999, "text": [], "prompt_id": 1}


@pytest.mark.parametrize(
    ("name", "file", "text", "said"),
    [
        ("geneval", _META, "not json\n", "no object"),
        ("geneval", _META, '{"tag": "colors", "prompt": "x", "include": [{"class": 1}]}', "metadata"),
        ("geneval", _META, '{"tag": "x\\u001b", "prompt": "x", "include": []}', "cannot name"),
        ("geneval", _META, json.dumps(_ABOVE), "metadata"),
        ("longtext-en", _TEXT, json.dumps({**_LONG, "prompt": "x", "category": "../up"}), "cannot name"),
        ("longtext-en", _TEXT, json.dumps({**_LONG, "prompt_id": "1"}), "prompt_id"),
        ("longtext-en", _TEXT, json.dumps(_LONG), "9,999"),
        ("oneig-en", _ONEIG, "category,id,prompt_en\nPortrait,../,x\n", "three digits"),
        ("oneig-en", _ONEIG, "category,id,prompt_en\nPortrait,001,x\nPortrait,001,y\n", "two prompts"),
        ("unigenbench", "test_prompts_en.csv", 'index,prompt,sub_dims\n0,x,"{"\n', "test points"),
        ("geneval2", "geneval2_data.jsonl", '{"prompt": "x", "vqa_list": 7}', "vqa_list"),
    ],
)
def test_files_of_another_form_are_refused(tmp_path: Path, name: str, file: str, text: str, said: str) -> None:
    (tmp_path / file).write_text(text)
    with pytest.raises(FileError, match=said):
        read_prompts(suite_of(name), tmp_path)


def test_what_is_not_here_says_how_to_get_it(tmp_path: Path) -> None:
    for name in ("oneig-en", "cvtg", "geneval2"):
        with pytest.raises(UsageError) as error:
            read_prompts(suite_of(name), None)
        assert "--data" in str(error.value.hint)
        with pytest.raises(LensError):
            read_prompts(suite_of(name), tmp_path / "nowhere")
    with pytest.raises(UsageError, match="no suite") as error:
        suite_of("genevl")
    assert "geneval" in str(error.value.hint) and len(SUITES) == 9


def archive(folder: Path, *names: str) -> Path:
    path = folder / "CVTG-2K.zip"
    with zipfile.ZipFile(path, "w") as file:
        for name in names:
            file.writestr(name, json.dumps({"data_list": []}))
    return path


def test_files_are_fetched_on_request_and_an_archives_names_are_not_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over file:// addresses: the code that reads a real answer, without a network."""
    monkeypatch.setenv("LENS_HOME", str(tmp_path / "home"))
    cvtg, said = suite_of("cvtg"), list[str]()
    names = [f"CVTG-2K/CVTG{part}/{n}.json" for part in ("", "-style") for n in range(2, 6)]
    path = archive(tmp_path, *names, "../../evil.json", "/CVTG/9.json")
    assert fetched_dir(cvtg) is None
    folder = fetch(replace(cvtg, urls=((path.name, path.as_uri()),)), said.append)
    assert folder == fetched_dir(cvtg) and "Licence" in said[0]
    found = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.json"))
    assert found == sorted(f"home/data/suites/cvtg/{name}" for name in cvtg.files)
    for bad, words in ((archive(tmp_path, "CVTG/2.json"), "lacks"), (tmp_path / "none.zip", "cannot fetch")):
        with pytest.raises(LensError, match=words):
            fetch(replace(cvtg, name="other", urls=(("CVTG-2K.zip", bad.as_uri()),)), said.append)
    path.write_bytes(b"PK no archive")
    with pytest.raises(FileError, match="no archive"):
        fetch(replace(cvtg, name="third", urls=(("CVTG-2K.zip", path.as_uri()),)), said.append)


def test_a_plan_is_the_published_count() -> None:
    """553 prompts of 4 pictures at the paper's 3.15 s are 1.9 hours; a third of it is there."""
    prompts = read_prompts(suite_of("geneval"), None)
    cost = cost_of(prompts, 4, Shard(), [], rewrites=1, size=(1024, 1024), model="lens")
    assert (cost.pictures, cost.rewrites) == (2212, 553) and cost.seconds == 3.15
    assert "1 h 56 min" in "\n".join(cost.lines())
    assert cost_of(prompts, 4, Shard(), [], rewrites=0, size=(512, 512), model="x").seconds is None
    parts = [cost_of(prompts, 4, Shard(number=n, count=3), [], rewrites=0, size=(8, 8), model="x") for n in (1, 2, 3)]
    assert sum(part.pictures for part in parts) == 2212
    asked = {name: count for name, count, _ in questions_of(suite_of("geneval"), prompts, 4)}
    assert asked["geneval-rules"] == 2212 and asked["vision"] > 2212
