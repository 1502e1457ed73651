"""What exactly made a picture: a model's name, revision and the SHA-256 of its weights, without hashing twice.

A hash is kept in the cache folder under the file's path, size and modification time; hashing 8 GB takes seconds, and
a second picture with the same file must not pay again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from backend.cache.notes import note_of
from backend.checkpoints.resolve import ModelFiles
from backend.disk import file_sha256
from backend.types import ModelIdentity


def identify_model(files: ModelFiles) -> ModelIdentity:
    """Name, revision and one SHA-256 a component: of its file, or of its files' hashes in order."""
    by_component: dict[str, list[Path]] = {}
    for component, path, _ in files.files():
        by_component.setdefault(component, []).append(path)
    return ModelIdentity(
        name=files.name,
        revision=files.revision,
        sha256={component: files_sha256(paths) for component, paths in by_component.items()},
    )


def files_sha256(paths: Sequence[Path]) -> str:
    """One SHA-256 of a component: of its file, or of its files' hashes in order."""
    hashes = [known_sha256(path) for path in paths]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def known_sha256(path: Path) -> str:
    """SHA-256 of a file, from the cache where path, size and modification time are as they were."""
    return str(note_of("sha256", path, path.stat(), lambda: file_sha256(path)))
