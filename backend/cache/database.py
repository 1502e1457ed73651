"""One SQLite file that several processes have open: a write-ahead log, patience, and a layout that is raised once.

Light ring: standard library only.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from backend.disk import PRIVATE
from backend.errors import LensError, UsageError, shown

BUSY = 5.0  # seconds to wait for another process's write


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What a database is, and how its errors speak."""

    name: str  # "history"
    layouts: tuple[str, ...]  # a script a version: the first makes the tables, each other one raises them
    error: type[LensError]
    newer: str  # what to do about a file of a newer lens
    damaged: str  # and about one that is damaged

    @property
    def version(self) -> int:
        """Kept in PRAGMA user_version."""
        return len(self.layouts)


def open_database(path: Path, kind: Kind) -> sqlite3.Connection:
    """Open or make the file, readable by this user alone; every statement outside `writing` commits by itself.

    Raises the kind's error: no database, cut short, or of a newer lens.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # SQLite would make it with the usual mode; its log gets that of the file.
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, PRIVATE))
        database = sqlite3.connect(path, timeout=BUSY, isolation_level=None)
    except (OSError, sqlite3.Error) as error:
        raise kind.error(f"cannot open the {kind.name} {path}: {error}") from error
    try:
        with worded(path, kind):
            database.row_factory = sqlite3.Row
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = NORMAL")
            if _version(database) != kind.version:
                with writing(database):  # whoever comes second waits here, and finds it done
                    _raise_layout(database, path, kind)
    except BaseException:
        database.close()
        raise
    return database


def _raise_layout(database: sqlite3.Connection, path: Path, kind: Kind) -> None:
    found = _version(database)
    if found > kind.version:
        raise kind.error(
            f"the {kind.name} {path} was written by a newer lens (layout {found}; known: {kind.version})",
            hint=kind.newer,
        )
    for script in kind.layouts[found:]:
        for statement in _statements(script):
            database.execute(statement)
    database.execute(f"PRAGMA user_version = {kind.version}")


def _version(database: sqlite3.Connection) -> int:
    return int(database.execute("PRAGMA user_version").fetchone()[0])


@contextmanager
def writing(database: sqlite3.Connection) -> Generator[None]:
    """One transaction that no other process can write into."""
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:  # a full disk has ended it already
            database.execute("ROLLBACK")
        raise


@contextmanager
def worded(path: Path, kind: Kind) -> Generator[None]:
    """SQLite's errors in our words."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        if "locked" in str(error) or "busy" in str(error):
            raise kind.error(
                f"the {kind.name} {path} is busy: another process has been writing for {BUSY:g} s", hint="try again"
            ) from error
        raise kind.error(f"the {kind.name} {path} is damaged: {error}", hint=kind.damaged) from error
    except UnicodeEncodeError as error:
        raise UsageError(f"{shown(error.object)} is no Unicode text, and all in the {kind.name} is") from error


class OpenDatabase:
    """A database that is open until its `with` block ends. One object belongs to one thread."""

    def __init__(self, path: Path, kind: Kind) -> None:
        """Open or make the file, as `open_database` does."""
        self.path, self._kind = path, kind
        self._db = open_database(path, kind)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._db.close()

    def _ours(self) -> AbstractContextManager[None]:
        """SQLite's errors in our words."""
        return worded(self.path, self._kind)


def _statements(script: str) -> Iterator[str]:
    """The statements of a script one by one: `executescript` would end the transaction around it."""
    begun = ""
    for line in script.splitlines():
        begun += line + "\n"
        if sqlite3.complete_statement(begun):
            yield begun
            begun = ""
