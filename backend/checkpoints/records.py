"""What `lens models pull` fetched: one small JSON record per registry name, in the data folder.

A record says which of a model's sources is on this disk, at which commit, with which SHA-256, so that nothing is
looked for or asked again. Light ring: standard library only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from backend.disk import make_folder, path_below, write_atomic
from backend.errors import CheckpointError, UntrustedError
from backend.foreign import documents
from backend.paths import data_dir
from backend.presets import Layout

VERSION = 1


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    """One fetched file: bytes and SHA-256 as they were when it was checked."""

    size: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Record:
    """Where one registry model lies."""

    name: str  # registry name
    folder: Path  # snapshot in the hub cache, or the folder or file given with --from
    layout: Layout
    repo: str | None = None  # hub repository; None: a local path that belongs to the person
    revision: str | None = None  # commit
    when: str = ""  # ISO date of the pull
    files: Mapping[str, FileRecord] = field(default_factory=dict)  # path inside `folder` -> what was checked


def record_file(name: str) -> Path:
    return data_dir() / "models" / f"{name}.json"


def load(name: str) -> Record | None:
    """The record of a model; None where it was never pulled. Raises CheckpointError for a damaged record."""
    path = record_file(name)
    try:
        table = documents.parse_json(documents.read_bytes(path))
        if table["v"] != VERSION:
            raise ValueError(f"version {table['v']}")
        folder, repo = Path(table["folder"]), table["repo"]
        for inside in table["files"] if repo is not None else ():  # a person's own files are named whole
            path_below(folder, inside, source="the record", links_within=folder.parent.parent)
        return Record(
            name=name,
            folder=folder,
            layout=Layout(table["layout"]),
            repo=repo,
            revision=table["revision"],
            when=table["when"],
            files={str(k): FileRecord(size=int(v["size"]), sha256=str(v["sha256"])) for k, v in table["files"].items()},
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, UntrustedError) as error:
        raise CheckpointError(
            f"{path}: a damaged record of a pulled model ({error})", hint=f"delete it and pull {name} again"
        ) from error


def save(record: Record) -> None:
    """Write a record atomically. Raises FileError."""
    table = {
        "v": VERSION,
        "folder": str(record.folder),
        "layout": str(record.layout),
        "repo": record.repo,
        "revision": record.revision,
        "when": record.when,
        "files": {path: {"size": file.size, "sha256": file.sha256} for path, file in sorted(record.files.items())},
    }
    path = record_file(record.name)
    make_folder(path.parent)
    write_atomic(path, json.dumps(table, indent=1).encode())


def forget(name: str) -> None:
    """Remove the record; the files stay."""
    record_file(name).unlink(missing_ok=True)
