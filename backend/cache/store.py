"""Everything that lens keeps to save time, as one list: named folders of files, each with a size cap.

`lens cache show` and `clear` walk the list; whoever keeps something new adds a row. A `Store` is one folder in use:
it reads and writes whole files by key, atomically, and forgets the least recently used ones beyond its cap.

Light ring: standard library only.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path

from backend import paths
from backend.disk import read_error, write_atomic, write_error
from backend.errors import FileError, UsageError, os_reason
from backend.settings import CacheSettings

MB = 1_000_000
ABANDONED = 60  # seconds after which the temporary file of a process that was killed may go


@dataclass(frozen=True, kw_only=True)
class NamedCache:
    """One row of the list."""

    name: str  # what a person types
    what: str  # one phrase
    folder: Callable[[], Path]
    suffix: str  # of its files; "": every file, however deep
    limit_mb: Callable[[CacheSettings], int | None]  # None: no cap; 0: nothing is kept


CACHES = (
    NamedCache(
        name="embeddings",
        what="encoded prompts",
        folder=paths.embeds_dir,
        suffix=".safetensors",
        limit_mb=lambda settings: settings.embeddings_mb,
    ),
    NamedCache(
        name="schedules",
        what="folded schedules",
        folder=paths.schedules_dir,
        suffix=".safetensors",
        limit_mb=lambda settings: settings.schedules_mb,
    ),
    NamedCache(
        name="prefixes",
        what="shared beginnings of prompts and rewrites",
        folder=paths.prefixes_dir,
        suffix=".safetensors",
        limit_mb=lambda settings: settings.prefixes_mb,
    ),
    NamedCache(
        name="rewrites",
        what="rewritten requests",
        folder=paths.rewrites_dir,
        suffix=".json",
        limit_mb=lambda settings: settings.rewrites_mb,
    ),
    NamedCache(
        name="sha256",
        what="hashes of weights files",
        folder=lambda: paths.notes_dir("sha256"),
        suffix=".json",
        limit_mb=lambda settings: None,
    ),
    NamedCache(
        name="headers",
        what="headers of weights files",
        folder=lambda: paths.notes_dir("header-1"),
        suffix=".json",
        limit_mb=lambda settings: None,
    ),
    NamedCache(
        name="kernels",
        what="which kernel is the fastest",
        folder=paths.kernels_dir,
        suffix=".json",
        limit_mb=lambda settings: 1,
    ),
    NamedCache(
        name="compiled",
        what="kernels compiled for this machine",
        folder=paths.compiled_dir,
        suffix="",
        limit_mb=lambda settings: None,
    ),
)


def named(names: Sequence[str]) -> list[NamedCache]:
    """The caches of these names, each once; all of them where none is given. Raises UsageError for an unknown name."""
    known = [cache.name for cache in CACHES]
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
            raise UsageError(f"no cache is called {name!r}", hint=hint)
    return [cache for cache in CACHES if not names or cache.name in names]


def limit_bytes(cache: NamedCache, settings: CacheSettings) -> int | None:
    """The cap of a cache in bytes; None: it has none. Raises UsageError for a negative one."""
    limit = cache.limit_mb(settings)
    if limit is not None and limit < 0:
        raise UsageError(f"the setting cache.{cache.name}_mb = {limit} is negative", hint="0 keeps nothing")
    return None if limit is None else limit * MB


@dataclass(frozen=True)
class CacheFile:
    """One kept file; `used` is when it was last read or written, in seconds since 1970."""

    path: Path
    size: int  # bytes
    used: float


def open_store(name: str, settings: CacheSettings, warn: Callable[[str], None]) -> Store:
    """The cache called `name` with the cap that the settings give it. Raises UsageError for a negative one."""
    (cache,) = (cache for cache in CACHES if cache.name == name)
    limit = limit_bytes(cache, settings)
    assert limit is not None, f"{name} has no cap"
    return Store(cache.folder(), cache.suffix, limit, warn)


@dataclass(frozen=True, kw_only=True)
class Stores:
    """What a pipeline may find of earlier processes and leaves for later ones; None: computed, not kept."""

    embeddings: Store | None = None  # encoded prompts
    prefixes: Store | None = None  # what all prompts begin with, as llama.cpp computed it
    schedules: Store | None = None  # folded schedules
    kernels: Store | None = None  # which kernel was measured to be the fastest


def open_stores(settings: CacheSettings, warn: Callable[[str], None]) -> Stores:
    """All of them, with the settings' caps. Raises UsageError for a negative one."""
    return Stores(**{field.name: open_store(field.name, settings, warn) for field in fields(Stores)})


def entries(folder: Path, suffix: str) -> list[CacheFile]:
    """The kept files of a folder, least recently used first; a folder that is not there has none. Raises FileError.

    An empty suffix means every file, of the folders within as well.
    """
    found: list[CacheFile] = []
    try:
        with os.scandir(folder) as listing:
            for item in listing:
                with suppress(FileNotFoundError):  # another process has just removed it
                    if not suffix and item.is_dir(follow_symlinks=False):
                        found += entries(Path(item.path), suffix)
                    elif item.name.endswith(suffix) and item.is_file(follow_symlinks=False):
                        stat = item.stat(follow_symlinks=False)
                        found.append(CacheFile(Path(item.path), stat.st_size, stat.st_mtime))
    except FileNotFoundError:
        return []
    except NotADirectoryError as error:
        if not os.path.lexists(folder):  # it would lie below a path that is a file
            return []
        raise read_error(folder, error) from error
    except OSError as error:
        raise read_error(folder, error) from error
    return sorted(found, key=lambda entry: (entry.used, entry.path))


def clear(cache: NamedCache) -> tuple[int, int]:
    """Remove every file of a cache: (files, bytes) that are gone. Raises FileError, also for a folder that is a link:
    what lies behind it may be anything.
    """
    _refuse_link(cache.folder())
    count = freed = 0
    for entry in entries(cache.folder(), cache.suffix):
        if _remove(entry.path):
            count, freed = count + 1, freed + entry.size
    remove_abandoned(cache.folder())
    return count, freed


class Store:
    """One folder of files by key, used by any number of processes at once.

    What is wrong with the folder never stops the work it is to speed up: it is said once through `warn`, and the value
    is computed again.
    """

    def __init__(self, folder: Path, suffix: str, limit: int, warn: Callable[[str], None]) -> None:
        """`limit` in bytes; 0 keeps and reads nothing."""
        self.folder, self.suffix, self.limit, self.warn = folder, suffix, limit, warn

    def path(self, key: str) -> Path:
        return self.folder / f"{key}{self.suffix}"

    def read(self, key: str) -> bytes | None:
        """The file of `key`, now the most recently used one; None where there is none."""
        if not self.limit:
            return None
        path = self.path(key)
        try:
            data = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):  # what is in the folder's place, `write` says
            return None
        except OSError as error:
            self.warn(f"the cache is not used: cannot read {path}: {os_reason(error)}")
            return None
        with suppress(OSError):  # a read-only cache still serves; it only forgets in another order
            os.utime(path)
        return data

    def write(self, key: str, data: bytes) -> None:
        """Keep `data`, then remove the least recently used files beyond the cap. Larger than the cap: not kept."""
        if len(data) > self.limit:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomic(self.path(key), data, private=True)  # a rewrite is a prompt, in words
            self._evict()
        except OSError as error:
            self.warn(f"the cache is not used: {write_error(self.folder, error)}")
        except FileError as error:
            self.warn(f"the cache is not used: {error}")

    def drop(self, key: str, why: str) -> None:
        """Remove a file that does not hold what its name promises, and say so."""
        path = self.path(key)
        self.warn(f"{path.name} in the cache is damaged ({why}); it is removed and made again")
        with suppress(FileError):  # the write that follows says why the folder refuses
            _remove(path)

    def _evict(self) -> None:
        _refuse_link(self.folder)
        found = entries(self.folder, self.suffix)
        excess = sum(entry.size for entry in found) - self.limit
        for entry in found:
            if excess <= 0:
                break
            _remove(entry.path)
            excess -= entry.size
        remove_abandoned(self.folder)


DIGEST = "sha256"  # key of a safetensors file's metadata: of everything behind its header


def digest(data: bytes) -> str:
    """What DIGEST says of the bytes of a safetensors file."""
    return hashlib.sha256(data[_body(data) :]).hexdigest()


def check_digest(data: bytes) -> None:
    """Raises ValueError, KeyError or TypeError where the bytes of a safetensors file are not what its header states."""
    if digest(data) != json.loads(data[8 : _body(data)])["__metadata__"][DIGEST]:
        raise ValueError("its checksum differs")


def _body(data: bytes) -> int:
    return 8 + int.from_bytes(data[:8], "little")


def _refuse_link(folder: Path) -> None:
    """Raises FileError where a cache's folder, or one on the way to it from the cache folder, leads elsewhere."""
    top = paths.cache_dir()
    for place in (folder, *(parent for parent in folder.parents if top in parent.parents)):
        if place.is_symlink():
            raise FileError(f"{place} is a link: nothing behind it is removed", hint="remove it, or what it leads to")


def _remove(path: Path) -> bool:
    """False where another process was faster. Raises FileError."""
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise FileError(f"cannot remove {path}: {os_reason(error)}") from error
    return True


def remove_abandoned(folder: Path) -> None:
    """Temporary files that `backend.disk` left behind when its process was killed."""
    for entry in entries(folder, ".tmp"):
        if entry.path.name.startswith(".lens-") and time.time() - entry.used >= ABANDONED:
            _remove(entry.path)
