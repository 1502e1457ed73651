"""Fetch a suite's files when a person asks for it, into the data folder, with the licence said first.

Pinned to revisions where the publisher has them. What arrives is not trusted: sizes are bounded, an archive's names
never become paths, and `train.suites.prompts` checks what is inside.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from backend.disk import make_folder, path_below, write_atomic
from backend.errors import FileError, NetworkError, UsageError, human_bytes, os_reason
from backend.paths import data_dir
from train.suites.table import Suite

MOST_BYTES = 64 * 2**20  # of one answer; the largest published file has 1.5 MB
MOST_INSIDE = 64 * 2**20  # bytes of all that an archive holds
SECONDS = 60.0  # without a byte


def fetched_dir(suite: Suite) -> Path | None:
    """Where a suite's fetched files are; None: they were not fetched."""
    folder = data_dir() / "suites" / suite.name
    return folder if folder.is_dir() else None


def fetch(suite: Suite, say: Callable[[str], None]) -> Path:
    """Fetch what is not there yet; returns the folder. Raises UsageError, NetworkError, FileError, UntrustedError."""
    if suite.shipped:
        raise UsageError(f"{suite.name} is part of lens: there is nothing to fetch")
    if not suite.urls:
        raise UsageError(
            f"{suite.name} is read from a path only (licence: {suite.licence})",
            hint=f"take {suite.files[0]} from {suite.source}, and give --data DIR",
        )
    say(f"{suite.title}: {suite.source}. Licence of the data: {suite.licence}")
    folder = data_dir() / "suites" / suite.name
    make_folder(folder)
    for name, url in suite.urls:
        target = path_below(folder, name, source=suite.name)
        if name.endswith(".zip"):
            if all((folder / file).is_file() for file in suite.files):
                continue
            _unpack(_get(url, say), folder, suite)
        elif not target.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(target, _get(url, say))
    return folder


def _get(url: str, say: Callable[[str], None]) -> bytes:
    say(f"fetching {url}")
    try:
        with urlopen(Request(url, headers={"User-Agent": "lens"}), timeout=SECONDS) as answer:
            data = answer.read(MOST_BYTES + 1)
    except HTTPError as error:
        raise NetworkError(f"{url} answered {error.code}", hint="has it moved? --data DIR reads a copy") from None
    except (URLError, HTTPException, OSError) as error:
        reason = os_reason(error) if isinstance(error, OSError) and error.strerror else str(error)
        raise NetworkError(f"cannot fetch {url}: {reason[:120]}", hint="--data DIR reads a copy") from None
    if len(data) > MOST_BYTES:
        raise FileError(f"{url} is larger than {human_bytes(MOST_BYTES)}: it is not what was published")
    return data


def _unpack(data: bytes, folder: Path, suite: Suite) -> None:
    """Write the suite's own files of an archive, whatever folder they are in there. Raises FileError."""
    wanted = {name.lower(): name for name in suite.files}
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
            if sum(member.file_size for member in members) > MOST_INSIDE:
                raise FileError(f"the archive of {suite.name} holds more than {human_bytes(MOST_INSIDE)}")
            for member in members:
                tail = "/".join(member.filename.split("/")[-2:]).lower()
                if (name := wanted.pop(tail, None)) is not None:
                    target = path_below(folder, name, source=suite.name)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    write_atomic(target, archive.read(member))
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise FileError(f"what was fetched for {suite.name} is no archive: {str(error)[:80]}") from error
    if wanted:
        raise FileError(f"the archive of {suite.name} lacks {', '.join(wanted.values())}")
