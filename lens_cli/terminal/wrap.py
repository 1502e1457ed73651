"""Lines with a label at their left, wrapped between words on a terminal: what follows stands under the text.

A pipe gets each line whole, so that it can be searched and cut. Light ring: standard library only.
"""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable, Iterator

from lens_cli.terminal.console import Talk, looking_at_stdout, talking_to_a_terminal


def say_rows(rows: Iterable[str], indent: int, talk: Talk) -> None:
    """Rows on stdout, whose labels take `indent` columns."""
    for line in _fitting(rows, indent, looking_at_stdout()):
        talk.data(line)


def tell_rows(rows: Iterable[str], indent: int, talk: Talk) -> None:
    """Rows on stderr, whose labels take `indent` columns: talk, where stdout has other data."""
    for line in _fitting(rows, indent, talking_to_a_terminal()):
        talk.say(line)


def _fitting(rows: Iterable[str], indent: int, looking: bool) -> Iterator[str]:
    columns = shutil.get_terminal_size((80, 24)).columns
    for row in rows:
        yield from wrap(row, columns, indent) if looking else [row]


def wrap(row: str, columns: int, indent: int) -> list[str]:
    """A row in lines of so many columns; a word that is longer than a line stays whole. What a row that is indented
    itself goes on with stands a little further in."""
    if len(row) <= columns:
        return [row]
    own = len(row) - len(row.lstrip())
    under = " " * min(own + 2 if own else indent, columns // 2)
    return textwrap.wrap(row, columns, subsequent_indent=under, break_long_words=False, break_on_hyphens=False)
