"""Files on the disk: written so that an interruption leaves a whole one or none, and never where a name from outside
leads. What comes from outside is hostile until checked: a name that a hub, a record, an index or a tar gave is no path.

Light ring: standard library only.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import functools
import hashlib
import itertools
import os
import re
import shutil
import stat
import tempfile
import unicodedata
from collections.abc import Generator, Iterator
from pathlib import Path

from backend.errors import FileError, UntrustedError, UsageError, os_reason, shown

_HINTS = {
    errno.ENOSPC: "the disk is full: free some space, or save elsewhere with -o",
    errno.EDQUOT: "the quota is used up: free some space, or save elsewhere with -o",
    errno.EFBIG: "the file would be larger than this system allows",
    errno.EACCES: "no permission: save elsewhere with -o",
    errno.EPERM: "no permission: save elsewhere with -o",
    errno.EROFS: "the file system is read-only: save elsewhere with -o",
    errno.ENAMETOOLONG: "the name is too long: give a shorter one with -o",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
    errno.EEXIST: "a part of the path is a file, not a folder",
}
_LOOKED = 2000  # names of a folder that are compared with one that is not there
PRIVATE = 0o600  # of files that hold prompts or a key; a picture has the usual mode
# What link() answers on file systems without hard links (FAT, some network shares, some containers).
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV, errno.EACCES}


def file_sha256(path: Path) -> str:
    """SHA-256 of the whole file, as hexadecimal text. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_error(path: Path, error: OSError) -> FileError:
    """The one-line form of an operating system's refusal to write `path`."""
    reason = os_reason(error)
    return FileError(f"cannot write {path}: {reason}", hint=_HINTS.get(error.errno or 0))


def read_error(path: Path, error: OSError, hint: str | None = None) -> FileError:
    """The one-line form of an operating system's refusal to read `path`: of one that is not there with what was meant.

    `hint`: what is expected there, where nothing is alike.
    """
    meant = meant_instead(path) if isinstance(error, FileNotFoundError) else None
    return FileError(f"cannot read {path}: {os_reason(error)}", hint=meant or hint)


def meant_instead(path: Path) -> str | None:
    """What was probably meant by a path that is not there: the name most like it, or which folder is missing; a hint.

    None where nothing is alike.
    """
    gone = next((part for part in [*reversed(path.parents), path] if not part.exists()), path)
    try:
        with os.scandir(gone.parent) as entries:
            names = [entry.name for entry in itertools.islice(entries, _LOOKED)]
    except OSError:
        return None
    near = difflib.get_close_matches(gone.name, names, 1, 0.7)
    if near:
        return f"did you mean {gone.with_name(near[0]) / path.relative_to(gone)}?"
    return None if gone == path else f"there is no folder {gone}"


def make_folder(folder: Path) -> None:
    """Create `folder` and its parents, and prove that a file can be made in it.

    Raises FileError. Called before any weights load, so that a minute of work is not lost to a read-only folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise write_error(folder, error) from error


def check_folder(folder: Path) -> None:
    """Prove that `folder` can be made and written to, and leave the disk as it was. Raises FileError.

    For what is written after minutes of work, if at all: a run that is stopped before leaves no empty folder.
    """
    missing = [place for place in (folder, *folder.parents) if not os.path.lexists(place)]  # the innermost first
    try:
        make_folder(folder)
    finally:
        for place in missing:
            with contextlib.suppress(OSError):  # by now it may hold what another process has put there
                place.rmdir()


def names(path: Path) -> Iterator[Path]:
    """`a.png`, `a-1.png`, `a-2.png`, …: the names tried in order until one is free."""
    yield path
    for number in range(1, 1_000_000):
        yield path.with_name(f"{path.stem}-{number}{path.suffix}")


def write_new(path: Path, data: bytes, *, private: bool = False) -> Path:
    """Write `data` under the first free name of `names(path)`; returns the name taken.

    Never replaces a file, also when two processes write at once: the whole file is written beside its target, synced,
    and then given its name by an operation that fails where the name exists. Raises FileError; leaves nothing behind.
    `private`: see `write_atomic`.
    """
    try:
        with _temporary(path.parent, PRIVATE if private else _usual_mode()) as temporary:
            temporary.write_bytes(data)
            _sync(temporary)
            for candidate in names(path):
                if _claim(temporary, candidate):
                    sync_folder(path.parent)
                    return candidate
    except OSError as error:
        raise write_error(path, error) from error
    raise UsageError(f"a million files are named like {path}", hint="give another name with -o")


def write_atomic(path: Path, data: bytes, *, private: bool = False) -> None:
    """Write `data` to `path`, replacing what is there in one step. Raises FileError; leaves nothing behind.

    `private`: readable by this user alone, from the first byte on; for what holds prompts or a key.
    """
    with replacing(path, private=private) as temporary:
        temporary.write_bytes(data)


def free_bytes(folder: Path) -> int:
    """Bytes free where `folder` is or will be. Raises FileError."""
    whole = folder.absolute()
    for place in (whole, *whole.parents):
        try:
            return shutil.disk_usage(place).free
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise write_error(place, error) from error
    raise FileError(f"{folder} is on no disk")


@contextlib.contextmanager
def replacing(path: Path, *, private: bool = False) -> Generator[Path]:
    """An empty file beside `path` to write to; at the end it is synced and takes its place in one step.

    Where the writing is left by an exception nothing stays behind and `path` is as it was. Raises FileError for an
    OSError, whoever raises it. `private`: see `write_atomic`.
    """
    mode = PRIVATE if private else _usual_mode()
    try:
        with _temporary(path.parent, mode) as temporary:
            yield temporary
            os.chmod(temporary, mode)  # again: some libraries put a file of their own, of another mode, there
            _sync(temporary)
            os.replace(temporary, path)
            sync_folder(path.parent)
    except OSError as error:
        raise write_error(path, error) from error


def _usual_mode() -> int:
    mask = os.umask(0)  # there is no way to read it without setting it
    os.umask(mask)
    return 0o666 & ~mask


@contextlib.contextmanager
def _temporary(folder: Path, mode: int) -> Generator[Path]:
    """An empty temporary file in `folder`; gone at the end, however the end comes. One that a killed process left there
    goes now: its name says whose it was."""
    _sweep(folder)
    handle, name = tempfile.mkstemp(dir=folder, prefix=f".lens-{_machine()}-{os.getpid()}-", suffix=".tmp")
    try:
        os.close(handle)
        os.chmod(name, mode)  # mkstemp's own is PRIVATE
        yield Path(name)
    finally:
        with contextlib.suppress(FileNotFoundError):  # os.replace() has taken it away
            os.unlink(name)


_LEFT = re.compile(r"\.lens-([0-9a-f]{8})-([0-9]{1,10})-\w+\.tmp")
_swept = set[str]()  # folders that this process has looked through: one of pictures may have a hundred thousand


def _sweep(folder: Path) -> None:
    """Remove what processes of this machine that are gone were writing in `folder`."""
    place = os.path.abspath(folder)
    if place in _swept or os.name == "nt":  # there, asking whether a process lives ends it
        return
    _swept.add(place)
    with os.scandir(place) as entries:
        left = [(entry.path, found) for entry in entries if (found := _LEFT.fullmatch(entry.name))]
    for path, found in left:
        if found[1] == _machine() and not _lives(int(found[2])):
            with contextlib.suppress(OSError):
                os.unlink(path)


@functools.cache
def _machine() -> str:
    """Eight characters for this machine: a folder may lie on a disk that several share."""
    return hashlib.sha256(os.uname().nodename.encode() if os.name != "nt" else b"windows").hexdigest()[:8]


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # somebody else's
        return True
    return True


@contextlib.contextmanager
def claimed(path: Path, *, doing: str) -> Generator[None]:
    """Keep other processes of this machine from `path`, a file or a folder that takes long to write, until the end.

    The claim goes with the process, however that ends, and nothing of it lies beside `path`. `doing`: what a process
    does that has it. Raises FileError where another one has it.
    """
    from filelock import FileLock, Timeout

    from backend.paths import state_dir

    name = hashlib.sha256(os.path.realpath(os.fsencode(path))).hexdigest()[:32]
    place = state_dir() / "claims" / f"{name}.lock"
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(place, blocking=False)
        lock.acquire()
    except Timeout:
        raise FileError(f"another process {doing} {path}", hint="wait for it, or stop it") from None
    except OSError as error:
        raise write_error(place, error) from error
    try:
        yield
    finally:
        lock.release()


def _sync(path: Path) -> None:
    """Make a file's contents survive a power cut."""
    with path.open("r+b") as file:  # for reading alone would do, but not on Windows
        os.fsync(file.fileno())


def _claim(temporary: Path, target: Path) -> bool:
    """Give `temporary` the name `target` as well; False where the name is taken."""
    try:
        os.link(temporary, target)
        return True
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
    # No hard links here: reserve the name with an empty file, then replace the reservation.
    try:
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except FileExistsError:
        return False
    try:
        os.replace(temporary, target)
    except BaseException:
        target.unlink(missing_ok=True)  # an interruption here too leaves no empty picture
        raise
    return True


def sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut. Windows cannot open a folder and needs no such thing."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.ENOTSUP):  # some network file systems refuse
            raise
    finally:
        os.close(handle)


# Names from outside --------------------------------------------------------------------------------------------------

PART_BYTES = 255  # of one component: what every file system in use takes
NAME_BYTES = 1024  # of a whole name; the longest of a published model has 60

_COMMIT = re.compile(r"[0-9a-f]{7,64}")
_ETAG = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,127}")  # a SHA-1, a SHA-256, or a mirror's own token
_SHA256 = re.compile(r"[0-9a-f]{64}")


def path_below(folder: Path, name: object, *, source: str, links_within: Path | None = None) -> Path:
    """The path `folder / name` for a name with forward slashes that comes from outside.

    Nothing that exists on the way may be a link that leads out of `folder`; the last part may be a link into
    `links_within` (a hub cache keeps contents beside its snapshots), and has to be a plain file where it exists.
    `source` says in the error who gave the name. Raises UntrustedError: for an absolute path, `..`, an empty or
    over-long part, a control or formatting character, a backslash or colon, a link that leads out, a device or FIFO.
    """
    problem = name_problem(name)
    if problem is None:
        path = folder.joinpath(*str(name).split("/"))
        problem = _place_problem(folder, path, links_within or folder)
        if problem is None:
            return path
    raise UntrustedError(f"{source} names a file {shown(name)}: {problem}")


def name_problem(name: object) -> str | None:
    """What keeps a name from outside from being a path below a folder, whatever lies there; None: nothing."""
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
        raise UntrustedError(f"{source} states a size that is none: {shown(str(size)[:40])}")
    return size


def _checked(value: object, pattern: re.Pattern[str], source: str, what: str) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise UntrustedError(f"{source} states {shown(value)} as {what}")
    return value
