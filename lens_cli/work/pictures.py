"""Pictures that a command is given by name: a file, or the id of one in the history."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from backend.disk import meant_instead
from backend.errors import FileError
from backend.paths import history_file
from backend.picture.history import Entry, History, Node

if TYPE_CHECKING:
    from backend.picture.images import ImageMetadata


def open_history() -> History:
    """The history of this person. Raises HistoryError."""
    return History(history_file())


def check_folders(folders: Sequence[Path]) -> list[Path]:
    """The folders themselves. Raises FileError for one that is none."""
    for folder in folders:
        if not folder.is_dir():
            raise FileError(f"{folder} is no folder", hint=meant_instead(folder))
    return list(folders)


def tree_data(node: Node) -> dict[str, Any]:
    """A family for JSON."""
    return {**node.entry.data(), "children": [tree_data(child) for child in node.children], "more": node.more}


@dataclass(frozen=True, kw_only=True)
class NamedPicture:
    """A picture that was named, with what is known of it."""

    where: str  # for messages: its file, or its id
    path: Path | None  # None: it has no file any more, or never had
    found: ImageMetadata
    entry: Entry | None  # None: named by its file


def find_picture(name: Path) -> NamedPicture:
    """The file of that name, or where there is none the picture of the history whose id begins so.

    Raises FileError for a file that cannot be read, UsageError for an id that fits none or several.
    """
    from backend.picture.images import read_metadata

    text = os.fspath(name)
    if os.path.lexists(name) or not re.fullmatch(r"[0-9A-Za-z]+", text):
        return NamedPicture(where=text, path=name, found=read_metadata(name), entry=None)
    with open_history() as history:
        entry = history.find(text)
    path = entry.path if entry.path is not None and entry.path.is_file() else None
    return NamedPicture(where=str(path or entry.id), path=path, found=_metadata(entry, path), entry=entry)


def _metadata(entry: Entry, path: Path | None) -> ImageMetadata:
    """What the history knows, in the form in which a file says it."""
    from backend.picture.images import ImageMetadata
    from backend.picture.outputs import EXTENSIONS

    suffix = entry.path.suffix.lower() if entry.path is not None else ""
    imported = entry.record.get("imported")
    said: dict[str, Any] = {"generator": "lens", "fields": {}}
    if imported is not None:  # `backend.picture.imports` made it
        said |= cast("dict[str, Any]", imported)
    return ImageMetadata(
        format=EXTENSIONS[suffix].upper() if path is not None and suffix in EXTENSIONS else "no file",
        width=entry.width,
        height=entry.height,
        generator=said.get("generator"),
        record=None if imported is not None else entry.record,
        fields=said["fields"],
    )
