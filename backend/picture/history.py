"""Every picture that was made, in one SQLite file: searched by its words, followed through its lineage, rated.

Pictures stay plain files and the database only points at them: `reconcile` follows those that were moved, and marks
those that are gone. Several processes may write at once (write-ahead log, a busy timeout of five seconds); the layout
is raised inside one immediate transaction, so that two processes that start together raise it once.

Light ring: standard library only.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from backend.cache.database import Kind, OpenDatabase, writing
from backend.errors import FileError, HistoryError, UsageError
from backend.sizes import enlarged

RATINGS = range(6)  # 0 is "not for me", 5 the best; None: not rated
LEVELS = 100  # of a tree
RECORD_BYTES = 1 << 20  # of one picture's record

_LAYOUT = """
CREATE TABLE pictures (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,            -- of the record
    path TEXT,                          -- absolute, bytes where it is no Unicode; NULL: written to stdout
    pixels TEXT NOT NULL,               -- SHA-256 of the pixels
    created TEXT NOT NULL,              -- ISO 8601, UTC
    prompt TEXT NOT NULL,               -- what was drawn
    original TEXT,                      -- what was typed, where a reasoner rewrote it
    negative TEXT NOT NULL,
    model TEXT NOT NULL,                -- "": a picture of another program that does not say
    width INTEGER NOT NULL, height INTEGER NOT NULL,
    seed INTEGER, steps INTEGER, guidance REAL,  -- NULL: likewise
    parent TEXT,                        -- id of the picture it came from
    relation TEXT,                      -- how: rerun, variation, grid, init, hires, import
    rating INTEGER,
    seconds REAL NOT NULL,              -- of its own phases
    record TEXT NOT NULL,               -- the whole record, JSON
    gone INTEGER NOT NULL DEFAULT 0     -- 1: the file was not where it should be
);
CREATE INDEX pictures_parent ON pictures (parent);
CREATE INDEX pictures_pixels ON pictures (pixels);
CREATE INDEX pictures_path ON pictures (path);
CREATE INDEX pictures_model ON pictures (model);
CREATE INDEX pictures_rating ON pictures (rating, model) WHERE rating IS NOT NULL;
CREATE VIRTUAL TABLE words USING fts5 (
    prompt, original, negative, model,
    content='pictures', content_rowid='number', tokenize='unicode61 remove_diacritics 2', prefix='1 2 3'
);
CREATE TRIGGER pictures_in AFTER INSERT ON pictures BEGIN
    INSERT INTO words (rowid, prompt, original, negative, model)
    VALUES (new.number, new.prompt, new.original, new.negative, new.model);
END;
CREATE TRIGGER pictures_out AFTER DELETE ON pictures BEGIN
    INSERT INTO words (words, rowid, prompt, original, negative, model)
    VALUES ('delete', old.number, old.prompt, old.original, old.negative, old.model);
END;
"""
_KIND = Kind(
    name="history",
    layouts=(_LAYOUT,),
    error=HistoryError,
    newer="update lens, or name another with LENS_HOME",
    damaged="move it away, and `lens history import FOLDER` makes a new one from the pictures themselves",
)
_COLUMNS = (
    "id path pixels created prompt original negative model width height seed steps guidance parent relation rating "
    "seconds record gone"
).split()


_INSERT = (
    f"INSERT INTO pictures ({', '.join(_COLUMNS)}) VALUES ({', '.join(f':{name}' for name in _COLUMNS)}) "
    "ON CONFLICT (id) DO NOTHING"
)
PixelsOf = Callable[[Path], str | None]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One picture of the history."""

    id: str
    path: Path | None  # None: written to stdout
    pixels: str
    created: str
    prompt: str
    original: str | None
    negative: str
    model: str
    width: int
    height: int
    seed: int | None  # None, of these three: a picture of another program that does not say
    steps: int | None
    guidance: float | None
    parent: str | None
    relation: str | None
    rating: int | None
    seconds: float
    record: Mapping[str, Any]
    gone: bool

    def data(self) -> dict[str, Any]:
        """JSON of the entry, without the whole record."""
        row = {name: getattr(self, name) for name in _COLUMNS if name != "record"}
        return {**row, "path": None if self.path is None else str(self.path)}


@dataclass(frozen=True)
class Node:
    """A picture with what was made from it."""

    entry: Entry
    children: tuple[Node, ...]
    more: int = 0  # children that are left out, deeper than a tree goes


@dataclass(frozen=True, kw_only=True)
class Reconciled:
    """What a look at the disk found."""

    seen: int
    moved: int
    gone: int


class History(OpenDatabase):
    """An open history. One object belongs to one thread; a second process may have the file open as well."""

    def __init__(self, path: Path) -> None:
        """Open or make the file. Raises HistoryError: no database, cut short, or of a newer lens."""
        super().__init__(path, _KIND)

    # ---------------------------------------------------------------------------------------------------------- writing

    def add(self, record: Mapping[str, Any], path: Path | None, *, relation: str | None = None) -> None:
        """Enter a saved picture by its record (`backend.picture.metadata`); one that is there already stays as it is.

        `relation`: to the record's parent. Raises HistoryError; FileError for a record that is none.
        """
        self.add_all([(record, path)], relation=relation)

    def add_all(self, pictures: Iterable[tuple[Mapping[str, Any], Path | None]], *, relation: str | None = None) -> int:
        """Enter many in one transaction; returns how many were new. Raises as `add`."""
        rows = [_row(record, path, relation) for record, path in pictures]
        with self._ours(), writing(self._db):
            return self._db.executemany(_INSERT, rows).rowcount

    def rate(self, name: str, rating: int | None) -> Entry:
        """Rate a picture 0..5, or take its rating back (None). Raises UsageError and HistoryError."""
        if rating is not None and rating not in RATINGS:
            raise UsageError(f"{rating} is no rating", hint="0 to 5, or none")
        entry = self.find(name)
        with self._ours():
            self._db.execute("UPDATE pictures SET rating = ? WHERE id = ?", (rating, entry.id))
        return self.find(entry.id)

    def forget(self, name: str) -> Entry:
        """Take a picture out of the history; its file stays. Raises UsageError and HistoryError."""
        entry = self.find(name)
        with self._ours():
            self._db.execute("DELETE FROM pictures WHERE id = ?", (entry.id,))
        return entry

    # ---------------------------------------------------------------------------------------------------------- reading

    def __len__(self) -> int:
        with self._ours():
            return self._count()

    def _count(self) -> int:
        return int(self._db.execute("SELECT count(*) FROM pictures").fetchone()[0])

    def find(self, name: str) -> Entry:
        """The picture of an id, or of the first letters of one. Raises UsageError where none or several fit."""
        found = self.begins_with(name, limit=2)
        if not name or not found:
            raise UsageError(f"no picture {name!r} in the history", hint="lens history shows their ids")
        if len(found) > 1 and found[0].id != name:
            raise UsageError(f"several pictures begin with {name!r}", hint="write more of the id")
        return found[0]

    def begins_with(self, letters: str, *, limit: int = 20) -> list[Entry]:
        """The pictures whose ids begin with these letters, in the ids' order."""
        with self._ours():  # a range, which the index of the ids answers: LIKE would read every row
            rows = self._db.execute(
                "SELECT * FROM pictures WHERE id >= ? AND id < ? ORDER BY id LIMIT ?",
                (letters, letters + chr(0x10FFFF), limit),
            ).fetchall()
        return [_entry(row) for row in rows]

    def search(
        self,
        words: str = "",
        *,
        model: str | None = None,
        rating: int | None = None,
        limit: int = 50,
        before: str | None = None,
    ) -> list[Entry]:
        """The pictures whose prompts hold all `words`, or their beginnings, the last entered first; "" is all.

        `rating`: at least so much. `before`: entered before the picture of this id, for the next page. What a person
        types is text: no operator of the search language has a meaning. Raises UsageError for an unknown `before`.
        """
        wanted, values, source = ["1"], list[Any](), "pictures"
        terms = _terms(words)
        if words.strip() and not terms:
            return []  # only signs, which no prompt is searched by
        if terms:  # in the index's own order, so that the first page of 100,000 hits does not wait for the last
            source = "words JOIN pictures ON pictures.number = words.rowid"
            wanted.append("words MATCH ?")
            values.append(" ".join(f'"{term}"*' for term in terms))
        number = "words.rowid" if terms else "number"
        if before is not None:
            wanted.append(f"{number} < (SELECT number FROM pictures WHERE id = ?)")
            values.append(self.find(before).id)
        asked = (("rating >= ?", rating), ("model = ?", model))
        own = [(condition, value) for condition, value in asked if value is not None]
        if own:  # + keeps the index of the models out where that of the ratings, which are few, serves
            values += [value for _, value in own]
            which = " AND +".join(condition for condition, _ in own)
            # By the index alone: reading the rows of 40,000 hits to find that none is rated so took 106 ms, now 8.
            wanted.append(f"{'+' if terms else ''}{number} IN (SELECT number FROM pictures WHERE {which})")
        with self._ours():
            rows = self._db.execute(
                f"SELECT pictures.* FROM {source} WHERE {' AND '.join(wanted)} ORDER BY {number} DESC LIMIT ?",
                (*values, limit),
            ).fetchall()
        return [_entry(row) for row in rows]

    def tree(self, name: str) -> Node:
        """The family of a picture: from its oldest ancestor that is known, down. Raises UsageError.

        A family that is deeper than `LEVELS` begins half as many above the picture, and says where it is cut.
        """
        entry, known = self.find(name), set[str]()
        while entry.parent is not None and entry.id not in known and len(known) < LEVELS // 2:
            known.add(entry.id)
            try:
                entry = self.find(entry.parent)
            except UsageError:
                break  # it was made elsewhere, or forgotten
        return self._node(entry, set(), LEVELS)

    def _node(self, entry: Entry, known: set[str], levels: int) -> Node:
        known.add(entry.id)
        with self._ours():
            rows = self._db.execute("SELECT * FROM pictures WHERE parent = ? ORDER BY number", (entry.id,)).fetchall()
        below = [_entry(row) for row in rows]
        if levels == 0:
            return Node(entry, (), more=len(below))
        return Node(entry, tuple(self._node(child, known, levels - 1) for child in below if child.id not in known))

    def has_pixels(self, pixels: str) -> bool:
        """Whether a picture of these very pixels is known, by their SHA-256."""
        with self._ours():
            return self._db.execute("SELECT 1 FROM pictures WHERE pixels = ?", (pixels,)).fetchone() is not None

    # -------------------------------------------------------------------------------------------------------- the disk

    def reconcile(self, folders: Sequence[Path], pixels_of: PixelsOf) -> Reconciled:
        """Look for every picture where it should be; follow those that are found elsewhere below `folders`.

        `pixels_of(path)`: the recorded SHA-256 of a file's pixels, None where it holds no record of ours. A file is
        opened only while pictures are missing. Marks what is nowhere as gone, and what came back as there.
        """
        missing, seen = dict[str, list[int]](), 0
        changes = list[tuple[str | bytes, int, int]]()
        with self._ours():
            rows = self._db.execute("SELECT number, path, pixels, gone FROM pictures WHERE path IS NOT NULL").fetchall()
        for row in rows:
            if _place(row["path"]).is_file():
                seen += 1
                if row["gone"]:
                    changes.append((row["path"], 0, row["number"]))
            else:
                missing.setdefault(row["pixels"], []).append(row["number"])
        known, moved = {row["path"] for row in rows}, 0
        for path in pictures_below(folders) if missing else ():
            if _stored(path) in known:
                continue
            pixels = pixels_of(path)
            if pixels in missing:
                number = missing[pixels].pop()
                changes.append((_stored(path), 0, number))
                moved += 1
                if not missing[pixels]:
                    del missing[pixels]
                if not missing:
                    break
        lost = [number for numbers in missing.values() for number in numbers]
        with self._ours(), writing(self._db):
            self._db.executemany("UPDATE pictures SET path = ?, gone = ? WHERE number = ?", changes)
            self._db.executemany("UPDATE pictures SET gone = 1 WHERE number = ?", [(number,) for number in lost])
        return Reconciled(seen=seen, moved=moved, gone=len(lost))


# ---------------------------------------------------------------------------------------------------------------- rows


def _row(record: Mapping[str, Any], path: Path | None, relation: str | None) -> dict[str, Any]:
    """A record as a row. Raises FileError where it lacks what a picture has."""
    text = json.dumps(record, ensure_ascii=False)
    if len(text) > RECORD_BYTES:
        raise FileError(f"a record of {len(text):,} characters is too long for the history")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise FileError("a record that is no Unicode text cannot enter the history")
    model, timings = record.get("model"), record.get("timings")
    parent = record.get("parent_id")
    try:
        return {
            "id": _typed(record, "id", str),
            "path": None if path is None else _stored(path.absolute()),
            "pixels": _typed(record, "pixel_sha256", str),
            "created": _typed(record, "created", str),
            "prompt": _typed(record, "prompt", str),
            "original": record.get("original_prompt") if isinstance(record.get("original_prompt"), str) else None,
            "negative": _typed(record, "negative_prompt", str),
            "model": _typed(cast("Mapping[str, Any]", model), "name", str),
            **dict(zip(("width", "height"), _size(record), strict=True)),
            **{name: _known(record, name, int) for name in ("seed", "steps")},
            "guidance": _known(record, "guidance", (int, float)),
            "parent": parent if isinstance(parent, str) else None,
            "relation": relation or _relation(record),
            "rating": None,
            "seconds": sum(float(seconds) for seconds in dict(timings or {}).values()),
            "record": text,
            "gone": 0,
        }
    except (TypeError, ValueError, AttributeError) as error:
        raise FileError(f"the record of {path or 'a picture'} cannot enter the history: {error}") from error


def _stored(path: Path) -> str | bytes:
    """A path as its column has it: text, or the bytes of a name that is none."""
    data = os.fsencode(path)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


def _place(stored: str | bytes) -> Path:
    return Path(os.fsdecode(stored))


def _size(record: Mapping[str, Any]) -> tuple[int, int]:
    """As the picture is, which a second pass made larger than the record's first."""
    width, height, factor = (_typed(record, "width", int), _typed(record, "height", int), record.get("hires"))
    return (width, height) if not isinstance(factor, float) else enlarged(width, height, factor)


def _relation(record: Mapping[str, Any]) -> str | None:
    if "imported" in record:
        return "import"
    return "rerun" if isinstance(record.get("parent_id"), str) else None


def _typed(source: Mapping[str, Any], key: str, kind: type | tuple[type, ...]) -> Any:
    value = source.get(key)
    if not isinstance(value, kind) or isinstance(value, bool) or (isinstance(value, int) and abs(value) >= 2**63):
        raise ValueError(f"{key} = {str(value)[:40]!r}")
    return value


def _known(source: Mapping[str, Any], key: str, kind: type | tuple[type, ...]) -> Any:
    return None if source.get(key) is None else _typed(source, key, kind)


def _entry(row: sqlite3.Row) -> Entry:
    values: dict[str, Any] = {name: row[name] for name in _COLUMNS}
    path = values["path"]
    return Entry(
        **{
            **values,
            "path": None if path is None else _place(path),
            "record": json.loads(values["record"]),
            "gone": bool(values["gone"]),
        }
    )


def _terms(words: str) -> list[str]:
    """The letters and digits of what was typed: everything else separates, as in the index."""
    return "".join(c if c.isalnum() else " " for c in words).split()


def pictures_below(folders: Sequence[Path]) -> Iterator[Path]:
    """Every PNG, JPEG and WebP in these folders and those inside them, as absolute paths, in order."""
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp") and path.is_file():
                yield path.absolute()
