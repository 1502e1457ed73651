"""Writing files so that an interruption leaves a whole file or none.

Light ring: standard library only.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

from backend.errors import FileError, UsageError, os_reason

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


def write_new(path: Path, data: bytes) -> Path:
    """Write `data` under the first free name of `names(path)`; returns the name taken.

    Never replaces a file, also when two processes write at once: the whole file is written beside its target, synced,
    and then given its name by an operation that fails where the name exists. Raises FileError; leaves nothing behind.
    """
    try:
        with _temporary(path.parent) as temporary:
            temporary.write_bytes(data)
            _sync(temporary)
            for candidate in names(path):
                if _claim(temporary, candidate):
                    sync_folder(path.parent)
                    return candidate
    except OSError as error:
        raise write_error(path, error) from error
    raise UsageError(f"a million files are named like {path}", hint="give another name with -o")


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` to `path`, replacing what is there in one step. Raises FileError; leaves nothing behind."""
    with replacing(path) as temporary:
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
def replacing(path: Path) -> Generator[Path]:
    """An empty file beside `path` to write to; at the end it is synced and takes its place in one step.

    Where the writing is left by an exception nothing stays behind and `path` is as it was. Raises FileError for an
    OSError, whoever raises it.
    """
    try:
        with _temporary(path.parent) as temporary:
            yield temporary
            os.chmod(temporary, _usual_mode())  # again: some libraries put a file of their own, mode 0600, there
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
def _temporary(folder: Path) -> Generator[Path]:
    """An empty temporary file in `folder`; gone at the end, however the end comes."""
    handle, name = tempfile.mkstemp(dir=folder, prefix=".lens-", suffix=".tmp")
    try:
        os.close(handle)
        os.chmod(name, _usual_mode())  # mkstemp's 0600 is for secrets; a picture has the usual mode
        yield Path(name)
    finally:
        with contextlib.suppress(FileNotFoundError):  # os.replace() has taken it away
            os.unlink(name)


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
