"""What people type from habit gets an answer that leads on, and no suggestion that is no better than chance."""

from __future__ import annotations

import re
from typing import Any

import pytest

from lens_cli.app import COMMANDS
from lens_cli.habits import COMMANDS as FOREIGN
from lens_cli.habits import INSIDE, OPTIONS
from lens_cli.lazy import build, load
from tests.lens_cli.cli import real_inside


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["pull", "lens"], "hint: lens models pull NAME"),
        (["run", "a fish"], 'hint: lens gen "a blue fish"'),
        (["ls"], "hint: lens models list"),
        (["genn", "x"], "hint: did you mean gen?"),
        (["a", "red", "cat", "--steps", "2"], "hint: to draw it: lens gen 'a red cat'"),
        (["a red cat"], "hint: to draw it: lens gen 'a red cat'"),
        (["config", "set", "steps", "12"], "hint: did you mean generate.steps?"),
        (["gen", "a cat", "-s", "1-4"], "hint: a range: 1..4"),
        (["gen", "a cat", "--size", "512"], "hint: write WxH in pixels: --size 512x512, or --base 512 with --ar"),
        (["models", "check", "nano"], "hint: lens models verify NAME"),
        (["models", "shwo"], "hint: did you mean show?"),
        (["models", "zzz"], "hint: lens models has list, show, path, pull, verify, quantize, rm"),
        (["history", "rm", "abc"], "hint: lens history forget ID, which leaves the file in its place"),
        (["history", "show"], "hint: lens history tree ID, or lens info ID"),
        (["train", "data", "runn"], "hint: did you mean run?"),
        (["help", "memori"], "hint: did you mean memory?"),
        (["help", "history", "rat"], "hint: did you mean rate?"),
        (["gen", "x", "--aspect-ratio", "1:1"], "hint: --ar is what it is called here"),
        (["gen", "x", "--quantize", "8"], "hint: --quant is what it is called here"),
        (["gen", "x", "--guidence", "3"], "hint: did you mean --guidance?"),
        (["gen", "x", "--cartoon"], "hint: lens gen --help"),
        (["gen", "a", "red", "ball", "-q", "8"], "hint: to quantise: --quant nf4"),
    ],
)
def test_an_answer_leads_on(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    run = real_inside(monkeypatch, capfd, *words)
    assert (run.code, run.out) == (2, b"") and said in run.err
    assert len(run.err.splitlines()) <= 2


def test_what_is_taught_for_a_group_is_there() -> None:
    """Each answer is a command line: the commands themselves say whether it exists."""
    for group, answers in INSIDE.items():
        first, *_ = group.split()
        own: Any = build(first, load(COMMANDS[first].target))
        assert not set(answers) & set(own.commands), group
        for answer in answers.values():
            for one, two in re.findall(r"lens ([a-z-]+)(?: ([a-z-]+)\b)?", answer):
                command: Any = build(one, load(COMMANDS[one].target))
                below = getattr(command, "commands", {})
                assert not two or two.startswith("-") or two in below or two in ("or", "then", "says"), answer


def test_the_tables_name_what_is_here_and_nothing_that_is() -> None:
    assert not set(FOREIGN) & set(COMMANDS)
    gen: Any = build("gen", load(COMMANDS["gen"].target))
    flags = {flag for param in gen.params for flag in param.opts}
    assert not set(OPTIONS) & flags
