"""A job's picture gets its file and its line in the history, exactly once.

Light ring: standard library only.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from backend.disk import file_sha256, make_folder, names, write_new
from backend.picture.ledger import Ledger
from backend.server.queue import Kept

SPOOLED = 3600.0  # seconds that pictures without a name of their own are kept for whoever fetches them
NEAR = 1000  # names that are tried for a file that was written just before the server ended


class Pictures:
    """All methods are called from one thread, which is not the server's: a disk may be slow."""

    def __init__(self, spool: Path, history: Path) -> None:
        """`spool`: of pictures that are fetched."""
        self.spool = spool
        self._ledger = Ledger(history)

    def spooled(self, job: str, place: int, suffix: str) -> Path:
        """Where a picture waits that has no name of its own."""
        return self.spool / job / f"{place}{suffix}"

    def write(self, wished: Path, data: bytes) -> Path:
        """The file, under the first free name. Raises FileError."""
        make_folder(wished.parent)
        return write_new(wished, data)

    def enter(
        self, record: Mapping[str, Any], path: Path | None, relation: str | None, warn: Callable[[str], None]
    ) -> None:
        """A line in the history. One that is there stays as it is."""
        self._ledger.enter(record, path, relation, warn)

    def find_written(self, kept: Kept) -> Path | None:
        """The file of a picture of which the queue does not know whether it was written before the server ended."""
        if kept.wished is None:
            return None
        for tried, path in enumerate(names(kept.wished)):
            if tried == NEAR or not path.is_file():
                return None
            if file_sha256(path) == kept.sha256:
                return path
        return None

    def sweep(self, waiting: Collection[str] = ()) -> None:
        """Drop what nobody has fetched for long, but what came with jobs that are `waiting`."""
        if not self.spool.is_dir():
            return
        for folder in self.spool.iterdir():
            if folder.name not in waiting and folder.is_dir() and time.time() - folder.stat().st_mtime > SPOOLED:
                shutil.rmtree(folder, ignore_errors=True)

    def drop(self, job: str) -> None:
        """What waits of a job was fetched."""
        shutil.rmtree(self.spool / job, ignore_errors=True)

    def close(self) -> None:
        self._ledger.close()
