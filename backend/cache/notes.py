"""Small facts about large files, kept in the cache folder so that the next process need not open the file again.

A note belongs to a path, a size and a modification time; it is made again where one of them has changed.

Light ring: standard library only.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from backend.disk import write_atomic
from backend.errors import FileError
from backend.foreign.documents import Unreadable, parse_json, read_bytes
from backend.paths import notes_dir, resolved


def note_of(kind: str, path: Path, stat: os.stat_result, make: Callable[[], Any]) -> Any:
    """The note of `kind` about `path`: from the disk where it still holds, else from `make`, whose answer is kept.

    `kind` names the folder of the notes; whoever changes what a kind holds gives it another name. `make` returns what
    JSON can hold, and what it raises passes. A cache folder that cannot be written only costs time.
    """
    key = f"{resolved(path)} {stat.st_size} {stat.st_mtime_ns}"
    store = notes_dir(kind) / f"{hashlib.sha256(os.fsencode(resolved(path))).hexdigest()[:24]}.json"
    with suppress(OSError, Unreadable):  # a missing or damaged note is made again
        note: Any = parse_json(read_bytes(store))
        if isinstance(note, dict):
            held = cast("dict[str, Any]", note)
            if held.get("key") == key and kind in held and held.get("digest") == _digest(key, held[kind]):
                return held[kind]
    value = make()
    with suppress(OSError, FileError):
        store.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(store, json.dumps({"key": key, kind: value, "digest": _digest(key, value)}).encode())
    return value


def paths_with_notes(kind: str) -> Iterator[Path]:
    """The files that notes of `kind` are about, newest note first; some may be gone or changed since."""
    folder = notes_dir(kind)
    for store in sorted(folder.glob("*.json"), key=_modified, reverse=True) if folder.is_dir() else ():
        with suppress(OSError, Unreadable):
            note: Any = parse_json(read_bytes(store))
            key = cast("dict[str, Any]", note).get("key") if isinstance(note, dict) else None
            if isinstance(key, str) and key.count(" ") >= 2:
                yield Path(key.rsplit(" ", 2)[0])


def _digest(key: str, value: Any) -> str:
    """What says that a note is as it was written: one flipped bit of a hash would stand in every later picture."""
    return hashlib.sha256(json.dumps([key, value], sort_keys=True).encode()).hexdigest()


def _modified(path: Path) -> int:
    with suppress(OSError):  # another process may have removed it
        return path.stat().st_mtime_ns
    return 0
