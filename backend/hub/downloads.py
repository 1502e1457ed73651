"""Fetches what a plan lists into the Hugging Face cache, checks it, and writes down what came.

Order of events: check the free disk, fetch file by file, check every SHA-256, write the record. Interrupted at any
point, the same command goes on: finished files are kept, and an unfinished one continues where it stopped.

Light ring: huggingface_hub is imported inside the functions.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from backend.checkpoints import records
from backend.checkpoints.records import FileRecord, Record
from backend.checkpoints.resolve import of_preset
from backend.disk import file_sha256, write_error
from backend.errors import FileError, ModelMissingError, NetworkError
from backend.hub.pull_plan import PlannedFile, PullPlan, Say, partial_of, short
from backend.paths import hub_cache, hub_repo
from backend.words import human_bytes

if TYPE_CHECKING:
    from huggingface_hub.file_download import HfFileMetadata

ATTEMPTS = 4  # of one file, before the person is asked to come back; huggingface_hub retries inside each as well
XET_FAILURES = 2  # failures of the Xet protocol for one file before plain HTTP takes over
PAUSE = 2.0  # seconds before the second attempt; doubles
MARGIN = 256 * 2**20  # bytes of disk that stay free
CHUNK = 8 * 2**20  # bytes hashed at a time


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
    records.save(record)
    of_preset(plan.preset)  # the pull is only done when the model can be found and its headers are whole
    return record


def _fetch_checked(plan: PullPlan, file: PlannedFile, say: Say) -> FileRecord:
    path = _fetch(plan, file, say)
    size, sha256 = path.stat().st_size, file_sha256(path)
    if size != file.size or (file.sha256 is not None and sha256 != file.sha256):
        path.resolve().unlink(missing_ok=True)  # the blob; a snapshot link without one counts as absent
        path.unlink(missing_ok=True)
        raise ModelMissingError(
            f"{file.path} from {plan.repo} is not what was announced: {size:,} bytes, SHA-256 {sha256[:12]}…; "
            f"expected {file.size:,} bytes{f', {file.sha256[:12]}…' if file.sha256 else ''}. It was deleted",
            hint="pull again; if it happens twice, take another source with --from",
        )
    return FileRecord(size=size, sha256=sha256)


def _fetch(plan: PullPlan, file: PlannedFile, say: Say) -> Path:
    """One file, with several attempts, each going on where the last one stopped."""
    from httpx2 import HTTPError
    from huggingface_hub import hf_hub_download, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError, XetDownloadError
    from huggingface_hub.file_download import get_hf_file_metadata

    there = plan.folder / file.path
    if there.exists():
        return there
    url = hf_hub_url(plan.repo, file.path, revision=plan.revision)
    xet_failures = 0
    for attempt in range(1, ATTEMPTS + 1):
        try:
            metadata = get_hf_file_metadata(url)
            blob = _blob(plan.repo, metadata)
            if not _use_xet(metadata, blob, xet_failures):
                _resume(metadata, blob, file)
            # Finds the finished blob and links it into the snapshot; or fetches it through Xet.
            return Path(hf_hub_download(plan.repo, file.path, revision=plan.revision, cache_dir=str(hub_cache())))
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
    return failures < XET_FAILURES and not partial_of(blob).exists()


def _resume(metadata: HfFileMetadata, blob: Path, file: PlannedFile) -> None:
    """Fetch over HTTP into `blob`, going on from `blob.incomplete`.

    huggingface_hub 2 itself deletes an unfinished file when its process ends (its issue #4196), so the unfinished
    file is kept here and its `http_get`, which can start anywhere, does the transfer.
    """
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import WeakFileLock, build_hf_headers

    if blob.exists():
        return
    blob.parent.mkdir(parents=True, exist_ok=True)
    lock = hub_cache() / ".locks" / blob.parent.parent.name / f"{blob.name}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):
        partial = partial_of(blob)
        if partial.exists() and partial.stat().st_size > file.size:
            partial.unlink()  # of another version, or written by two at once
        with partial.open("ab") as out:
            # A signed address of a content network must not be sent the person's token.
            headers = build_hf_headers(token=None if _is_hub(metadata.location) else False)
            http_get(
                metadata.location,
                out,
                resume_size=out.tell(),
                headers=headers,
                expected_size=file.size,
                displayed_filename=file.path,
            )
            out.flush()
            os.fsync(out.fileno())
        os.replace(partial, blob)


def _is_hub(location: str) -> bool:
    from huggingface_hub import constants

    return location.startswith(constants.ENDPOINT + "/")


def _blob(repo: str, metadata: HfFileMetadata) -> Path:
    if metadata.etag is None:
        raise NetworkError(f"{repo}: the hub states no ETag", hint="check HF_ENDPOINT if it is set")
    return hub_repo(repo) / "blobs" / metadata.etag
