"""`lens train rl` from the outside: its plan, what it refuses, a run on a tiny model whose last line draws."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.backend.scripted_endpoint import Endpoint, completion
from tests.backend.tiny_weights import write_runnable
from tests.lens_cli.cli import Run, real_inside

TINY = (
    "rollout.base=64", "epochs=1", "machine.compute=float32", "prompts.count=20", "rollout.size=2", "evaluate.seeds=1",
    "evaluate.prompts=1",
    "export_dtype=float32",
)  # fmt: skip


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LENS_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Run]:
    def call(*words: str) -> Run:
        return real_inside(monkeypatch, capfd, "train", "rl", *words)

    return call


def test_a_run_ends_with_the_command_that_draws_with_it(
    folder: Path, inside: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    write_runnable(folder / "tiny")
    words = ["--run-dir", "run", *(word for field in (*TINY, "model=tiny") for word in ("--set", field))]
    run = inside(*words)
    assert run.code == 0 and run.lines == ["run/lora.safetensors"], run.err
    last = shlex.split(run.err.splitlines()[-1].removeprefix("try it: "))
    assert last[:2] == ["lens", "gen"] and last[3:] == ["-m", "tiny", "--lora", "run/lora.safetensors"]
    more = ("--steps", "1", "--size", "128x128", "-o", "x.png")
    drawn = real_inside(monkeypatch, capfd, *last[1:-1], f"{last[-1]}=1.5", *more)
    assert drawn.code == 0 and drawn.lines == ["x.png"], drawn.err
    told = json.loads((folder / "run" / "config.json").read_text())
    assert told["kind"] == "rl" and told["reward"] == {"overall_weight": 0.0, "all_hold": 0.5, "least_answered": 0.5}
    plan = inside(*words, "--dry-run", "--json").json["data"]["plan"]
    assert plan["pictures"] == 4 and plan["measured"] > 0


def test_the_papers_plan_is_counted_without_the_model(inside: Callable[..., Run], folder: Path) -> None:
    run = inside("--recipe", "paper", "--dry-run", "--json")
    assert run.code == 0, run.err
    plan = run.json["data"]["plan"]
    assert (plan["pictures"], plan["judge_calls"]) == (48 * 24, 207_360)  # the paper's own count of calls
    # 17 TFLOP a forward pass of the published size at 1024 x 1024: ten guided steps a picture.
    assert plan["rollout_flops"] / plan["pictures"] == pytest.approx(10 * 2 * 17e12, rel=0.1)
    assert not list(folder.glob("runs"))


def test_what_it_refuses(inside: Callable[..., Run]) -> None:
    for words, said in (
        (("--recipe", "paper", "--set", "model=lens-turbo"), "distilled for 4 steps"),
        (("--recipe", "best"), "known recipes: paper, one-node, nano, nano-smoke"),
        (("--recipe", "nano", "--set", "kl_weight=1"), "nft.kl_weight"),
        (("--recipe", "paper", "--set", "model=nano"), "nano is a base with an adapter"),
        (("--recipe", "paper", "--set", "model=nano-base"), "no prompts were named"),
    ):
        run = inside(*words)
        assert run.code == 2 and said in run.err, run.err


def test_prompts_are_written_checked_and_counted(inside: Callable[..., Run], folder: Path) -> None:
    run = inside("prompts", "write", "p.jsonl", "--to", "12")
    assert run.code == 0 and run.lines == ["p.jsonl"], run.err
    assert inside("prompts", "check", "p.jsonl").code == 0
    assert inside("prompts", "stats", "p.jsonl", "--json").json["data"]["prompts"] == 12
    lines = (folder / "p.jsonl").read_text().splitlines()
    twice = {**json.loads(lines[0]), "id": "twice"}
    (folder / "p.jsonl").write_text("\n".join([*lines, json.dumps(twice)]))
    run = inside("prompts", "check", "p.jsonl")
    assert run.code == 1 and run.lines == ["line 13, twice: the same prompt as line 1"]


def test_a_pilots_verdicts_drop_what_teaches_nothing(inside: Callable[..., Run], folder: Path) -> None:
    assert inside("prompts", "write", "p.jsonl", "--to", "1").code == 0
    prompt = json.loads((folder / "p.jsonl").read_text())
    first, *others = [rubric["text"] for rubric in prompt["rubrics"]]
    rows = [
        {"prompt": prompt["id"], "picture": str(i), "rubric": text, "passed": text == first or i % 2 == 0}
        for i in range(10)
        for text in (first, *others)
    ]
    (folder / "v.jsonl").write_text("\n".join(map(json.dumps, rows)))
    run = inside("prompts", "check", "p.jsonl", "--verdicts", "v.jsonl", "-o", "kept.jsonl")
    assert run.code == 0 and run.lines[-1] == "kept.jsonl", run.err
    left = [rubric["text"] for rubric in json.loads((folder / "kept.jsonl").read_text())["rubrics"]]
    assert left == others and f"{first} dropped" in run.lines[0]


def test_a_writer_that_answers_prose_gives_no_prompts_and_its_answers_are_kept(
    inside: Callable[..., Run], folder: Path
) -> None:
    with Endpoint(completion("hm")) as endpoint:
        run = inside("prompts", "write", "p.jsonl", "--to", "1", "--writer", "m", "--base-url", endpoint.url)
        assert run.code == 0 and "0 prompts, 4 draws left out, 12 questions" in run.err, run.err
        again = inside("prompts", "write", "p.jsonl", "--to", "1", "--writer", "m", "--base-url", endpoint.url)
    assert "0 questions" in again.err and len(endpoint.asked) == 12 and not (folder / "p.jsonl").exists()
