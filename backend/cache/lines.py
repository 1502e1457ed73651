"""A file of JSON Lines that only grows: a line torn by a crash is ignored, and never joins the next one.

Light ring: standard library only.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from backend.disk import write_error
from backend.errors import FileError
from backend.foreign import documents

_LARGEST = 4_000_000_000  # bytes: a run of months


class JsonLines:
    """Objects, one a line. Appending is safe from several threads of one process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._torn: bool | None = None  # the last line has no end; None: not looked at yet

    def read(self) -> Iterator[dict[str, Any]]:
        """Every whole object of the file; none where there is no file. Raises FileError where it cannot be read."""
        try:
            data = documents.read_bytes(self.path, _LARGEST)
        except FileNotFoundError:
            data = b""
        except (OSError, documents.Unreadable) as error:
            raise FileError(f"{self.path} {documents.reason(error)}") from error
        self._torn = bool(data) and not data.endswith(b"\n")
        for line in data.split(b"\n"):
            try:
                found: Any = documents.parse_json(line)
            except documents.Unreadable:  # torn, empty or edited by hand
                continue
            if isinstance(found, dict):
                yield cast("dict[str, Any]", found)

    def append(self, row: dict[str, Any], *, flush: bool = False) -> None:
        """Write one object. `flush`: on return it survives a power cut. Raises FileError, a full disk among them."""
        try:
            line = json.dumps(row, ensure_ascii=False).encode() + b"\n"
        except UnicodeEncodeError:  # half of a pair, as file names and endpoints may have it: escaped it can be written
            line = json.dumps(row).encode() + b"\n"
        with self._lock:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with self.path.open("ab") as file:
                    file.write(b"\n" + line if self._ends_torn() else line)
                    if flush:
                        file.flush()
                        os.fsync(file.fileno())
            except OSError as error:
                self._torn = True  # part of it may be there
                raise write_error(self.path, error) from error
            self._torn = False

    def _ends_torn(self) -> bool:
        if self._torn is None:
            for _ in self.read():
                pass
        return bool(self._torn)
