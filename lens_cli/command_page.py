"""What --help shows of a command or a group: plain lines as wide as the terminal, each option with what it takes.

Typer's own tables spend a third of a terminal of 80 columns on Python's types. Light ring: typer and the standard
library.
"""

from __future__ import annotations

import enum
import re
from functools import partial
from typing import Any

_MARKUP = re.compile(r"\\\[")  # of Rich: a bracket that is one
NAME_COLUMN = 26  # widest; a longer name has a line of its own
_CHOICES = 20  # characters: longer lists of choices stand in the text
_HELP_PANEL = "rich_help_panel"  # Typer's name of the attribute


def dress(command: Any) -> Any:
    """Give a command, and all below it, the page of this module; one that has a page of its own keeps it."""
    if not getattr(command, "own_page", False):
        setattr(command, "format_help", partial(write_page, command))  # noqa: B010  a method's place
    for inner in getattr(command, "commands", {}).values():
        dress(inner)
    return command


def write_page(command: Any, ctx: Any, formatter: Any) -> None:
    """Write usage, what the command does, its sub-commands, arguments and options."""
    formatter.write_usage(ctx.command_path, " ".join(usage(command)))
    write_text(command.help, formatter)
    for panel, names in _panels(list(getattr(command, "commands", {}).values()), "Commands").items():
        with formatter.section(panel):
            formatter.write_dl([(each.name, plain(each.help).split("\n\n")[0]) for each in names])
    shown = [param for param in command.params if not getattr(param, "hidden", False)]
    arguments = [(argument_name(param), _about(param, ctx)) for param in shown if is_argument(param)]
    if arguments:
        with formatter.section("Arguments"):
            formatter.write_dl(arguments, col_max=NAME_COLUMN)
    options = [param for param in shown if not is_argument(param)]
    for panel, params in _panels(options, "Options").items():
        with formatter.section(panel):
            formatter.write_dl([(names_of(param, ctx), _about(param, ctx)) for param in params], col_max=NAME_COLUMN)


def write_text(text: str | None, formatter: Any) -> None:
    """Write paragraphs; examples have a line each, so that each can be copied."""
    for paragraph in plain(text).split("\n\n"):
        formatter.write_paragraph()
        said = " ".join(paragraph.split())
        head, _, rest = said.partition(": ") if said.startswith(("Examples: ", "Example: ")) else ("", "", said)
        if head or said.startswith("lens "):
            for example in map(str.strip, rest.split("·")):
                if example.startswith(("lens ", "echo ", "torchrun ")):
                    formatter.write(f"  {example}\n")  # whole, whatever its length
                else:
                    formatter.write_text(example)
        else:
            formatter.write_text(said)


def plain(text: str | None) -> str:
    """A help text without Rich's escapes."""
    return _MARKUP.sub("[", text or "")


def one_line(text: str | None) -> str:
    """A help text in one line, without Rich's escapes."""
    return " ".join(plain(text).split())


def is_argument(param: Any) -> bool:
    """Whether it is given by its place and not by a flag."""
    return not param.opts[0].startswith("-")


def argument_name(param: Any) -> str:
    """What stands for an argument: PICTURES."""
    return param.metavar or param.name.upper()


def names_of(param: Any, ctx: Any, *, full: bool = True) -> str:
    """ "-s, --seed N"; in full also the other names and the flag that says no."""
    long = [flag for flag in param.opts if flag.startswith("--")]
    short = [flag for flag in param.opts if not flag.startswith("--")]
    names = ", ".join([*short[:1], *(long if full else long[:1])])
    if getattr(param, "is_flag", False):
        return f"{names}/{param.secondary_opts[0]}" if full and param.secondary_opts else names
    return names if getattr(param, "count", False) else f"{names} {_value(param, ctx, full=full)}"


def usage(command: Any) -> list[str]:
    """The pieces of the usage line behind the command's name."""
    arguments = [
        (name if param.required or name.startswith("[") else f"[{name}]") + ("..." if param.nargs == -1 else "")
        for param in command.params
        if is_argument(param)
        for name in [argument_name(param)]
    ]
    return ["[OPTIONS]", *arguments, *(["COMMAND ..."] if getattr(command, "commands", None) else [])]


def _panels(items: list[Any], usual: str) -> dict[str, list[Any]]:
    """Items by the heading they stand under, the usual one first."""
    found: dict[str, list[Any]] = {usual: []}
    for item in items:
        found.setdefault(getattr(item, _HELP_PANEL, None) or usual, []).append(item)
    return {panel: held for panel, held in found.items() if held}


def _choices(param: Any, ctx: Any) -> list[str]:
    """The words that an option takes; empty where it takes others."""
    kind = _kind(param, ctx)
    return kind.split("|") if "|" in kind else []


def _kind(param: Any, ctx: Any) -> str:
    """Typer's name of what one value is: int, path, or choices between bars."""
    return param.display_type(ctx=ctx).strip("<>").removeprefix("list[").strip("[]")


def _value(param: Any, ctx: Any, *, full: bool) -> str:
    """What stands for the option's value: its metavar, its choices, or a word for its type."""
    if param.metavar:
        return param.metavar
    words = "|".join(_choices(param, ctx))
    if words:
        return words if len(words) <= (_CHOICES if full else 16) else "NAME"
    kind = _kind(param, ctx).lower().split()[0]
    return {"int": "N", "float": "X", "path": "PATH", "file": "PATH"}.get(kind, "TEXT")


def _about(param: Any, ctx: Any) -> str:
    """The help of an option or argument, its choices where the name has no room for them, and its default."""
    text = one_line(param.help)
    choices = _choices(param, ctx)
    if not param.metavar and len("|".join(choices)) > _CHOICES:
        text = f"{text} One of {', '.join(choices)}."
    default = None if is_argument(param) and param.required else _default(param)
    return text if default is None or "[default:" in text else f"{text} [default: {default}]"


def _default(param: Any) -> str | None:
    """What holds where the option is left out, as a person would type it; None where that says nothing."""
    if isinstance(param.show_default, str):
        return param.show_default
    default = param.default
    if not param.show_default or default is None or callable(default) or default in (False, True, "", (), []):
        return None
    if type(default) in (list, tuple):
        return ", ".join(map(str, default))
    return str(default.value if isinstance(default, enum.Enum) else default)
