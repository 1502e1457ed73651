"""Fetches what a plan lists into the Hugging Face cache, checks it, and writes down what came.

Order of events: check the free disk, fetch file by file, check every SHA-256, write the record. Interrupted at any
point, the same command goes on: finished files are kept, and an unfinished one continues where it stopped.

Light ring: huggingface_hub is imported inside the functions.
"""

from __future__ import annotations

import errno
import io
import os
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

from backend.chat.address import check_address
from backend.checkpoints import records
from backend.checkpoints.records import FileRecord, Record
from backend.checkpoints.resolve import of_record
from backend.disk import check_etag, file_sha256, path_below, write_error
from backend.errors import FileError, ModelMissingError, NetworkError, UntrustedError, human_bytes
from backend.hub.bounds import asked
from backend.hub.pull_plan import PlannedFile, PullPlan, Say, hub_is_safe, partial_of, short
from backend.paths import hub_cache, hub_repo

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer
    from huggingface_hub.file_download import HfFileMetadata

ATTEMPTS = 4  # of one file, before the person is asked to come back; huggingface_hub retries inside each as well
XET_FAILURES = 2  # failures of the Xet protocol for one file before plain HTTP takes over
PAUSE = 2.0  # seconds before the second attempt; doubles
OTHER = "pull again; if it happens twice, take another source with --from"
MARGIN = 256 * 2**20  # bytes of disk that stay free


def check_disk(plan: PullPlan) -> None:
    """Raises FileError where the rest of the download would not fit."""
    if plan.remaining + (MARGIN if plan.remaining else 0) > plan.free:
        raise FileError(
            f"{plan.preset.name} needs {human_bytes(plan.remaining)} more, and {human_bytes(plan.free)} are free in "
            f"{hub_cache()}",
            hint="free some space, or move the cache with HF_HUB_CACHE or HF_HOME",
        )


def pull(plan: PullPlan, *, say: Say, bars: bool = True) -> Record:
    """Fetch what `plan` lists, check it, and record it. `bars`: draw huggingface_hub's progress bars on stderr.

    Raises FileError (disk), NetworkError (after several attempts; the same command resumes) or ModelMissingError
    (a file that does not have the SHA-256 it should have). Afterwards `resolve_model(name)` finds the model.
    """
    from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

    check_disk(plan)
    if not bars and os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS") is None:
        disable_progress_bars()
    try:
        files = {file.path: _fetch_checked(plan, file, say) for file in plan.files}
    except OSError as error:
        raise write_error(plan.folder, error) from error
    finally:
        if not bars and os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS") is None:
            enable_progress_bars()
    record = Record(
        name=plan.preset.name,
        folder=plan.folder,
        layout=plan.layout,
        repo=plan.repo,
        revision=plan.revision,
        when=time.strftime("%Y-%m-%d"),
        files=files,
    )
    of_record(plan.preset, record)  # the pull is only done when the model can be found and its headers are whole
    records.save(record)
    return record


def _fetch_checked(plan: PullPlan, file: PlannedFile, say: Say) -> FileRecord:
    """One file in the snapshot, with the size and the SHA-256 that were announced.

    Contents are checked before they get a name in the cache, so what is deleted is only ever an unfinished file of
    lens itself. Raises ModelMissingError for other contents, those of a file that was here before included.
    """
    there = path_below(plan.folder, file.path, source=plan.repo, links_within=hub_repo(plan.repo))
    here = there.exists()
    if not here:
        _link(_fetch(plan, file, say), there)
    size, sha256 = there.stat().st_size, file_sha256(there)
    if not _as_announced(file, size, sha256):
        stored = there.resolve()
        if not here:
            there.unlink()
        raise ModelMissingError(
            f"{stored} was here before, and is not what {plan.repo} announces: {_difference(file, size, sha256)}",
            hint="lens deletes nothing that it did not fetch just now: delete it yourself and pull again",
        )
    return FileRecord(size=size, sha256=sha256)


def _as_announced(file: PlannedFile, size: int, sha256: str) -> bool:
    return size == file.size and file.sha256 in (None, sha256)


def _difference(file: PlannedFile, size: int, sha256: str) -> str:
    expected = f", {file.sha256[:12]}…" if file.sha256 else ""
    return f"{size:,} bytes, SHA-256 {sha256[:12]}…; expected {file.size:,} bytes{expected}"


def _link(blob: Path, there: Path) -> None:
    """Give a content of the cache its name in the snapshot, as huggingface_hub does: a relative link."""
    there.parent.mkdir(parents=True, exist_ok=True)
    if os.path.lexists(there):  # a link whose content is gone
        there.unlink()
    try:
        there.symlink_to(os.path.relpath(blob, there.parent))
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EACCES):
            raise
        shutil.copyfile(blob, there)  # a file system without links


def _fetch(plan: PullPlan, file: PlannedFile, say: Say) -> Path:
    """The content of one file in the cache; several attempts, each going on where the last one stopped."""
    from httpx2 import HTTPError
    from huggingface_hub import hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError, XetDownloadError
    from huggingface_hub.file_download import get_hf_file_metadata

    url = hf_hub_url(plan.repo, file.path, revision=plan.revision)
    xet_failures = 0
    for attempt in range(1, ATTEMPTS + 1):
        try:
            token = None if hub_is_safe() else False
            metadata = asked(lambda: get_hf_file_metadata(url, token=token))  # noqa: B023  called at once
            blob = _blob(plan, metadata)
            if not blob.exists():
                _transfer(plan, file, metadata, blob, xet=_use_xet(metadata, blob, xet_failures))
            return blob
        except XetDownloadError as error:
            xet_failures += 1
            say(f"{file.path}: Xet failed ({short(error)})")
            if xet_failures == XET_FAILURES:
                say("going on over plain HTTP, which can resume; HF_HUB_DISABLE_XET=1 starts with it")
            reason: Exception = error
        except HfHubHTTPError as error:
            status = error.response.status_code
            if status not in (408, 429) and status < 500:
                raise NetworkError(f"{file.path}: the hub refused it ({short(error)})") from error
            reason = error
        except HTTPError as error:
            reason = error
        except OSError as error:
            if error.errno is not None and not isinstance(error, (ConnectionError, TimeoutError)):
                raise  # the disk, not the network
            reason = error  # also huggingface_hub's plain OSError for a transfer of the wrong length
        except (ValueError, TypeError, RecursionError) as error:  # headers that its client cannot read
            raise NetworkError(
                f"{file.path}: the hub's answer cannot be used ({type(error).__name__})",
                hint="check HF_ENDPOINT if it is set",
            ) from error
        if attempt < ATTEMPTS:
            say(f"{file.path}: interrupted ({short(reason)}); attempt {attempt + 1} of {ATTEMPTS}")
            time.sleep(PAUSE * 2 ** (attempt - 1))
    advice = " If Xet keeps failing, set HF_HUB_DISABLE_XET=1." if xet_failures else ""
    raise NetworkError(
        f"{file.path} could not be fetched in {ATTEMPTS} attempts",
        hint=f"the same command goes on where it stopped: lens models pull {plan.preset.name}.{advice}",
    )


def _use_xet(metadata: HfFileMetadata, blob: Path, failures: int) -> bool:
    """Xet is faster but starts a file anew after an interruption, so never for a file that is already begun."""
    from huggingface_hub import constants
    from huggingface_hub.utils._runtime import is_xet_available

    if constants.HF_HUB_DISABLE_XET or metadata.xet_file_data is None or not is_xet_available():
        return False
    return failures < XET_FAILURES and not partial_of(blob).exists() and _is_hub(metadata.xet_file_data.refresh_route)


def _transfer(plan: PullPlan, file: PlannedFile, metadata: HfFileMetadata, blob: Path, *, xet: bool) -> None:
    """Fetch the bytes into `blob.incomplete`, going on from there, check them, and only then name them `blob`.

    huggingface_hub moves the bytes; it is given no name to join, and it would delete an unfinished file when its
    process ends (its issue #4196). Raises ModelMissingError where the bytes are not what was announced.
    """
    from huggingface_hub.utils import WeakFileLock

    blob.parent.mkdir(parents=True, exist_ok=True)
    lock = hub_cache() / ".locks" / blob.parent.parent.name / f"{blob.name}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):
        partial = partial_of(blob)
        if partial.exists() and partial.stat().st_size > file.size:
            partial.unlink()  # of another version, or written by two at once
        if xet:
            _get_xet(metadata, partial, file)
        else:
            _get_http(metadata, partial, file)
        size, sha256 = partial.stat().st_size, file_sha256(partial)
        if not _as_announced(file, size, sha256):
            partial.unlink()
            raise ModelMissingError(
                f"{file.path} from {plan.repo} is not what was announced: {_difference(file, size, sha256)}. "
                "It was deleted",
                hint=OTHER,
            )
        os.replace(partial, blob)


def _get_xet(metadata: HfFileMetadata, partial: Path, file: PlannedFile) -> None:
    from huggingface_hub.file_download import xet_get
    from huggingface_hub.utils import build_hf_headers

    assert metadata.xet_file_data is not None
    xet_get(
        incomplete_path=partial,
        xet_file_data=metadata.xet_file_data,
        headers=build_hf_headers(token=None if hub_is_safe() else False),
        expected_size=file.size,
        displayed_filename=file.path,
    )


def _get_http(metadata: HfFileMetadata, partial: Path, file: PlannedFile) -> None:
    """Raises UsageError where the hub sends its client on to an address without encryption."""
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    own = _is_hub(metadata.location)
    safe = hub_is_safe() if own else check_address(metadata.location, what=f"where the hub keeps {file.path}")
    with _UpTo(partial, file.size) as out:
        http_get(
            metadata.location,
            out,
            resume_size=out.tell(),
            # A signed address of a content network must not be sent the person's token.
            headers=build_hf_headers(token=None if own and safe else False),
            expected_size=file.size,
            displayed_filename=file.path,
        )
        out.flush()
        os.fsync(out.fileno())


class _UpTo(io.BufferedWriter):
    """A file that is added to and takes `most` bytes in all: what a hub sends would fill the disk otherwise."""

    def __init__(self, path: Path, most: int) -> None:
        super().__init__(io.FileIO(path, "a"))
        self.path, self.most, self.size = path, most, path.stat().st_size

    def write(self, data: ReadableBuffer, /) -> int:
        self.size += memoryview(data).nbytes
        if self.size > self.most:
            raise UntrustedError(f"the hub sends more than the {self.most:,} bytes that it announced", hint=OTHER)
        return super().write(data)


def _is_hub(location: str) -> bool:
    from huggingface_hub import constants

    return location.startswith(constants.ENDPOINT + "/")


def _blob(plan: PullPlan, metadata: HfFileMetadata) -> Path:
    """Where the cache keeps a content. Raises UntrustedError for an ETag that is no plain token."""
    said = f"{plan.repo}: the hub"
    return path_below(hub_repo(plan.repo) / "blobs", check_etag(metadata.etag, said), source=said)
