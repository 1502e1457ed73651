"""Help that fits a screen, held to the options that a command really has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from lens_cli.app import COMMANDS
from lens_cli.help import EVERYDAY, TOPICS
from lens_cli.lazy import build, load
from lens_cli.reference import page
from tests.lens_cli.cli import ROOT, real_inside

Say = Callable[..., str]


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Say:
    """What a command prints at 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    return lambda *words: (lambda run: (run.out or run.err.encode()).decode())(real_inside(monkeypatch, capfd, *words))


def flags_of(name: str) -> list[str]:
    command: Any = build(name, load(COMMANDS[name].target))
    options = [param.opts for param in command.params if param.opts[0].startswith("-")]
    return [next(flag for flag in opts if flag.startswith("--")) for opts in options]


@pytest.mark.parametrize("name", ["gen", "rerun", "grid"])
def test_every_option_is_an_everyday_one_or_has_a_page(name: str) -> None:
    explained = {flag for topic in TOPICS.values() for flag in topic.flags} | set(EVERYDAY)
    assert [flag for flag in flags_of(name) if flag not in explained] == []


@pytest.mark.parametrize("name", ["gen", "rerun", "grid"])
def test_help_fits_a_screen(say: Say, name: str) -> None:
    lines = say(name, "--help").splitlines()
    assert len(lines) <= 60 and max(map(len, lines)) <= 80
    assert any(line.strip().startswith("-m, --model") for line in lines)
    assert any("lens help TOPIC" in line for line in lines)


def test_a_topic_explains_its_options_in_full(say: Say) -> None:
    known = flags_of("gen")
    for name, topic in TOPICS.items():
        text = say("help", name)
        assert [flag for flag in topic.flags if flag in known and flag not in text] == [], name
        assert " ".join(topic.text.split()) in " ".join(text.split())


def test_help_of_a_command_is_that_command_s(say: Say) -> None:
    assert say("help", "cache", "show").split() == say("cache", "show", "--help").split()


def test_an_unknown_topic_is_refused(say: Say) -> None:
    assert "lens help lists the topics" in say("help", "nope")


def test_the_command_reference_is_what_the_commands_say() -> None:
    committed = (ROOT / "docs/commands.md").read_text(encoding="utf-8")
    assert committed == page(), "python -m lens_cli.reference > docs/commands.md"
