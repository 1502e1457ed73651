"""A file of JSON Lines that grows, read on from where the last look ended: a log of a week costs no more than one of a
minute.

Light ring: standard library only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from backend.foreign import documents

READ = 4 << 20  # bytes at one look
KEPT = 20_000  # rows; beyond that every second of the older ones goes


class Follower:
    """The rows of one file so far."""

    def __init__(self, path: Path, *, keys: frozenset[str] | None = None) -> None:
        """`keys`: of a row that are kept; None: all."""
        self.path, self._keys = path, keys
        self.rows = list[dict[str, Any]]()
        self._place, self._rest = 0, b""
        self._file: int = 0  # its number on the disk

    def look(self) -> bool:
        """Read what was written since; whether there was something. A file that was cut begins anew. Raises OSError."""
        found = self.path.stat()
        if found.st_size < self._place or found.st_ino != self._file:  # a run that resumes writes its log anew
            self._place, self._rest, self._file = 0, b"", found.st_ino
            self.rows = []
        with self.path.open("rb") as file:
            file.seek(self._place)
            data = file.read(READ)
        self._place += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        self._rest = self._rest[-READ:]
        for line in lines:
            try:
                row = documents.parse_json(line)
            except documents.Unreadable:
                continue
            if isinstance(row, dict):
                told = cast("dict[str, Any]", row)
                kept = told.items() if self._keys is None else ((k, v) for k, v in told.items() if k in self._keys)
                self.rows.append(dict(kept))
        if len(self.rows) > KEPT:
            half = len(self.rows) // 2
            self.rows = self.rows[:half:2] + self.rows[half:]
        return bool(data)
