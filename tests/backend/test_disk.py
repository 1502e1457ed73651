"""A whole file or none: taken names, races, full disks, read-only folders, interruptions."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from backend.cache.store import Store
from backend.disk import (
    check_folder,
    claimed,
    make_folder,
    meant_instead,
    read_error,
    replacing,
    write_atomic,
    write_new,
)
from backend.errors import FileError
from backend.picture.history import History


def test_names_are_never_taken_twice(tmp_path: Path) -> None:
    wish = tmp_path / "a.png"
    assert [write_new(wish, bytes([n])).name for n in range(3)] == ["a.png", "a-1.png", "a-2.png"]
    assert wish.read_bytes() == b"\x00"
    assert _mode(wish) == 0o666 & ~_umask()


def test_a_library_that_puts_its_own_file_there(tmp_path: Path) -> None:
    """As safetensors does, with mode 0600."""
    with replacing(tmp_path / "a.bin") as temporary:
        save_file({"x": torch.zeros(2)}, temporary)
    assert _mode(tmp_path / "a.bin") == 0o666 & ~_umask()


def test_what_holds_prompts_is_for_this_user_alone(tmp_path: Path) -> None:
    """From the first byte on, and what is written into it later too: a database's log among it."""
    with replacing(tmp_path / "a", private=True) as temporary:
        assert _mode(temporary) == 0o600
    assert _mode(tmp_path / "a") == _mode(write_new(tmp_path / "b", b"x", private=True)) == 0o600
    store = Store(tmp_path / "rewrites", ".json", 100, warn=pytest.fail)
    store.write("key", b"a cat")
    assert _mode(store.path("key")) == 0o600
    with History(tmp_path / "history.db"):
        assert {_mode(path) for path in tmp_path.glob("history.db*")} == {0o600}
        assert (tmp_path / "history.db-wal").exists()


def test_a_dangling_link_is_a_taken_name(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to(tmp_path / "elsewhere.png")
    assert write_new(tmp_path / "a.png", b"x").name == "a-1.png"
    assert not (tmp_path / "elsewhere.png").exists()


def test_two_writers_at_once(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        written = list(pool.map(lambda n: (write_new(tmp_path / "a.png", b"%d" % n), b"%d" % n), range(64)))
    assert len({path for path, _ in written}) == 64
    assert all(path.read_bytes() == data for path, data in written)
    assert len(list(tmp_path.iterdir())) == 64  # no temporary file is left


def test_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    assert [write_new(tmp_path / "a.png", b"x").name for _ in range(2)] == ["a.png", "a-1.png"]
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("write", [write_new, write_atomic])
@pytest.mark.parametrize("call", ["fsync", "chmod"])
def test_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: object, call: str) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(FileError, match="no space left") as caught:
        write(tmp_path / "a.png", b"x")  # pyright: ignore[reportCallIssue]
    assert "free some space" in str(caught.value.hint)
    assert list(tmp_path.iterdir()) == []


def test_a_real_write_that_fails_half_way(tmp_path: Path) -> None:
    """The kernel's own refusal: a process that may not write files of more than 4 kB."""
    code = (
        "import resource, signal, sys; from pathlib import Path; from backend.disk import write_new\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)); signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "write_new(Path(sys.argv[1]), b'x' * 100_000)"
    )
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.png")], capture_output=True, text=True)
    assert "FileError: cannot write" in run.stderr and "file too large" in run.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_interruption_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_new(tmp_path / "a.png", b"x")
    assert list(tmp_path.iterdir()) == []


def test_write_atomic_replaces(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a", b"1")
    write_atomic(tmp_path / "a", b"2")
    assert (tmp_path / "a").read_bytes() == b"2"
    assert len(list(tmp_path.iterdir())) == 1


def test_folders(tmp_path: Path) -> None:
    make_folder(tmp_path / "a/b")
    assert list((tmp_path / "a/b").iterdir()) == []
    (tmp_path / "file").write_bytes(b"")
    for wrong in (tmp_path / "file", tmp_path / "file/inside", tmp_path / ("x" * 300)):
        with pytest.raises(FileError) as caught:
            make_folder(wrong)
        assert caught.value.hint


def test_a_checked_folder_is_not_made(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    for folder in ("here", "here/new/inner", "new"):
        check_folder(tmp_path / folder)
    (tmp_path / "file").write_bytes(b"")
    for wrong in ("file", "file/inside", "new/" + "x" * 300):
        with pytest.raises(FileError):
            check_folder(tmp_path / wrong)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "here"]


def test_an_unwritable_folder() -> None:
    # /proc takes no files from anyone, root included.
    with pytest.raises(FileError, match="cannot write /proc"):
        make_folder(Path("/proc"))
    with pytest.raises(FileError):
        write_new(Path("/proc/a.png"), b"x")


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_what_a_killed_process_left_is_swept_by_the_next_that_writes_there(tmp_path: Path) -> None:
    """A real process, killed while it writes: it holds the claim until then and nothing of it stays after."""
    target = tmp_path / "out" / "big.gguf"
    target.parent.mkdir()
    program = (
        "import sys, time\nfrom pathlib import Path\nfrom backend.disk import claimed, replacing\n"
        "target = Path(sys.argv[1])\n"
        "with claimed(target, doing='writes'), replacing(target) as file:\n"
        "    file.write_bytes(b'half'); print('writing', flush=True); time.sleep(60)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", program, str(target)], stdout=subprocess.PIPE)
    assert child.stdout is not None and child.stdout.readline() == b"writing\n"
    (half,) = target.parent.iterdir()
    others = [
        half.with_name(half.name.replace(f"-{child.pid}-", f"-{os.getpid()}-")),  # of one that lives
        target.parent / f".lens-00000000-{child.pid}-x.tmp",  # of another machine
        target.parent / ".lens-notes.tmp",  # nobody knows whose
    ]
    for other in others:
        other.write_bytes(b"")
    with pytest.raises(FileError, match="another process writes"), claimed(target, doing="writes"):
        pass
    child.kill()
    child.wait()
    child.stdout.close()
    with claimed(target, doing="writes"):
        write_atomic(target, b"whole")
    assert sorted(target.parent.iterdir()) == sorted([target, *others])


def test_a_path_that_is_not_there_is_met_with_the_nearest_name(tmp_path: Path) -> None:
    (tmp_path / "photos" / "2026").mkdir(parents=True)
    (tmp_path / "photos" / "2026" / "fish.png").touch()
    for typed, hint in (
        ("photos/2026/fihs.png", "did you mean {}/photos/2026/fish.png?"),
        ("photo/2026/fish.png", "did you mean {}/photos/2026/fish.png?"),
        ("qqqq/fish.png", "there is no folder {}/qqqq"),
    ):
        assert meant_instead(tmp_path / typed) == hint.format(tmp_path)
    assert meant_instead(tmp_path / "zzz") is None and meant_instead(Path("zzz\0")) is None
    error = read_error(tmp_path / "zzz", FileNotFoundError(2, "No such file or directory"), "a text is meant")
    assert (
        str(error) == f"cannot read {tmp_path / 'zzz'}: no such file or directory" and error.hint == "a text is meant"
    )
