"""Pictures of the history as lines that fit a terminal: a table, and a family as a tree."""

from __future__ import annotations

import shutil
import unicodedata
from collections.abc import Iterator, Sequence
from datetime import datetime

from backend.picture.history import Entry, Node
from lens_cli.terminal.console import one_line

WIDTH = 80  # columns, where stdout is no terminal or a narrower one
ID = 8  # letters of an id that are shown
_LIMITS = (ID, 14, 9, 10, 12, 1)  # columns of id, when, size, seed, model, rating
_HEAD = ("id", "when", "size", "seed", "model", "*")


def table(entries: Sequence[Entry], width: int | None = None) -> list[str]:
    """One line a picture, under a line of heads; the prompt takes what is left. `width` None: the terminal's."""
    rows = [_HEAD, *map(_cells, entries)]
    widths = [min(limit, max(columns(row[k]) for row in rows)) for k, limit in enumerate(_LIMITS)]
    rest = (width or terminal_width()) - sum(widths) - len(widths)
    prompts = ["prompt", *(one_line(entry.prompt) for entry in entries)]
    lines = list[str]()
    for row, prompt in zip(rows, prompts, strict=True):
        cells = [fit(cell, size, right=k in (2, 3)) for k, (cell, size) in enumerate(zip(row, widths, strict=True))]
        lines.append(" ".join([*cells, fit(prompt, rest).rstrip()]).rstrip())
    return lines


def _cells(entry: Entry) -> tuple[str, ...]:
    return (
        entry.id[:ID],
        when(entry.created),
        f"{entry.width}x{entry.height}",
        "-" if entry.seed is None else str(entry.seed),
        one_line(entry.model) or "-",
        "" if entry.rating is None else str(entry.rating),
    )


def tree_lines(node: Node, width: int | None = None) -> list[str]:
    """A family, the oldest first, each below what it was made from."""
    return [fit(line, width or terminal_width()).rstrip() for line in _tree(node, "", "")]


def _tree(node: Node, first: str, rest: str) -> Iterator[str]:
    entry = node.entry
    how = f"{entry.relation}: " if entry.relation else ""
    seed = "" if entry.seed is None else f", seed {entry.seed}"
    gone = " (file gone)" if entry.gone else ""
    more = f" (and {node.more} below)" if node.more else ""
    yield f"{first}{entry.id[:ID]} {how}{entry.width}x{entry.height}{seed}{gone}{more} {one_line(entry.prompt)}"
    for child in node.children:
        last = child is node.children[-1]
        yield from _tree(child, rest + ("`- " if last else "|- "), rest + ("   " if last else "|  "))


def terminal_width() -> int:
    return max(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns)


def when(created: str) -> str:
    """`26-11-30 19:44` by this machine's clock; of what is no time, its beginning."""
    try:
        return f"{datetime.fromisoformat(created).astimezone():%y-%m-%d %H:%M}"
    except (ValueError, OverflowError, OSError):
        return one_line(created)[:14]


def columns(text: str) -> int:
    """How many columns a terminal gives the text."""
    return sum(_columns(character) for character in text)


def _columns(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def fit(text: str, width: int, *, right: bool = False) -> str:
    """The text in exactly so many columns: filled up, or cut with an ellipsis."""
    if columns(text) > width:
        cut = ""
        for character in text:
            if columns(cut) + _columns(character) > width - 1:
                break
            cut += character
        text = cut + "…"
    room = " " * (width - columns(text))
    return room + text if right else text + room
