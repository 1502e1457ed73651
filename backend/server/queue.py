"""The server's jobs on the disk: what was asked for, in which order, and what of it is finished.

A job is on the disk before its client hears of it, and a picture is entered before its file is written (`intend`) and
again when it has its name (`saved`): after a kill nothing is lost, and nothing is drawn twice. One server has the file
open at a time; all its methods are called from one thread.

Light ring: standard library only.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backend.cache.database import Kind, OpenDatabase, writing
from backend.errors import BusyError, FileError, UsageError
from backend.server.jobs import Job, JobState, UnknownJobError

WAITING = 2000  # jobs that may wait
KEPT = 500  # jobs that have ended and are still told of
NUMBERS = 1_000_000_000  # of events, for every start of the server

_LAYOUT = """
CREATE TABLE jobs (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    state TEXT NOT NULL,
    place REAL NOT NULL,           -- order of those that wait
    wish TEXT NOT NULL,            -- as it was asked for, JSON
    prompt TEXT NOT NULL, model TEXT NOT NULL, total INTEGER NOT NULL,
    task TEXT NOT NULL,            -- what is to be done, complete, JSON
    created REAL NOT NULL, started REAL, ended REAL,
    tries INTEGER NOT NULL DEFAULT 0,
    error TEXT,                    -- JSON
    told INTEGER NOT NULL DEFAULT 0  -- number of its last event
);
CREATE INDEX jobs_state ON jobs (state, place);
CREATE TABLE pictures (
    job INTEGER NOT NULL REFERENCES jobs (number) ON DELETE CASCADE,
    place INTEGER NOT NULL,        -- in the request's seeds
    sha256 TEXT,                   -- of the file's bytes; NULL: nothing was made
    wished TEXT,                   -- the path that it was to have
    path TEXT,                     -- the one it has; NULL: not yet
    event TEXT NOT NULL,           -- picture_saved or picture_failed, JSON
    told INTEGER NOT NULL,         -- number of that event
    PRIMARY KEY (job, place)
) WITHOUT ROWID;
CREATE TABLE starts (number INTEGER PRIMARY KEY, at REAL NOT NULL);
"""
_KIND = Kind(
    name="queue",
    layouts=(_LAYOUT,),
    error=FileError,
    newer="update lens",
    damaged="move it away; jobs that waited in it are lost, pictures are not",
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """A job with what only the server knows."""

    number: int
    job: Job
    task: Mapping[str, Any]
    tries: int


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What became of one picture of a job."""

    place: int
    sha256: str | None  # None: it failed
    wished: Path | None
    path: Path | None  # None: it failed, or the server ended before its file had a name
    event: Mapping[str, Any]


class Queue(OpenDatabase):
    """The open file of jobs."""

    def __init__(self, path: Path) -> None:
        """Open or make the file. Raises FileError."""
        super().__init__(path, _KIND)
        self._db.execute("PRAGMA foreign_keys = ON")
        with self._ours(), writing(self._db):
            start = self._db.execute("INSERT INTO starts (at) VALUES (?)", (time.time(),)).lastrowid or 1
            self._db.execute("DELETE FROM starts WHERE number < ?", (start,))
        self._number = start * NUMBERS

    def next_number(self) -> int:
        """A number for an event, greater than every one before, also of earlier starts."""
        self._number += 1
        return self._number

    # --------------------------------------------------------------------------------------------------------- waiting

    def add(
        self, job_id: str, wish: Mapping[str, Any], task: Mapping[str, Any], *, prompt: str, model: str, total: int
    ) -> Row:
        """Enter a job at the end. One that is there stays as it is. Raises BusyError where too many wait."""
        with self._ours(), writing(self._db):
            if self._find(job_id) is None:
                waiting, last = self._db.execute(
                    "SELECT count(*), max(place) FROM jobs WHERE state = 'queued'"
                ).fetchone()
                if waiting >= WAITING:
                    raise BusyError(f"{waiting:,} jobs wait already", hint="try again when some are done: lens ps")
                self._db.execute(
                    "INSERT INTO jobs (id, state, place, wish, prompt, model, total, task, created) "
                    "VALUES (?, 'queued', ?, ?, ?, ?, ?, ?, ?)",
                    (job_id, (last or 0) + 1, _json(wish), prompt, model, total, _json(task), time.time()),
                )
        return self.row(job_id)

    def next(self) -> Row | None:
        """The job that waits first; None: none does."""
        with self._ours():
            found = self._db.execute("SELECT * FROM jobs WHERE state = 'queued' ORDER BY place LIMIT 1").fetchone()
        return None if found is None else self._row(found)

    def move(self, job_id: str, position: int) -> Row:
        """Give a waiting job another place. Raises UsageError where it does not wait."""
        row = self.row(job_id)
        if row.job.state is not JobState.queued:
            raise UsageError(f"the job {job_id} does not wait: it is {row.job.state}")
        with self._ours(), writing(self._db):
            others = self._db.execute(
                "SELECT number FROM jobs WHERE state = 'queued' AND number != ? ORDER BY place", (row.number,)
            ).fetchall()
            order = [other["number"] for other in others]
            order.insert(max(0, position), row.number)
            self._db.executemany("UPDATE jobs SET place = ? WHERE number = ?", enumerate_from_one(order))
        return self.row(job_id)

    # --------------------------------------------------------------------------------------------------------- running

    def start(self, job_id: str) -> Row:
        """It runs, once more."""
        self._set("UPDATE jobs SET state = 'running', started = ?, tries = tries + 1 WHERE id = ?", time.time(), job_id)
        return self.row(job_id)

    def put_back(self, job_id: str) -> Row:
        """It waits again, before all others."""
        self._set(
            "UPDATE jobs SET state = 'queued', place = (SELECT coalesce(min(place), 1) - 1 FROM jobs WHERE state = "
            "'queued') WHERE id = ?",
            job_id,
        )  # fmt: skip
        return self.row(job_id)

    def end(self, job_id: str, state: JobState, error: Mapping[str, Any] | None) -> Row:
        """It has ended; the oldest of those that have are forgotten."""
        self._set(
            "UPDATE jobs SET state = ?, ended = ?, error = ? WHERE id = ?",
            str(state), time.time(), None if error is None else _json(error), job_id,
        )  # fmt: skip
        self._set(
            "DELETE FROM jobs WHERE number IN (SELECT number FROM jobs WHERE ended IS NOT NULL ORDER BY ended DESC "
            "LIMIT -1 OFFSET ?)",
            KEPT,
        )
        return self.row(job_id)

    def change_task(self, job_id: str, task: Mapping[str, Any]) -> None:
        """What is to be done from now on: a prompt that was rewritten is not rewritten again."""
        self._set("UPDATE jobs SET task = ? WHERE id = ?", _json(task), job_id)

    def tell(self, job_id: str, number: int) -> None:
        """Its last event has this number."""
        self._set("UPDATE jobs SET told = ? WHERE id = ?", number, job_id)

    # -------------------------------------------------------------------------------------------------------- pictures

    def intend(self, number: int, place: int, sha256: str, wished: Path | None, event: Mapping[str, Any]) -> None:
        """A picture is drawn, and its bytes go to `wished` next."""
        self._set(
            "INSERT OR REPLACE INTO pictures (job, place, sha256, wished, event, told) VALUES (?, ?, ?, ?, ?, ?)",
            number, place, sha256, None if wished is None else str(wished), _json(event), 0,
        )  # fmt: skip

    def saved(self, number: int, place: int, path: Path, event: Mapping[str, Any], told: int) -> None:
        """The picture has its file."""
        self._set(
            "UPDATE pictures SET path = ?, event = ?, told = ? WHERE job = ? AND place = ?",
            str(path), _json(event), told, number, place,
        )  # fmt: skip

    def failed(self, number: int, place: int, event: Mapping[str, Any], told: int) -> None:
        """The picture came to nothing."""
        self._set(
            "INSERT OR REPLACE INTO pictures (job, place, event, told) VALUES (?, ?, ?, ?)",
            number, place, _json(event), told,
        )  # fmt: skip

    def drop(self, number: int, place: int) -> None:
        """The picture was not written after all."""
        self._set("DELETE FROM pictures WHERE job = ? AND place = ?", number, place)

    def pictures(self, number: int) -> list[Kept]:
        """What became of a job's pictures, in their order."""
        with self._ours():
            rows = self._db.execute("SELECT * FROM pictures WHERE job = ? ORDER BY place", (number,)).fetchall()
        return [
            Kept(
                place=row["place"], sha256=row["sha256"], wished=_path(row["wished"]), path=_path(row["path"]),
                event=json.loads(row["event"]),
            )
            for row in rows
        ]  # fmt: skip

    # --------------------------------------------------------------------------------------------------------- reading

    def row(self, job_id: str) -> Row:
        """Raises UnknownJobError."""
        with self._ours():
            found = self._find(job_id)
        if found is None:
            raise UnknownJobError(f"no job {job_id[:40]!r}", hint="lens ps shows them")
        return self._row(found)

    def rows(self, *, ended: int = 50) -> list[Row]:
        """Those that run, those that wait in their order, and as many of those that have ended, the last one first."""
        with self._ours():
            active = self._db.execute(
                "SELECT * FROM jobs WHERE state IN ('running', 'queued') ORDER BY state DESC, place"
            ).fetchall()
            past = self._db.execute(
                "SELECT * FROM jobs WHERE ended IS NOT NULL ORDER BY ended DESC LIMIT ?", (ended,)
            ).fetchall()
        return [self._row(row) for row in (*active, *past)]

    def running(self) -> list[Row]:
        """Those that ran when the server ended."""
        with self._ours():
            rows = self._db.execute("SELECT * FROM jobs WHERE state = 'running' ORDER BY place DESC").fetchall()
        return [self._row(row) for row in rows]

    def told(self, job_id: str) -> int:
        """The number of a job's last event, of this start or an earlier one."""
        with self._ours():
            found = self._find(job_id)
        return 0 if found is None else found["told"]

    def _find(self, job_id: str) -> Any:
        return self._db.execute("SELECT * FROM jobs WHERE id = ?", (job_id,)).fetchone()

    def _row(self, row: Any) -> Row:
        counts = "SELECT count(path), count(*) FROM pictures WHERE job = ? AND (path IS NOT NULL OR sha256 IS NULL)"
        made, settled = self._db.execute(counts, (row["number"],)).fetchone()
        position = None
        if row["state"] == "queued":
            before = "SELECT count(*) FROM jobs WHERE state = 'queued' AND place < ?"
            position = self._db.execute(before, (row["place"],)).fetchone()[0]
        job = Job(
            id=row["id"], state=JobState(row["state"]), prompt=row["prompt"], model=row["model"], total=row["total"],
            made=made, failures=settled - made, position=position, created=row["created"], started=row["started"],
            ended=row["ended"], error=None if row["error"] is None else json.loads(row["error"]),
            wish=json.loads(row["wish"]),
        )  # fmt: skip
        return Row(number=row["number"], job=job, task=json.loads(row["task"]), tries=row["tries"])

    def _set(self, statement: str, *values: Any) -> None:
        with self._ours():
            self._db.execute(statement, values)


def enumerate_from_one(numbers: list[int]) -> list[tuple[int, int]]:
    return [(place, number) for place, number in enumerate(numbers, 1)]


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)
