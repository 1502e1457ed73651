"""The history as the gallery reads it: in threads, a connection a call, so that a slow disk costs no keystroke.

Light ring: SQLite arrives with the first call.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backend.errors import shown
from lens_cli.terminal.console import one_line, printable

if TYPE_CHECKING:
    from backend.picture.history import Entry

PAGE = 120  # pictures read at once
STAR, NO_STAR = "★", "☆"


class Library:
    """Pictures by their words. Every call opens the file anew: a few tenths of a millisecond."""

    def __init__(self, path: Path | None) -> None:
        """`path`: None: there is no history."""
        self.path = path

    def search(self, words: str, before: str | None = None) -> list[Entry]:
        """A page of pictures, the last made first. Raises HistoryError."""
        from backend.picture.history import History

        if self.path is None or not self.path.is_file():
            return []
        with History(self.path) as history:
            return history.search(words, limit=PAGE, before=before)

    def rate(self, name: str, rating: int | None) -> Entry:
        """Raises HistoryError, UsageError."""
        from backend.picture.history import History

        assert self.path is not None, "a picture came from somewhere"
        with History(self.path) as history:
            return history.rate(name, rating)


def stars(rating: int | None) -> str:
    return "" if rating is None else STAR * rating + NO_STAR * (5 - rating)


def caption(entry: Entry, wide: int) -> str:
    """The prompt in one line, behind its rating."""
    rated = "" if entry.rating is None else f"{entry.rating}{STAR} "
    text = rated + one_line(entry.prompt)
    return text if len(text) <= wide else text[: wide - 1] + "…"


def details(entry: Entry) -> list[tuple[str, str]]:
    """What is known of a picture, as (name, text), short things first."""
    made: list[tuple[str, Any]] = [
        ("model", entry.model or None), ("size", f"{entry.width}×{entry.height}"), ("steps", entry.steps),
        ("guidance", None if entry.guidance is None else f"{entry.guidance:g}"), ("seed", entry.seed),
        ("rating", stars(entry.rating) or None), ("took", f"{entry.seconds:.1f} s" if entry.seconds else None),
        ("made", entry.created[:16].replace("T", " ")), ("id", entry.id[:8]),
        ("from", None if entry.parent is None else f"{entry.relation or 'made from'} of {entry.parent[:8]}"),
        ("asked", entry.original), ("avoid", entry.negative or None), ("prompt", entry.prompt),
        ("file", None if entry.path is None else _short(entry.path)),
    ]  # fmt: skip
    return [(name, printable(str(value))) for name, value in made if value is not None]


def _short(path: Path) -> str:
    """A path as a person writes it."""
    return f"~/{path.relative_to(Path.home())}" if path.is_relative_to(Path.home()) else str(path)


def command_of(entry: Entry) -> str:
    """The `lens gen` line that makes a picture again. Raises FileError for a record that does not say how."""
    import shlex

    from backend.wishes.command_words import command_words

    return shlex.join(["lens", "gen", *command_words(wish_of_entry(entry))])


def wish_of_entry(entry: Entry) -> Any:
    """What made a picture. Raises FileError; of another program's, what it said in common words."""
    from backend.picture.metadata import wish_from
    from backend.wish import ROWS, Wish
    from lens_cli.tui.create.paste import known_model

    if "imported" not in entry.record:
        wish = wish_from(entry.record, shown(entry.id))
        # Where it was computed is this machine's matter; what approximated the weights is the picture's.
        here = {name: None for name, row in ROWS.items() if row.verify and name not in ("model", "quant")}
        return known_model(replace(wish, **here))
    return Wish(
        prompt=entry.prompt, negative_prompt=entry.negative or None, steps=entry.steps, guidance=entry.guidance,
        seeds=None if entry.seed is None else (str(entry.seed),), size=f"{entry.width}x{entry.height}",
    )  # fmt: skip
