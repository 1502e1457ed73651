"""What exactly made a picture: a model's name, revision and the SHA-256 of its weights, without hashing twice.

A hash is kept in the cache folder under the file's path, size and modification time; hashing 8 GB takes seconds, and
a second picture with the same file must not pay again.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from pathlib import Path

from backend.errors import FileError
from backend.files import write_atomic
from backend.paths import cache_dir
from backend.types import ModelIdentity
from backend.weights import ModelFiles


def identify_model(files: ModelFiles) -> ModelIdentity:
    """Name, revision and one SHA-256 a component: of its file, or of its files' hashes in order."""
    by_component: dict[str, list[str]] = {}
    for component, path, _ in files.files():
        by_component.setdefault(component, []).append(file_sha256(path))
    return ModelIdentity(
        name=files.name,
        revision=files.revision,
        sha256={
            component: hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()
            for component, hashes in by_component.items()
        },
    )


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, from the cache where path, size and modification time are as they were."""
    stat = path.stat()
    key = f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}"
    store = cache_dir() / "sha256" / f"{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:24]}.json"
    with suppress(OSError, ValueError):  # a missing or damaged note is made again
        note = json.loads(store.read_text(encoding="utf-8"))
        if isinstance(note, dict) and note.get("key") == key:
            return str(note["sha256"])
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    with suppress(OSError, FileError):  # a cache that cannot be written only costs time
        store.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(store, json.dumps({"key": key, "sha256": digest}).encode())
    return digest
