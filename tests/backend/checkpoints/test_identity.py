"""Hashes of weights: those of hashlib, read once, and never those of a file that has changed since.

Why it can be trusted: expected hashes come from hashlib on the whole content, and reads are counted.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from backend.checkpoints import identity
from backend.checkpoints.identity import known_sha256
from backend.paths import cache_dir


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    seen: list[str] = []
    real = hashlib.file_digest

    def counted(file: object, name: str) -> object:
        seen.append(name)
        return real(file, name)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(identity.hashlib, "file_digest", counted)
    return seen


def test_hashed_once(tmp_path: Path, reads: list[str]) -> None:
    path = tmp_path / "weights.gguf"
    path.write_bytes(b"abc" * 1000)
    assert known_sha256(path) == known_sha256(path) == sha(b"abc" * 1000)
    assert len(reads) == 1


def test_a_changed_file_is_hashed_again(tmp_path: Path) -> None:
    path = tmp_path / "weights.gguf"
    path.write_bytes(b"first")
    known_sha256(path)
    path.write_bytes(b"longer")
    assert known_sha256(path) == sha(b"longer")
    path.write_bytes(b"second")  # the same size, another time
    os.utime(path, ns=(1, 1))
    assert known_sha256(path) == sha(b"second")


def test_two_files_do_not_share_a_note(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(name.encode())
        os.utime(tmp_path / name, ns=(5, 5))
    assert [known_sha256(tmp_path / name) for name in "ab"] == [sha(b"a"), sha(b"b")]


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"key": 1}', b"\xff\xfe"])
def test_a_damaged_note_is_made_again(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "weights.gguf"
    path.write_bytes(b"abc")
    known_sha256(path)
    (note,) = (cache_dir() / "sha256").iterdir()
    note.write_bytes(damage)
    assert known_sha256(path) == sha(b"abc")
    assert json.loads(note.read_text())["sha256"] == sha(b"abc")


def test_a_flipped_bit_of_a_note_is_seen(tmp_path: Path) -> None:
    """It would stand as the model's hash in every picture made from then on."""
    path = tmp_path / "weights.gguf"
    path.write_bytes(b"abc")
    known_sha256(path)
    (note,) = (cache_dir() / "sha256").iterdir()
    note.write_text(note.read_text().replace(sha(b"abc"), sha(b"abc").replace("b", "c", 1)))
    assert known_sha256(path) == sha(b"abc")


def test_no_cache_folder_only_costs_time(tmp_path: Path) -> None:
    path = tmp_path / "weights.gguf"
    path.write_bytes(b"abc")
    cache_dir().parent.mkdir(parents=True, exist_ok=True)
    cache_dir().write_text("a file where the folder should be")
    assert known_sha256(path) == sha(b"abc")
