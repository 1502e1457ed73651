"""Lines with a label at their left, wrapped between words on a terminal: what follows stands under the text.

A pipe gets each line whole, so that it can be searched and cut. Light ring: standard library only.
"""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable

from lens_cli.terminal.console import Talk, looking_at_stdout


def say_rows(rows: Iterable[str], indent: int, talk: Talk) -> None:
    """Rows on stdout, whose labels take `indent` columns."""
    columns = shutil.get_terminal_size((80, 24)).columns if looking_at_stdout() else None
    for row in rows:
        for line in [row] if columns is None else wrap(row, columns, indent):
            talk.data(line)


def wrap(row: str, columns: int, indent: int) -> list[str]:
    """A row in lines of so many columns; a word that is longer than a line stays whole. What a row that is indented
    itself goes on with stands a little further in."""
    if len(row) <= columns:
        return [row]
    own = len(row) - len(row.lstrip())
    under = " " * min(own + 2 if own else indent, columns // 2)
    return textwrap.wrap(row, columns, subsequent_indent=under, break_long_words=False, break_on_hyphens=False)
