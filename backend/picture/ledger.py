"""Entering pictures into the history while they are made: opened with the first one, and never a picture's undoing.

Light ring: SQLite arrives with the first picture.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backend.errors import LensError

if TYPE_CHECKING:
    from backend.picture.history import History


class Ledger:
    """The history as whoever saves pictures sees it."""

    def __init__(self, path: Path) -> None:
        """`path`: of the history, made where there is none."""
        self.path = path
        self._history: History | None = None
        self._fails = False  # which was said

    def enter(
        self, record: Mapping[str, Any], path: Path | None, relation: str | None, warn: Callable[[str], None]
    ) -> None:
        """Enter a picture by its record; `relation` is to the picture it came from, `path` None: it has no file.

        What goes wrong is one warning, once.
        """
        from backend.picture.history import History

        try:
            if self._history is None:
                self._history = History(self.path)
            self._history.add(record, path, relation=relation)
        except LensError as error:
            if not self._fails:
                self._fails = True
                warn(f"the pictures are saved, but not in the history: {error}")

    def close(self) -> None:
        """Let go of the file; the next picture opens it again."""
        if self._history is not None:
            self._history.close()
            self._history = None
