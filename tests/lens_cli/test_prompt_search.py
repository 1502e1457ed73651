"""`lens prompt-search` as it is typed, on the folder of a search that fakes made; and its real parts on Lens-Nano once.

What a search decides is tested in `tests/train/search`.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

import prompts
from backend.paths import prompts_dir
from lens_cli.app import main
from tests.train.search import fakes
from train.search.config import Limits, LocalModel, SearchConfig
from train.search.folder import SearchFolder
from train.search.parts import opened
from train.search.run import run
from train.search.spending import Spending

GOOD = fakes.plain("good", 0.4)


@pytest.fixture(scope="module")
def searches(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One search that found something, one that did not."""
    folder, made = tmp_path_factory.mktemp("searches"), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        for name, texts in (("found", [GOOD]), ("nothing", [])):
            made[name] = fakes.make(folder / name, fakes.config(limits=Limits(candidates=2)))
            with SearchFolder(made[name]) as opened_:
                run(opened_, fakes.parts(), fakes.FakeWriter(texts))
    return made


def lens(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of `lens prompt-search …` in this process."""
    monkeypatch.setattr(sys, "argv", ["lens", "prompt-search", *map(str, words)])
    with pytest.raises(SystemExit) as caught:
        main()
    said = capsys.readouterr()
    return int(caught.value.code or 0), said.out, said.err


def test_the_winner_is_applied_and_found_by_its_name(
    searches: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, out, err = lens(monkeypatch, capsys, "apply", searches["found"])
    assert (code, out) == (0, "found\n") and "--system-prompt found" in err
    loaded = prompts.load("found", prompts_dir())
    assert loaded.body == GOOD and loaded.contract == "complete" and "c0001" in loaded.purpose
    code, out, _ = lens(monkeypatch, capsys, "export", searches["found"], "-o", tmp_path / "x.md")
    assert code == 0 and prompts.load(out.strip()).body == GOOD
    for name, message in (("general", "package's own"), ("../evil", "cannot be called"), ("A", "cannot be called")):
        code, out, err = lens(monkeypatch, capsys, "apply", searches["found"], "--name", name)
        assert code == 2 and message in err and not out


def test_without_a_confirmed_gain_the_first_prompt_stays(
    searches: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, out, err = lens(monkeypatch, capsys, "apply", searches["nothing"])
    assert (code, out) == (1, "") and "there is no winner to apply" in err and "lens prompt-search report" in err
    assert not (prompts_dir() / "nothing.md").exists()
    code, out, err = lens(monkeypatch, capsys, "apply", fakes.make(tmp_path / "begun", fakes.config()))
    assert (code, out) == (1, "") and "not over" in err and "lens prompt-search run" in err
    code, out, err = lens(monkeypatch, capsys, "apply", searches["nothing"], "c0000")
    assert code == 0 and prompts.load(out.strip(), prompts_dir()).body == fakes.FIRST_PROMPT
    code, out, err = lens(monkeypatch, capsys, "export", searches["nothing"], "-o", tmp_path / "first.md")
    assert code == 0 and "this is the first prompt" in err and prompts.load(out.strip()).body == fakes.FIRST_PROMPT
    code, _, err = lens(monkeypatch, capsys, "export", searches["nothing"], "c0001", "-o", tmp_path / "x.md")
    assert code == 2 and "was not confirmed" in err and not (tmp_path / "x.md").exists()
    code, _, _ = lens(monkeypatch, capsys, "export", searches["nothing"], "c0001", "-o", tmp_path / "x.md", "--force")
    assert code == 0 and (tmp_path / "x.md").exists()
    code, _, err = lens(monkeypatch, capsys, "export", searches["nothing"], "c0099", "-o", tmp_path / "y.md", "--force")
    assert code == 2 and "no candidate 'c0099'" in err


def test_status_diff_and_report(
    searches: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    _, out, _ = lens(monkeypatch, capsys, "status", searches["found"])
    assert "c0001" in out and "promoted" in out and out.splitlines()[-1].startswith("c0001 is better than the first")
    assert max(map(len, out.splitlines()[:-1])) <= 80
    _, out, _ = lens(monkeypatch, capsys, "status", searches["found"], "--json")
    assert json.loads(out)["data"]["outcome"]["best"] == "c0001"
    _, out, err = lens(monkeypatch, capsys, "diff", searches["found"])
    assert (
        "c0000 -> c0001" in err
        and f"- {fakes.FIRST_PROMPT.split('. ')[0]}." in out
        and "+ lift" not in out.split("\n")[0]
    )
    _, out, _ = lens(monkeypatch, capsys, "report", searches["found"], "-o", tmp_path / "r.html")
    assert Path(out.strip()).read_text().startswith("<!doctype html>")
    code, out, err = lens(monkeypatch, capsys, "status", tmp_path)
    assert code == 2 and "holds no search" in err and not out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--budget", "pictures=0"], "a budget of 0 pictures buys nothing"),
        (["--budget", "euros=3"], "is no limit"),
        (["--budget", "pictures=many"], "is no number"),
        (["--budget", "dollars=5"], "needs prices"),
        (["--budget", "pictures=100"], "ends before the first candidate is judged"),
        (["--validation", "8"], "cannot prove anything"),
        (["--judge", "endpoint", "--requests", "not-there.jsonl"], "cannot read not-there.jsonl"),
        (["--seed-prompt", "genral"], "did you mean 'general'"),
        (["--set", "writer.modell=x"], "unknown field"),
        (["--generator", "endpoint", "-m", "nano"], "are for --generator local"),
        (["-m", "nano", "--judge", "endpoint"], "no model was named as judge"),
    ],
)
def test_what_cannot_be_meant_is_said_before_anything_is_made(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = lens(monkeypatch, capsys, "init", tmp_path / "run", *words)
    assert code in (1, 2) and message in err and not out
    assert not (tmp_path / "run").exists()


def test_a_dry_run_says_what_it_would_find_and_makes_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, out, _ = lens(
        monkeypatch, capsys, "init", tmp_path / "run", "--quick", "--budget", "hours=1", "--dry-run", "--json"
    )
    said: dict[str, Any] = json.loads(out)
    assert code == 0 and not (tmp_path / "run").exists()
    assert said["data"]["config"]["limits"]["minutes"] == 60 and said["data"]["power"]["first"] > 0.1
    assert "exploratory" in said["warnings"][0]


@pytest.mark.nano
def test_the_real_parts_rewrite_draw_and_judge(tmp_path: Path) -> None:
    """Lens-Nano's own reasoner, its pictures and the rules, once each; one request and seed is one picture."""
    config = SearchConfig(generator=LocalModel(steps=1, guidance=1.0, base=128))
    with opened(config, Spending(tmp_path / "spent.jsonl", Limits()), tmp_path, say=lambda text: None) as open_:
        parts = open_.parts
        made = parts.rewriter.rewrite("a red fish", prompts.load("nano"))
        assert bool(made.prompt) + bool(made.refused) + bool(made.unusable) == 1
        first, again, other = (parts.generator.draw("a red fish", seed) for seed in (1, 1, 2))
        assert first.tobytes() == again.tobytes() != other.tobytes()
        assert '"steps":1' in parts.generator.identity and parts.rewriter.identity.startswith('["local"')
        assert open_.writer.identity.startswith("guidelines ")
