"""`lens eval` from generate to report with the fake engine: every picture once, whatever interrupts it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lens_cli.terminal import console
from tests.lens_cli.cli import Run, lens_inside
from train.suites.folder import FORMAT, Shard

pytest_plugins = ()


@pytest.fixture
def lens(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    return lambda *words: lens_inside(monkeypatch, capfd, "eval", *words)


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for path in folder.glob("samples*.jsonl") for line in path.read_text().splitlines()]


def test_a_suite_is_drawn_once_exported_checked_and_reported(lens, tmp_path: Path) -> None:
    words = ("generate", "geneval", "--limit", "6", "-n", "2", "--out", "run", "-m", "nano")
    assert lens(*words).code == 0
    first = rows(tmp_path / "run")
    assert len(first) == 12 and len({row["seed"] for row in first}) == 12
    gone = next((tmp_path / "run/images").rglob("1.png"))
    gone.unlink()
    assert lens(*words).code == 0
    again = rows(tmp_path / "run")
    assert len(again) == 13 and gone.exists()  # one picture, drawn again from the same seed
    assert [row["pixels"] for row in first] == [
        {(r["id"], r["index"]): r["pixels"] for r in again}[row["id"], row["index"]] for row in first
    ]
    assert lens("export", "run", "--to", "x").code == 0
    checked = lens("verify", "x")
    assert checked.code == 0 and "reads 12 of 12" in checked.out.decode()
    next((tmp_path / "x").rglob("00000.png")).unlink()
    broken = lens("verify", "x", "--json")
    assert broken.code == 1 and broken.json["error"] and broken.json["data"]["faults"][0]["what"] == "missing"
    report = lens("report", "run", "--compare", "paper")
    assert report.code == 0 and max(map(len, report.lines)) <= 90
    assert "0.930" in report.out.decode() and "off: the suite's own words" in report.out.decode()


def test_other_settings_do_not_mix_and_shards_add_up(lens, tmp_path: Path) -> None:
    whole = ("generate", "geneval", "--limit", "8", "-n", "1", "-m", "nano", "--out")
    assert lens(*whole, "run", "--shard", "1/2").code == 0
    other = lens(*whole, "run", "--steps", "3")
    assert other.code == 2 and "another protocol (steps)" in other.err
    assert lens(*whole, "run", "--shard", "2/2").code == 0
    found = rows(tmp_path / "run")
    assert len(found) == 8 == len({row["id"] for row in found})
    assert {path.name for path in (tmp_path / "run").glob("samples*")} == {
        f"samples{Shard(number=n, count=2).name}.jsonl" for n in (1, 2)
    }
    (tmp_path / "busy").mkdir()
    (tmp_path / "busy/note.txt").write_text("mine")
    assert "holds no run" in lens(*whole, "busy").err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("generate", "genevl", "--out", "r"), "did you mean geneval"),
        (("generate", "geneval"), "--out DIR"),
        (("generate", "oneig-en", "--out", "r"), "--data DIR"),
        (("generate", "geneval", "--out", "r", "--shard", "3/2"), "no part of a whole"),
        (("generate", "geneval", "--out", "r", "--kind", "colour"), "no kind of prompt"),
        (("export", "nowhere", "--to", "x"), "no run of lens eval"),
        (("verify", "."), "no export"),
        (("score", "nowhere"), "no run of lens eval"),
        (("report", "nowhere"), "no run of lens eval"),
        (("plan", "geneval", "--fetch"), "nothing to fetch"),
        (("plan", "geneval2", "--fetch"), "from a path only"),
        (("claims", "--claim", "nonsense"), "there are captions"),
        (("claims", "--with", "turbo"), "ROLE=PATH"),
    ],
)
def test_bad_input_says_what_to_do(lens, words: tuple[str, ...], said: str) -> None:
    run: Run = lens(*words)
    assert run.code == 2 and said in run.err


def test_the_scorer_is_asked_for_before_the_prompts_are_read(
    lens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run").mkdir()
    for suite in ("oneig-en", "geneval"):  # the prompts of the first are not here, and would be asked for
        (tmp_path / "run/protocol.json").write_text(json.dumps({"format": FORMAT, "suite": suite, "images": 1}))
        fitting = "vision, " if suite == "oneig-en" else "geneval-rules, vision"
        for words, said in (
            ((), f"--scorer NAME: {fitting}"),
            (("--scorer", "visoin"), "did you mean vision?"),
            (("--scorer", "served", "--scorer", "vision", "--reward", "clip"), "--model-name NAME"),
            (("--scorer", "served"), "--reward clip"),
        ):
            run: Run = lens("score", "run", *words)
            assert run.code == 2 and said in run.err, run.err


def test_the_list_has_heads_over_its_columns(lens, monkeypatch: pytest.MonkeyPatch) -> None:
    assert lens("list").lines[0].startswith("geneval ")  # a pipe gets rows alone
    monkeypatch.setattr(console, "looking_at_stdout", lambda: True)
    head, *rows = lens("list").lines
    assert head.split() == ["SUITE", "PROMPTS", "EACH", "DATA", "LICENCE", "SCORERS"] and max(map(len, rows)) <= 80
    for name in ("DATA", "LICENCE", "SCORERS"):
        at = head.index(name)
        assert all(row[at - 1] == " " != row[at] for row in rows), name


def test_a_damaged_run_says_so(lens, tmp_path: Path) -> None:
    assert lens("generate", "geneval", "--limit", "1", "-n", "1", "-m", "nano", "--out", "run").code == 0
    protocol = tmp_path / "run/protocol.json"
    whole = protocol.read_text()
    for text, said in ((whole.replace('"format": 1', '"format": 9'), "format 9"), (whole[:-9], "damaged"),
                       (whole.replace('"sha256": "', '"sha256": "0', 1), "not those")):  # fmt: skip
        protocol.write_text(text)
        assert said in lens("report", "run").err
    protocol.write_text(whole)
    (tmp_path / "run/samples.jsonl").write_text('{"id": 7}\n')
    assert "another form" in lens("report", "run").err


def test_claims_look_for_their_weights(lens) -> None:
    found = {row["claim"]: row["state"] for row in lens("claims", "--dry-run", "--json").json["data"]["claims"]}
    assert found["captions"] == "measured before" and found["reasoner"] == "to be measured"
    given = lens("claims", "--dry-run", "--json", "--with", "turbo=nano", "--with", "rl=nano")
    states = {row["claim"]: row["state"] for row in given.json["data"]["claims"]}
    assert states["turbo"] == "to be measured" and "nano-rl-half" in states["rl-half"]
