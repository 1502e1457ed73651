"""What a pull would do, known before the first byte: which source, which files, how large, with which hashes.

The hub's own list gives sizes and hashes; what the registry pins must agree with it. Nothing is written here.

Light ring: huggingface_hub is imported inside the functions.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from backend import presets
from backend.chat.address import check_address
from backend.disk import check_commit, check_sha256, check_size, free_bytes, path_below
from backend.errors import ModelMissingError, NetworkError, UsageError
from backend.hub.bounds import SILENCE, asked
from backend.paths import hub_cache, hub_repo
from backend.presets import HubSource, Layout, Preset

Say = Callable[[str], None]

_REPO = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?$")


@dataclass(frozen=True, kw_only=True)
class PlannedFile:
    """One file of a repository that will be on this disk afterwards."""

    path: str  # inside the repository
    size: int  # bytes
    sha256: str | None  # of the content, where the hub states it (all large files)
    have: int  # bytes already on this disk, finished or not


@dataclass(frozen=True, kw_only=True)
class PullPlan:
    """Everything a pull will do, known before the first byte."""

    preset: Preset
    repo: str
    revision: str  # commit
    pinned: bool  # True: the registry names this commit
    layout: Layout
    note: str  # provenance
    files: tuple[PlannedFile, ...]
    free: int  # bytes free where the files go

    @property
    def total(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def remaining(self) -> int:
        """Bytes still to fetch."""
        return sum(file.size - file.have for file in self.files)

    @property
    def folder(self) -> Path:
        """The snapshot folder in the hub cache."""
        return snapshot_folder(self.repo, self.revision)

    @property
    def provenance(self) -> str:
        """One line: where it comes from and how far that is known."""
        commit = f"{self.repo}@{self.revision[:12]}{' (pinned)' if self.pinned else ''}"
        return f"{commit}: {self.note}" if self.note else commit


# The plan ------------------------------------------------------------------------------------------------------------


def plan_pull(
    name: str, *, origin: str | None = None, packed: bool = False, offline: bool = False, say: Say
) -> PullPlan:
    """Ask the hub what a pull of registry model `name` would fetch: the first of its sources that answers.

    `origin`: another repository, `owner/name` or `owner/name@revision`. `packed`: the quantised files that the registry
    knows instead. Raises UsageError, ModelMissingError (offline,
    or no source has it) or NetworkError (the hub cannot be reached); nothing is written.
    """
    preset = presets.get(name)
    if preset.embedded is not None and origin is None:
        raise UsageError(f"{preset.name} is part of the package; there is nothing to pull")
    if offline or is_offline():
        raise ModelMissingError(
            f"{preset.name} cannot be fetched offline", hint="drop --offline, and HF_HUB_OFFLINE if it is set"
        )
    reasons: list[str] = []
    for source in _packed(preset) if packed else _sources(preset, origin):
        try:
            return _plan(preset, source)
        except ModelMissingError as error:  # this source does not have it; the next one may
            reasons.append(f"{source.repo}: {error}")
            say(f"{source.repo}: {error}; trying the next source")
    raise ModelMissingError(
        f"no source has {preset.name}: {'; '.join(reasons)}",
        hint="name a repository or a folder with --from; HF_TOKEN opens gated ones",
    )


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) forbids the network, by huggingface_hub's own reading."""
    stated = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return stated.upper() in ("1", "ON", "YES", "TRUE")


def _packed(preset: Preset) -> Iterable[HubSource]:
    if preset.packed:
        return preset.packed
    known = ", ".join(row.name for row in presets.PRESETS.values() if row.packed)
    raise UsageError(
        f"no quantised file of {preset.name} is published", hint=f"those of {known} are; or lens models quantize"
    )


def _sources(preset: Preset, origin: str | None) -> Iterable[HubSource]:
    if origin is None:
        return preset.sources
    if _REPO.match(origin) is None:
        raise UsageError(f"{origin!r} is neither a folder nor a repository", hint="--from PATH, or --from OWNER/NAME")
    repo, _, revision = origin.partition("@")
    known = next((source for source in preset.sources if source.repo == repo), None)
    if known is not None:
        return (replace(known, revision=revision or known.revision),)
    # The layout of an unknown repository shows in its file list: `_select` decides.
    note = "named with --from; the registry knows nothing about it"
    return (HubSource(repo=repo, layout=Layout.diffusers, revision=revision or None, note=note),)


def _plan(preset: Preset, source: HubSource) -> PullPlan:
    """Raises ModelMissingError where this source does not have the model, NetworkError where nobody answers."""
    revision, listed = _listing(source)
    layout, chosen = _select(preset, source, listed)
    pinned = {file.path: file.sha256 for file in source.files if file.sha256 is not None}
    files: list[PlannedFile] = []
    for path in chosen:
        size, sha256 = _checked(source.repo, revision, path, *listed[path])
        expected = pinned.get(path.removeprefix("split_files/"))
        if expected is not None and sha256 is not None and sha256 != expected:
            raise ModelMissingError(f"{path} has the SHA-256 {sha256[:12]}…, published was {expected[:12]}…")
        sha256 = sha256 or expected
        have = _have(source.repo, revision, path, sha256, size)
        files.append(PlannedFile(path=path, size=size, sha256=sha256, have=have))
    return PullPlan(
        preset=preset,
        repo=source.repo,
        revision=revision,
        pinned=source.revision == revision,
        layout=layout,
        note=source.note,
        files=tuple(files),
        free=free_bytes(hub_cache()),
    )


def _listing(source: HubSource) -> tuple[str, dict[str, tuple[int, str | None]]]:
    """The commit that the hub has, and path -> size and SHA-256 of its files. Raises as `_plan`, and UsageError."""
    from httpx2 import HTTPError
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        api = HfApi(token=None if hub_is_safe() else False)
        info = asked(
            lambda: api.model_info(source.repo, revision=source.revision, files_metadata=True, timeout=SILENCE)
        )
    except RepositoryNotFoundError as error:  # also gated and private ones
        raise ModelMissingError("not there, or closed to you") from error
    except RevisionNotFoundError as error:
        raise ModelMissingError(f"revision {source.revision} is gone") from error
    except HFValidationError as error:
        raise UsageError(f"{source.repo!r} is no repository name") from error
    except HfHubHTTPError as error:
        raise NetworkError(f"the hub answered: {short(error)}", hint="try again later") from error
    except (HTTPError, OfflineModeIsEnabled, OSError) as error:
        raise NetworkError(
            f"the hub cannot be reached ({short(error)})", hint="check the connection, or HF_ENDPOINT if it is set"
        ) from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:  # its answer is no listing
        raise NetworkError(
            f"the hub's answer about {source.repo} cannot be used ({type(error).__name__})",
            hint="check HF_ENDPOINT if it is set",
        ) from error
    if info.sha is None:
        raise ModelMissingError("the hub states no commit")
    revision = check_commit(info.sha, f"the hub's listing of {source.repo}")
    return revision, {
        sibling.rfilename: (sibling.size or 0, sibling.lfs.sha256 if sibling.lfs is not None else None)
        for sibling in info.siblings or ()
        if isinstance(sibling.rfilename, str)  # pyright: ignore[reportUnnecessaryIsInstance]  what a hub really sends
    }


def hub_is_safe() -> bool:
    """Whether the hub may be given the token: not without encryption. Raises UsageError as `check_address` does."""
    from huggingface_hub import constants

    return check_address(constants.ENDPOINT, what="the hub's address (HF_ENDPOINT)")


def _checked(repo: str, revision: str, path: str, size: object, sha256: object) -> tuple[int, str | None]:
    """What a hub says of a file, if it can be so. Raises UntrustedError."""
    said = f"the hub's listing of {repo}"
    path_below(snapshot_folder(repo, revision), path, source=said, links_within=hub_repo(repo))
    return check_size(size, said), None if sha256 is None else check_sha256(sha256, said)


def _select(preset: Preset, source: HubSource, listed: Iterable[str]) -> tuple[Layout, list[str]]:
    """Which of the listed files belong to the model."""
    names = sorted(listed)
    if source.patterns:
        chosen = [name for name in names if matches(name, source.patterns)]
        if "model_index.json" not in chosen:
            raise ModelMissingError("no model_index.json in it")
        return source.layout, chosen
    if source.files:
        for prefix in ("", "split_files/"):  # Comfy-Org moved its files once; both places are accepted
            chosen = [prefix + file.path for file in source.files]
            if all(name in names for name in chosen):
                return source.layout, chosen
        raise ModelMissingError(f"no {source.files[0].path} in it")
    if "model_index.json" in names:  # an unknown repository in the published layout
        patterns = presets.DIFFUSERS_FILES
        return Layout.diffusers, [name for name in names if matches(name, patterns)]
    return Layout.single_files, [_single(preset, names, part) for part in ("diffusion_models", "text_encoders", "vae")]


def matches(path: str, patterns: Iterable[str]) -> bool:
    """Whether a path in a repository is wanted; `*` stays inside one folder."""
    parts = path.split("/")
    return any(
        len(parts) == len(wanted) and all(fnmatch.fnmatchcase(p, w) for p, w in zip(parts, wanted, strict=True))
        for wanted in (pattern.split("/") for pattern in patterns)
    )


def _single(preset: Preset, names: list[str], part: str) -> str:
    """The one file of an unknown repository in ComfyUI's folders that suits the model."""
    found = [n for n in names if Path(n).parent.name == part and n.endswith((".safetensors", ".gguf"))]
    if part == "diffusion_models" and len(found) > 1:
        others = [row for row in presets.PRESETS.values() if row.name != preset.name]
        found = [n for n in found if preset.is_marked(Path(n).name) or not preset.mark]
        found = [n for n in found if not any(row.is_marked(Path(n).name) for row in others)]
        found = [n for n in found if "bf16" in n] or found
    if len(found) != 1:
        what = f"several files in {part}/ ({', '.join(found)})" if found else f"no file in {part}/ that suits"
        raise ModelMissingError(what)
    return found[0]


# The hub cache --------------------------------------------------------------------------------------------------------


def snapshot_folder(repo: str, revision: str) -> Path:
    """Where huggingface_hub keeps one commit of a repository."""
    return hub_repo(repo) / "snapshots" / revision


def partial_of(blob: Path) -> Path:
    """The unfinished form of a blob."""
    return blob.with_name(blob.name + ".incomplete")


def _have(repo: str, revision: str, path: str, sha256: str | None, size: int) -> int:
    """Bytes of a file that are on this disk: all, or the length of an unfinished blob (named by its SHA-256)."""
    there = snapshot_folder(repo, revision) / path
    if there.exists():
        return size
    if sha256 is None:
        return 0
    blob = hub_repo(repo) / "blobs" / sha256
    if blob.exists():
        return size
    partial = partial_of(blob)
    return min(partial.stat().st_size, size) if partial.exists() else 0


def short(error: BaseException) -> str:
    """The first line of an error of another library."""
    text = str(error).strip().splitlines()
    return text[0][:200] if text else type(error).__name__
