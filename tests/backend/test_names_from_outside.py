"""Names and addresses from outside. Trusted because each refusal is held against what the disk would have done."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from backend.chat.address import check_address
from backend.disk import check_commit, check_etag, check_size, path_below
from backend.errors import UntrustedError, UsageError


@pytest.mark.parametrize("name", ["a", "a/b.safetensors", "vae/ä.json", "split_files/x-y_z.1", "a b"])
def test_a_plain_name_is_a_path_below(tmp_path: Path, name: str) -> None:
    assert path_below(tmp_path, name, source="a test") == tmp_path / name


@pytest.mark.parametrize(
    "name",
    [
        "", "/", "/etc/passwd", "..", "a/../b", "../x", "a/..", ".", "./a", "a//b", "a/", "~/x", "a\x00b", "a\nb",
        "a\x1b[31m", "a\u202eb", "a\u2028b", "C:/x", "a\\..\\b", "x" * 256, "é" * 128, "a/" * 600 + "b", "\ud800",
        5, None, ["a"], True,
    ],
)  # fmt: skip
def test_what_is_no_plain_name_is_refused_in_one_line(tmp_path: Path, name: object) -> None:
    with pytest.raises(UntrustedError, match=r"^a test names a file ") as raised:
        path_below(tmp_path, name, source="a test")
    assert str(raised.value).isprintable() and len(str(raised.value)) < 200


def test_links_devices_and_pipes_are_refused(tmp_path: Path) -> None:
    folder, outside = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    outside.mkdir()
    (outside / "file").write_text("x")
    (folder / "folder").symlink_to(outside)
    (folder / "file").symlink_to(outside / "file")
    (folder / "circle").symlink_to(folder / "circle")
    (folder / "zero").symlink_to("/dev/zero")
    os.mkfifo(folder / "pipe")
    (folder / "kept").write_text("y")
    (folder / "inside").symlink_to("kept")
    for name in ("folder/file", "folder/new", "file", "circle", "zero", "pipe"):
        with pytest.raises(UntrustedError):
            path_below(folder, name, source="a test")
    assert path_below(folder, "inside", source="a test").read_text() == "y"
    assert path_below(folder, "file", source="a test", links_within=tmp_path).read_text() == "x"


def test_marks_are_what_they_may_be() -> None:
    assert check_commit("0" * 40, "the hub") == "0" * 40
    assert check_etag("d41d8cd98f00b204e9800998ecf8427e-3", "the hub")
    assert check_size(0, "the hub") == 0
    for bad in ("../x", "/abs", "A" * 40, "", None, 7, "a" * 65):
        with pytest.raises(UntrustedError, match="as commit"):
            check_commit(bad, "the hub")
    for bad in ("../x", "/abs", "", ".lock", None, "a/b", "a" * 129, "a\n"):
        with pytest.raises(UntrustedError, match="as ETag"):
            check_etag(bad, "the hub")
    for size in (-1, 2**60, "5", None, True, 1.5):
        with pytest.raises(UntrustedError):
            check_size(size, "the hub")


def test_a_secret_goes_over_https_only(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_address("https://hub.example/x", what="it") is True
    assert check_address("http://127.0.0.1:8000", what="it") is False
    for url in ("http://hub.example", "http://127.0.0.1.evil.example", "http://127.0.0.1@evil.example/"):
        with pytest.raises(UsageError, match="no encryption") as raised:
            check_address(url, what="it")
        assert "LENS_ALLOW_HTTP=" in str(raised.value.hint)
    monkeypatch.setenv("LENS_ALLOW_HTTP", "other, hub.example")
    assert check_address("http://hub.example", what="it") is False
    for url in ("file:///etc/passwd", "ftp://x/y", "hub.example", "https://", ""):
        with pytest.raises(UsageError, match="no web address"):
            check_address(url, what="it")
