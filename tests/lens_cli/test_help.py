"""Help that fits a screen, held to the options that a command really has."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import typer

from backend.batch.styles import styles
from lens_cli.app import COMMANDS
from lens_cli.help import ELSEWHERE, EVERYDAY, TOPICS
from lens_cli.lazy import build, load
from lens_cli.reference import commands, page
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


def test_every_page_is_plain_and_names_every_option() -> None:
    """What Typer knows of a command is the statement; no type of Python's and no escape stands in the page."""
    for words, command in commands():
        context = typer.Context(command, info_name=words, terminal_width=80)
        text = command.get_help(context)
        assert text.startswith(f"Usage: {words} [OPTIONS]"), words
        assert not re.search(r"<|\\\[|int range|list\[", text), words
        if not getattr(command, "own_page", False):
            shown = [param for param in command.params if not getattr(param, "hidden", False)]
            assert [p.opts for p in shown if not all(name in text for name in p.opts if name[0] == "-")] == [], words
        long = [line for line in text.splitlines() if len(line) > 80 and not line.startswith("  lens ")]
        assert long == [], "only an example to be copied is longer than a line"


def test_a_group_without_a_command_shows_its_page_once(say: Say) -> None:
    text = say("models")
    assert text.split("\n")[0].endswith("lens models [OPTIONS] COMMAND ...") and text.count("Usage") == 1
    assert text.endswith("error: lens models needs a command\n")


def test_a_topic_explains_its_options_in_full(say: Say) -> None:
    known = flags_of("gen")
    for name, topic in TOPICS.items():
        text = say("help", name)
        assert [flag for flag in topic.flags if flag in known and flag not in text] == [], name
        assert " ".join(topic.text.split()) in " ".join(text.split())


def test_help_of_a_command_is_that_command_s(say: Say) -> None:
    assert say("help", "cache", "show").split() == say("cache", "show", "--help").split()


@pytest.mark.parametrize(
    ("word", "topic"),
    [("style", "prompts"), ("styles", "prompts"), ("seed", "sampling"), ("size", "sizes"), ("inpaint", "pictures")],
)
def test_a_word_leads_to_the_topic_that_is_about_it(say: Say, word: str, topic: str) -> None:
    assert say("help", word) == say("help", topic)


def test_the_styles_are_named_where_help_is_asked_for_them(say: Say) -> None:
    text = " ".join(say("help", "styles").split())
    assert all(name in text for name in styles()) and "styles.toml" in text


def test_words_of_elsewhere_lead_to_topics_that_are() -> None:
    assert set(ELSEWHERE.values()) <= set(TOPICS) and not set(ELSEWHERE) & (set(TOPICS) | set(COMMANDS))


def test_an_unknown_topic_is_refused(say: Say) -> None:
    assert "lens help lists the topics" in say("help", "nope")


def test_the_command_reference_is_what_the_commands_say() -> None:
    committed = (ROOT / "docs/commands.md").read_text(encoding="utf-8")
    assert committed == page(), "python -m lens_cli.reference > docs/commands.md"
