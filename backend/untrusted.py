"""What comes from outside is hostile until checked: a name that a hub, a record, an index or a tar gave is no path.

Here such a name becomes a path below a folder the user named, or is refused; a hub's marks (commit, ETag, SHA-256) are
held against what they may be; and an address is refused where what is sent could be read on the way.

Light ring: standard library only.
"""

from __future__ import annotations

import os
import re
import stat
import unicodedata
from pathlib import Path
from urllib.parse import urlsplit

from backend.errors import LensError, UsageError

PART_BYTES = 255  # of one component: what every file system in use takes
NAME_BYTES = 1024  # of a whole name; the longest of a published model has 60
HTTP_ALLOWED = "LENS_ALLOW_HTTP"  # environment: hosts, separated by commas, that may be asked without encryption

_COMMIT = re.compile(r"[0-9a-f]{7,64}")
_ETAG = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,127}")  # a SHA-1, a SHA-256, or a mirror's own token
_SHA256 = re.compile(r"[0-9a-f]{64}")
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


class UntrustedError(LensError):
    """Something from outside cannot be what it claims to be; nothing was done with it."""

    code = "untrusted"


def path_below(folder: Path, name: object, *, source: str, links_within: Path | None = None) -> Path:
    """The path `folder / name` for a name with forward slashes that comes from outside.

    Nothing that exists on the way may be a link that leads out of `folder`; the last part may be a link into
    `links_within` (a hub cache keeps contents beside its snapshots), and has to be a plain file where it exists.
    `source` says in the error who gave the name. Raises UntrustedError: for an absolute path, `..`, an empty or
    over-long part, a control or formatting character, a backslash or colon, a link that leads out, a device or FIFO.
    """
    problem = _name_problem(name)
    if problem is None:
        path = folder.joinpath(*str(name).split("/"))
        problem = _place_problem(folder, path, links_within or folder)
        if problem is None:
            return path
    raise UntrustedError(f"{source} names a file {_shown(name)}: {problem}")


def _name_problem(name: object) -> str | None:
    if not isinstance(name, str) or not name:
        return "no name"
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        return "not UTF-8"
    if size > NAME_BYTES:
        return "too long"
    if any(unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") for character in name):
        return "control or formatting characters in it"
    if "\\" in name or ":" in name:
        return "a backslash or a colon in it"
    parts = name.split("/")
    if name.startswith(("/", "~")):
        return "not below the folder"
    if any(part in ("", ".", "..") for part in parts):
        return "not below the folder"
    if any(len(part.encode()) > PART_BYTES for part in parts):
        return "too long"
    return None


def _place_problem(folder: Path, path: Path, links_within: Path) -> str | None:
    """What is wrong with the place as the disk has it now; None: nothing."""
    try:
        if not path.parent.resolve().is_relative_to(folder.resolve()):
            return "a folder on the way is a link that leads out"
        if not os.path.lexists(path):
            return None
        if not path.resolve().is_relative_to(links_within.resolve()) and not path.resolve().is_relative_to(
            folder.resolve()
        ):
            return "a link that leads out"
        if path.exists() and not stat.S_ISREG(path.stat().st_mode):
            return "not a plain file"
    except (OSError, RuntimeError) as error:  # a circle of links
        return str(error)
    return None


def _shown(name: object) -> str:
    """A foreign name for a message: short, and without effect on a terminal."""
    text = ascii(name) if isinstance(name, str) else f"of type {type(name).__name__}"
    return text if len(text) <= 80 else f"{text[:80]}…"


def check_commit(commit: object, source: str) -> str:
    """A commit's hash as a hub states it. Raises UntrustedError."""
    return _checked(commit, _COMMIT, source, "commit")


def check_etag(etag: object, source: str) -> str:
    """A content's ETag as a hub states it, which names its file in the cache. Raises UntrustedError."""
    return _checked(etag, _ETAG, source, "ETag")


def check_sha256(digest: object, source: str) -> str:
    """A SHA-256 in hexadecimal. Raises UntrustedError."""
    return _checked(digest, _SHA256, source, "SHA-256")


def check_size(size: object, source: str) -> int:
    """Bytes as somebody states them. Raises UntrustedError."""
    if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size < 2**50:
        raise UntrustedError(f"{source} states a size that is none: {_shown(str(size)[:40])}")
    return size


def _checked(value: object, pattern: re.Pattern[str], source: str, what: str) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise UntrustedError(f"{source} states {_shown(value)} as {what}")
    return value


def check_address(url: str, *, what: str) -> bool:
    """Whether a secret may be sent to `url`: only with encryption.

    Without it an address is used only on this machine, or where LENS_ALLOW_HTTP names its host. Raises UsageError.
    `what` names the address in the error.
    """
    parts = urlsplit(url)
    if parts.scheme == "https" and parts.hostname:
        return True
    host = parts.hostname or ""
    if parts.scheme != "http" or not host:
        raise UsageError(f"{what} is no web address: {_shown(url)}", hint="https://host/…")
    if host not in _LOOPBACK and host not in _allowed_hosts():
        raise UsageError(
            f"{what} has no encryption: {_shown(url)}; anybody on the way could replace what it sends",
            hint=f"use https://, or allow this host: {HTTP_ALLOWED}={host}",
        )
    return False


def _allowed_hosts() -> set[str]:
    return {host.strip().lower() for host in os.environ.get(HTTP_ALLOWED, "").split(",") if host.strip()}
