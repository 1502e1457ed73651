"""The boundary: which command an error speaks of, and help that loses no word on any terminal."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.text import Text

from lens_cli.app import COMMANDS
from lens_cli.lazy import build, load
from tests.lens_cli.cli import lens, real_inside


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["--no-such"], ""),
        (["train"], "train"),
        (["train", "data"], "train data"),
        (["train", "data", "scan"], "train data scan"),
        (["train", "data", "no-such"], "train data"),
        (["models", "pull"], "models pull"),
        (["info"], "info"),
    ],
)
def test_an_error_names_its_command(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], words: list[str], command: str
) -> None:
    run = real_inside(monkeypatch, capfd, *words)
    group = words in (["train"], ["train", "data"])  # its page is shown already
    last = f"error: lens {command} needs a command" if group else f"hint: {f'lens {command}'.strip()} --help"
    if words[-1] == "no-such":
        assert run.err.startswith(f"error: lens {command} has no command 'no-such'")
        last = f"hint: lens {command} has scan, score, select, dedup, caption, bucket, pack, text-images, report, run"
    assert run.code == 2 and run.err.endswith(last + "\n")
    run = real_inside(monkeypatch, capfd, *words, "--json")
    assert run.code == 2 and run.json["command"] == command


def test_a_wrong_choice_is_said_in_plain_words(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    said = real_inside(monkeypatch, capfd, "gen", "a fish", "--sampler", "ddim").err
    assert "'ddim' is not one of 'euler', 'dpmpp_2m'" in said and "Value error" not in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--steps", "x"), "--steps 'x' is not a whole number\nhint: lens gen --help"),
        (("--steps", "1.5"), "--steps '1.5' is not a whole number\nhint: lens gen --help"),
        (("-n", "many"), "--num 'many' is not a whole number\n"),
        (("--guidance", "1,3"), "--guidance '1,3' is not a number\nhint: several values against each other: lens grid "
         "PROMPT --x guidance=1,3"),
        (("--cfg", "1..3"), "--guidance '1..3' is not a number\n"),
    ],
)  # fmt: skip
def test_what_is_no_number_is_said_in_plain_words(
    words: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert f"error: {said}" in real_inside(monkeypatch, capfd, "gen", "a fish", *words).err


def commands(inside: dict[str, Any], above: str = "lens") -> Iterator[tuple[str, Any]]:
    """(its words, Typer's command) of every command and group."""
    for name, command in inside.items():
        yield f"{above} {name}", command
        yield from commands(getattr(command, "commands", {}), f"{above} {name}")


def test_no_bracket_in_help_is_taken_for_markup() -> None:
    found = list(commands({name: build(name, load(lazy.target)) for name, lazy in COMMANDS.items()}))
    assert "lens train data scan" in [words for words, _ in found]
    for words, command in found:
        for text in (command.help, *(getattr(param, "help", None) for param in command.params)):
            assert Text.from_markup(text or "").plain == (text or "").replace("\\[", "["), words


@pytest.mark.parametrize(
    "environment",
    [{"PYTHONIOENCODING": "latin-1"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}],
    ids=["latin-1", "C"],
)
def test_help_where_stdout_is_not_utf8(environment: dict[str, Any]) -> None:
    run = lens("gen", "--help", real=True, start=True, **environment)
    assert (run.code, run.err) == (0, "")
    assert b"Make pictures from a sentence" in run.out and b"--lora" in run.out


def test_dry_run_of_training_refuses_what_the_run_would(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ("train", "nano", "--run-dir", str(tmp_path / "run"), "--dry-run", "--part")
    run = real_inside(monkeypatch, capfd, *words, "foo")
    assert (run.code, run.out) == (2, b"") and "unknown part 'foo'" in run.err
    assert real_inside(monkeypatch, capfd, *words, "vae").code == 0
    assert list(tmp_path.iterdir()) == []


def test_threads_are_what_was_asked_for() -> None:
    """torch reads the variable when it is imported: a process of its own, and torch's own answer."""
    code = (
        "import sys\nsys.argv = ['lens', 'gen', 'a fish', '--dry-run', '--threads', '1', '-q']\n"
        "from lens_cli.app import main\ntry:\n    main()\nexcept SystemExit:\n    pass\n"
        "import torch, os\nprint(torch.get_num_threads(), os.environ['OMP_WAIT_POLICY'])"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, timeout=300
    )
    assert run.stdout.splitlines()[-1] == "1 PASSIVE"
    refused = lens("gen", "a fish", "--threads", "0", real=True)
    assert refused.code == 2 and "outside 1..1024" in refused.err
