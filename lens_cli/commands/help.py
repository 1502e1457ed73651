"""`lens help`: pages about what several commands share, and the help of any command."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Annotated, Any

import typer

from backend.errors import UsageError
from lens_cli.help import TOPICS


def complete_topic(incomplete: str) -> list[tuple[str, str]]:
    """Topics for the shell's TAB, each with what it is about."""
    return [(name, topic.about) for name, topic in TOPICS.items() if name.startswith(incomplete)]


def help(  # noqa: A001  the command's name
    context: typer.Context,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[TOPIC|COMMAND]", help="What to explain.", autocompletion=complete_topic, show_default=False
        ),
    ] = None,
) -> None:
    """Explain a topic such as sizes, memory or output, or a command.

    Examples: lens help memory   ·   lens help models pull
    """
    from lens_cli.help import topic_of, topic_page

    root: Any = context.parent
    words = words or []
    if not words:
        formatter = context.make_formatter()
        with formatter.section("Topics: lens help TOPIC"):
            formatter.write_dl([(name, topic.about) for name, topic in TOPICS.items()])
        print(formatter.getvalue() + "\nCommands: lens --help, or lens help COMMAND")
        return
    topic = topic_of(words[0]) if len(words) == 1 and words[0] not in root.command.commands else None
    if topic is not None:
        _, gen, _ = root.command.resolve_command(root, ["gen"])
        print(topic_page(topic, gen, context), end="")
        return
    command, path = root.command, root
    for word in words:
        commands = getattr(command, "commands", {})
        if word not in commands:
            near = get_close_matches(word, [*commands, *(TOPICS if command is root.command else ())], 2)
            hint = f"did you mean {' or '.join(near)}?" if near else "lens help lists the topics"
            raise UsageError(f"no topic or command is called {' '.join(words)!r}", hint=hint)
        _, command, _ = command.resolve_command(path, [word])
        path = command.make_context(word, [], parent=path, resilient_parsing=True)
    typer.echo(command.get_help(path))
