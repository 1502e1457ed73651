"""The plans of trainings as a person sees them: on a terminal of 80 x 24 that is a pipe told to be one."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from lens_cli.terminal import wrap
from lens_cli.terminal.console import Talk
from lens_cli.work.train import plan_page
from tests.lens_cli.cli import Run, real_inside


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Run]:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "24")
    monkeypatch.setattr(wrap, "looking_at_stdout", lambda: True)
    return lambda *words: real_inside(monkeypatch, capfd, *words)


@pytest.mark.parametrize(
    "words",
    [
        ("nano",),
        ("pretrain", "--recipe", "paper-mixed"),
        ("pretrain", "--recipe", "nano"),
        ("rl", "--recipe", "paper"),
        ("distill", "--recipe", "paper"),
    ],
    ids=" ".join,
)
def test_the_plan_fits_a_screen_and_ends_with_what_matters(inside: Callable[..., Run], words: tuple[str, ...]) -> None:
    run = inside("train", *words, "--dry-run")
    shown = run.lines + run.err.splitlines()
    assert run.code == 0 and len(shown) <= 24 and max(map(len, run.lines)) <= 80, shown
    labels = [line.split()[0] for line in run.lines if not line.startswith(" ")]
    assert {"memory", "disk", "time"} <= set(labels[-4:])
    if "paper" in words[-1]:
        assert "warning: no " in run.err  # prompts, captions or data
    assert "--settings lists all" in run.err.splitlines()[-1]


def test_settings_are_one_flag_away(inside: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    run = inside("train", "rl", "--settings", "--set", "nft.kl_weight=0.5")
    assert run.code == 0 and ["nft.kl_weight", "0.5"] in [line.split() for line in run.lines]
    answer = inside("train", "nano", "--settings", "--json")
    assert answer.json["data"]["config"]["vae"]["steps"] == 6400


def test_a_plan_says_what_the_disk_has_no_room_for(inside: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_page, "free_bytes", lambda path: 1000)
    assert "more than is free there" in inside("train", "nano", "--dry-run").err


def test_lines_break_between_words() -> None:
    row = "things      " + ", ".join(["pine tree", "x" * 70, "butterfly"] * 3)
    lines = wrap.wrap(row, 40, 12)
    assert " ".join(" ".join(lines).split()) == " ".join(row.split())
    assert all(len(line) <= 40 or "x" * 70 in line for line in lines)
    assert all(line.startswith(" " * 12) for line in lines[1:])
    assert wrap.wrap("    a folder " + "x" * 40, 40, 12)[1] == "      " + "x" * 40


def test_settings_and_talk_break_between_words(
    inside: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    run = inside("config", "show", "--all")
    assert run.code == 0 and all(len(line) <= 80 for line in run.lines if "config.toml" not in line)
    for looking, lines in ((True, 3), (False, 1)):
        monkeypatch.setattr(wrap, "talking_to_a_terminal", lambda looking=looking: looking)
        wrap.tell_rows(["label  " + "word " * 40], 7, Talk(command="x"))
        told = capfd.readouterr().err.splitlines()
        assert len(told) == lines and all(line.startswith(" " * 7) for line in told[1:])


def test_the_words_of_a_model_are_whole_and_say_what_is_seldom(inside: Callable[..., Run]) -> None:
    run = inside("models", "show", "nano")
    assert run.code == 0 and "seldom" in " ".join(run.out.decode().split("styles")[1].split())
    told = run.out.decode().split("things")[1].split("colours")[0].replace("\n", " ")
    assert {word.strip() for word in " ".join(told.split()).split(",")} >= {"butterfly", "pine tree", "round bubble"}
