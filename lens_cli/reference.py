"""The command reference as Markdown, from the commands themselves.

python -m lens_cli.reference > docs/commands.md            # a test holds the page to it
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from lens_cli.app import COMMANDS
from lens_cli.command_page import argument_name, is_argument, one_line, plain
from lens_cli.help import TOPICS
from lens_cli.lazy import build, load


def commands() -> Iterator[tuple[str, Any]]:
    """(its words, Typer's command) of every command, in the order of the help; of a group its commands only."""

    def inside(words: str, command: Any) -> Iterator[tuple[str, Any]]:
        below: dict[str, Any] | None = getattr(command, "commands", None)
        if below is None or getattr(command, "invoke_without_command", False):
            yield words, command
        for name, item in (below or {}).items():
            yield from inside(f"{words} {name}", item)

    for name, lazy in COMMANDS.items():
        yield from inside(f"lens {name}", build(name, load(lazy.target)))


def page() -> str:
    """The whole reference: every command with its arguments and options, then the topics of `lens help`."""
    parts = [
        "# Commands",
        "",
        "Made from the program's own help. `lens help TOPIC` and `lens COMMAND --help` say the same.",
    ]
    for words, command in commands():
        parts += ["", f"## {words}", "", *_text(command)]
        rows = [row for param in command.params if (row := _row(param)) is not None]
        if rows:
            parts += ["", "| | |", "|---|---|", *rows]
    parts += ["", "# Topics"]
    for name, topic in TOPICS.items():
        parts += ["", f"## lens help {name}", "", topic.text]
    return "\n".join(parts) + "\n"


def _text(command: Any) -> list[str]:
    paragraphs = plain(command.help).split("\n\n")
    return [line for paragraph in paragraphs for line in (_escaped(" ".join(paragraph.split())), "")][:-1]


def _row(param: Any) -> str | None:
    """A row of a table: the names, and what it is. None for what is hidden, and for --help."""
    if getattr(param, "hidden", False) or "--help" in param.opts:
        return None
    names = [argument_name(param)] if is_argument(param) else [*param.opts, *param.secondary_opts]
    text = one_line(getattr(param, "help", None))
    return f"| {' '.join(f'`{name}`' for name in names)} | {_escaped(text).replace('|', chr(92) + '|')} |"


def _escaped(text: str) -> str:
    """Plain text that Markdown shows as it stands."""
    return re.sub(r"([*_<>])", r"\\\1", text)


if __name__ == "__main__":
    print(page(), end="")
