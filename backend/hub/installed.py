"""What is on this disk: adopt files that are already here, verify them, remove them.

Light ring: standard library only.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from backend import presets
from backend.checkpoints import records
from backend.checkpoints.headers import read_header
from backend.checkpoints.layouts import reasoner_adapter
from backend.checkpoints.records import FileRecord, Record
from backend.checkpoints.resolve import ModelFiles, cached_snapshots, of_preset, resolve_model
from backend.disk import file_sha256, write_error
from backend.errors import LensError, ModelMissingError, UsageError, os_reason
from backend.hub.pull_plan import Say, matches
from backend.paths import expanded, hub_cache, hub_repo, nano_dir
from backend.presets import Component, Preset

SUMS = "SHA256SUMS"  # beside Lens-Nano's files, in the form of sha256sum
_SHA256 = re.compile(r"^[0-9a-f]{64}$")


# Adopt ---------------------------------------------------------------------------------------------------------------


def adopt(name: str, path: Path, *, say: Say) -> tuple[Record, ModelFiles]:
    """Let a registry name stand for files that are already on this disk; nothing is copied.

    The headers and shapes are checked, every file is hashed, and a hash that the registry knows is named. Raises
    CheckpointError or UsageError where the path holds no such model.
    """
    preset = presets.get(name)
    if preset.embedded is not None:
        raise UsageError(f"{preset.name} is part of the package; a folder can be given with -m as it is")
    found = resolve_model(str(path), variant=preset.name)
    if found.preset.params.dit != preset.params.dit:
        raise UsageError(f"{path}: a Lens of another size than {preset.name}", hint="give it with -m as it is")
    known = {
        file.sha256: source.repo for row in presets.PRESETS.values() for source in row.sources for file in source.files
    }
    files: dict[str, FileRecord] = {}
    for part, file, size in found.files():
        sha256 = file_sha256(file)
        origin = f"published by {known[sha256]}" if sha256 in known else "no published hash to compare with"
        say(f"{Component(part).value.replace('_', ' ')}: {file.name}, SHA-256 {sha256[:12]}…, {origin}")
        files[str(file)] = FileRecord(size=size, sha256=sha256)
    record = Record(
        name=preset.name,
        folder=expanded(path).absolute(),
        layout=found.layout,
        when=time.strftime("%Y-%m-%d"),
        files=files,
    )
    records.save(record)
    return record, found


# Verify --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Check:
    """The result for one file. `against`: what its hash was compared with."""

    path: Path
    size: int  # bytes on this disk; 0 where it is absent
    sha256: str | None  # as computed; None with `quick`, or where it is absent
    against: str  # "pull record" | "hub" | "package" | "nothing known"
    problem: str | None  # None: good


def verify(name_or_path: str, *, quick: bool = False) -> Iterator[Check]:
    """Check every file of a model: presence, size, header, and SHA-256 unless `quick`; yields as it goes.

    Raises ModelMissingError where the model is not on this disk, and what `resolve_model` raises for a path.
    """
    for path, size, sha256, against in _expectations(name_or_path):
        yield _check(path, size, sha256, against, quick)


def _expectations(name_or_path: str) -> list[tuple[Path, int | None, str | None, str]]:
    """(path, bytes, SHA-256, who says so) of every file."""
    name = name_or_path.strip().lower()
    preset = presets.PRESETS.get(name)
    record = records.load(name) if preset is not None else None
    if record is not None:
        return [(record.folder / p, f.size, f.sha256, "pull record") for p, f in sorted(record.files.items())]
    sums = _package_sums() if preset is not None and preset.embedded is not None else {}
    found = of_preset(preset) if preset is not None else resolve_model(name_or_path)
    rows: list[tuple[Path, int | None, str | None, str]] = []
    adapter = reasoner_adapter(found.text_encoder)
    for path in [*(path for _, path, _ in found.files()), *([] if adapter is None else [adapter])]:
        blob = path.resolve().name  # the hub cache names a large file's blob by its SHA-256
        if path.name in sums:
            rows.append((path, None, sums[path.name], "package"))
        elif _SHA256.match(blob):
            rows.append((path, None, blob, "hub"))
        else:
            rows.append((path, None, None, "nothing known"))
    return rows


def _package_sums() -> dict[str, str]:
    path = nano_dir() / SUMS
    if not path.is_file():
        return {}
    pairs = (line.split(maxsplit=1) for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    return {name.strip().lstrip("*"): sha256 for sha256, name in pairs}


def _check(path: Path, size: int | None, sha256: str | None, against: str, quick: bool) -> Check:
    if not path.is_file():
        return Check(path=path, size=0, sha256=None, against=against, problem="is not there")
    actual = path.stat().st_size
    problem: str | None = None
    if path.suffix in (".safetensors", ".gguf"):
        try:
            read_header(path)
        except LensError as error:
            problem = str(error).removeprefix(f"{path}: ")
    if problem is None and size is not None and actual != size:
        problem = f"has {actual:,} bytes, expected {size:,}"
    try:
        computed = None if quick else file_sha256(path)
    except OSError as error:  # the other files are still looked at
        return Check(
            path=path, size=actual, sha256=None, against=against, problem=f"cannot be read: {os_reason(error)}"
        )
    if problem is None and computed is not None and sha256 is not None and computed != sha256:
        problem = f"has the SHA-256 {computed[:12]}…, expected {sha256[:12]}…"
    return Check(path=path, size=actual, sha256=computed, against=against, problem=problem)


# Remove --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Removal:
    """What `lens models rm` would do."""

    name: str
    links: tuple[Path, ...]  # files of the snapshot that go
    blobs: tuple[tuple[Path, int], ...]  # stored contents that go, with their bytes
    kept: tuple[tuple[Path, str], ...]  # files that stay, and for which model
    record: bool  # a record is forgotten
    note: str | None = None  # something a person should know

    @property
    def total(self) -> int:
        """Bytes that become free."""
        return sum(size for _, size in self.blobs)


def plan_removal(name: str) -> Removal:
    """What removing a model would delete; nothing is touched. Raises UsageError or ModelMissingError.

    Files given with `--from PATH` belong to the person: only the record goes. Files that another model on this disk
    uses (Lens and Lens-Turbo share encoder and autoencoder in one repository) stay.
    """
    preset = presets.get(name)
    if preset.embedded is not None:
        raise UsageError(f"{preset.name} is part of the package and cannot be removed")
    record = records.load(preset.name)
    outside = record is not None and not record.folder.is_relative_to(hub_cache())
    if record is not None and (record.repo is None or outside):
        note = f"the files in {record.folder} are yours and stay; only the name is taken back"
        return Removal(name=preset.name, links=(), blobs=(), kept=(), record=True, note=note)
    used = _used_by_others(preset)
    links: list[Path] = []
    kept: list[tuple[Path, str]] = []
    blobs: dict[Path, int] = {}
    for link in _stored_files(preset, record):
        if link.resolve() in used:
            kept.append((link, used[link.resolve()]))
            continue
        links.append(link)
        blob = _blob_of(link)
        if os.path.lexists(blob):
            blobs[blob] = 0 if blob.is_symlink() else blob.stat().st_size
    for repo in _repos(preset, record):
        if not any(path.is_relative_to(repo.resolve()) for path in used):
            blobs |= {part: part.stat().st_size for part in sorted((repo / "blobs").glob("*.incomplete"))}
    if not links and not blobs and record is None:
        raise ModelMissingError(f"{preset.name} is not on this disk")
    return Removal(
        name=preset.name, links=tuple(links), blobs=tuple(blobs.items()), kept=tuple(kept), record=record is not None
    )


def remove(removal: Removal) -> None:
    """Do what the plan says. Raises FileError; what was removed until then stays removed."""
    records.forget(removal.name)
    try:
        for path in (*removal.links, *(blob for blob, _ in removal.blobs)):
            path.unlink(missing_ok=True)
        for repo in {_repo_of(path) for path in (*removal.links, *(blob for blob, _ in removal.blobs))}:
            _tidy(repo)
    except OSError as error:
        raise write_error(Path(error.filename or hub_cache()), error) from error


def partial_bytes(preset: Preset) -> int:
    """Bytes of unfinished downloads in the repositories of a model's sources."""
    folders = {hub_repo(source.repo) / "blobs" for source in preset.sources}
    return sum(part.stat().st_size for folder in folders for part in folder.glob("*.incomplete"))


def _stored_files(preset: Preset, record: Record | None) -> Iterator[Path]:
    """The model's files in the hub cache, from the record or, without one, from every source's snapshots."""
    if record is not None:
        yield from (record.folder / path for path in record.files if os.path.lexists(record.folder / path))
        return
    for source in preset.sources:
        wanted = source.patterns or tuple(file.path for file in source.files)
        for _, folder in cached_snapshots(source):
            for path in sorted(folder.rglob("*")):
                inside = path.relative_to(folder).as_posix().removeprefix("split_files/")
                if not path.is_dir() and matches(inside, wanted):
                    yield path


def _used_by_others(preset: Preset) -> dict[Path, str]:
    """Stored contents that another model on this disk needs -> its name."""
    used: dict[Path, str] = {}
    for other in presets.PRESETS.values():
        if other.name == preset.name or other.embedded is not None:
            continue
        try:
            files = of_preset(other).files()
        except LensError:  # absent or damaged: it needs nothing
            continue
        used |= {path.resolve(): other.name for _, path, _ in files}
        record = records.load(other.name)
        if record is not None:
            used |= {(record.folder / path).resolve(): other.name for path in record.files}
    return used


def _repos(preset: Preset, record: Record | None) -> set[Path]:
    repos = {hub_repo(source.repo) for source in preset.sources}
    return repos | ({hub_repo(record.repo)} if record is not None and record.repo is not None else set())


def _blob_of(link: Path) -> Path:
    """What a snapshot's link points at, one step: a blob may itself be a link into a store shared by caches."""
    return Path(os.path.normpath(link.parent / os.readlink(link))) if link.is_symlink() else link


def _repo_of(path: Path) -> Path:
    """The repository folder of a path in a hub cache."""
    cache = hub_cache()
    return next((parent for parent in path.parents if parent.parent == cache), path.parent)


def _tidy(repo: Path) -> None:
    """Remove folders that became empty, and the whole repository when no file of it is left."""
    for folder in sorted((p for p in repo.rglob("*") if p.is_dir() and not p.is_symlink()), reverse=True):
        if not any(folder.iterdir()):
            folder.rmdir()
    if not (repo / "blobs").exists() and not (repo / "snapshots").exists():
        shutil.rmtree(repo)
