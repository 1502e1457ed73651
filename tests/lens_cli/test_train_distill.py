"""`lens train distill` from the outside: its plan, what it refuses, a run on a tiny model whose last line draws."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.backend.tiny_weights import write_runnable
from tests.lens_cli.cli import Run, real_inside

TINY = (
    "base=64", "machine.compute=float32", "warm.steps=0", "steps=1", "fake.updates=1", "batch=1", "watch.prompts=1",
    "watch.seeds=1", "watch.preview=0", "targets=attn.img_qkv", "rank=2", "collapse.stop=false",
)  # fmt: skip


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LENS_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Run]:
    def call(*words: str) -> Run:
        return real_inside(monkeypatch, capfd, "train", "distill", *words)

    return call


@pytest.mark.parametrize("form", ["adapters", "full"])
def test_a_run_ends_with_the_command_that_draws_with_it(
    folder: Path, inside: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
    form: str,
) -> None:  # fmt: skip
    write_runnable(folder / "tiny")
    settings = (*TINY, "model=tiny", f"form={form}")
    run = inside("--run-dir", "run", "--random", *(word for field in settings for word in ("--set", field)))
    assert run.code == 0 and len(run.lines) == 1, run.err
    last = shlex.split(run.err.splitlines()[-1].removeprefix("try it: "))
    assert last[:2] == ["lens", "gen"] and last[-4:] == ["--steps", "4", "--guidance", "1"]
    drawn = real_inside(monkeypatch, capfd, *last[1:], "--size", "128x128", "-o", "x.png")
    assert drawn.code == 0 and drawn.lines == ["x.png"], drawn.err
    assert "noise in place of pictures" in run.err
    said = real_inside(monkeypatch, capfd, "train", "status", "run")
    assert said.code == 0 and "step 1 of 1" in said.out.decode() and "held_score" in said.out.decode()
    again = inside("--run-dir", "run", "--random", "--dry-run", "--json", *(w for f in settings for w in ("--set", f)))
    assert again.json["data"]["plan"]["measured"] > 0


@pytest.mark.parametrize(
    ("recipe", "gpus", "least", "most"),
    # By hand, in GB: 4.1e9 parameters x (4 + 4 weights, 16 moments, 4 gradients, 2 teacher) / 8 and 41 of the encoder;
    # 8.2 of the backbone in bfloat16, or 4.3 in NF4; 0.16e9 numbers of an adapter x (8 + 16 + 4).
    [("paper", 8, 15.4 + 41, 75), ("one-gpu", 1, 8.2 + 4.5, 40), ("one-gpu-24gb", 1, 4.0 + 4.5, 20)],
)
def test_the_plan_is_counted_without_the_model(
    inside: Callable[..., Run], folder: Path, recipe: str, gpus: int, least: float, most: float
) -> None:
    run = inside("--recipe", recipe, "--dry-run", "--json")
    assert run.code == 0, run.err
    plan, config = run.json["data"]["plan"], run.json["data"]["config"]
    assert config["hardware"]["gpus"] == gpus and plan["seen"] == 1000 * 5 * plan["pictures"]
    assert least * 1e9 < plan["memory"]["total"] < most * 1e9
    assert plan["memory"]["total"] == pytest.approx(sum(v for k, v in plan["memory"].items() if k != "total"))
    assert not list(folder.glob("runs"))


def test_the_plan_counts_the_looks(inside: Callable[..., Run]) -> None:
    """By hand: before step 1, after 2 and after 4; each 2 prompts x 2 seeds. The teacher's 20 steps are guided, the
    student's 4 are not; a pass takes 2 operations a number and token, of which each of the two streams has half.
    """
    plan = inside("--recipe", "nano-smoke", "--dry-run", "--json").json["data"]["plan"]
    assert (plan["looks"], plan["looked_at"]) == (3, 4)
    by_hand = 4 * (3 * 4 + 2 * 20) * 2 * 12e6 * (64 + 60) / (5.4e9 / 0.042)
    assert 0.3 * by_hand < plan["looking"] < 2 * by_hand and plan["estimated"] > plan["looking"]


def test_what_it_refuses(inside: Callable[..., Run]) -> None:
    for words, said in (
        (("--recipe", "paper", "--set", "model=lens-turbo"), "distilled for 4 steps"),
        (("--recipe", "best"), "known recipes: paper, one-gpu, one-gpu-24gb, nano, nano-smoke"),
        (("--recipe", "nano", "--set", "ida=1"), "fake.ida"),
        (("--recipe", "one-gpu", "--set", "model=nano", "--set", "rank=8"), "no captions were named"),
        (("--recipe", "paper", "--set", "model=nano", "--set", "machine.device=cpu"), "no data are named"),
        (("--recipe", "nano-smoke", "--set", "start_from=nowhere.safetensors"), "nowhere.safetensors"),  # few scenes
    ):
        run = inside(*words)
        assert run.code == 2 and said in run.err, (words, run.err)
