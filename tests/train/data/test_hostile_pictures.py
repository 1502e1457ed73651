"""Things in a folder of pictures that are none: a FIFO, a link to a device without end, a name that is no UTF-8."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from tests.lens_cli.cli import real_inside
from train.data.work import open_picture


def test_what_never_ends_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    (tmp_path / "z.png").symlink_to("/dev/zero")
    for name in ("a.png", "z.png"):
        with pytest.raises(Exception, match="no regular file"):
            open_picture({"path": str(tmp_path / name), "member": None, "offset": 0, "nbytes": 10})


def test_a_scan_ends_beside_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    os.mkfifo(photos / "a.png")
    (photos / "z.png").symlink_to("/dev/zero")
    Image.new("RGB", (64, 64), "red").save(photos / "good.png")
    with open(os.fsencode(photos) + b"/\xff\xfe.png", "wb") as file:
        Image.new("RGB", (64, 64), "blue").save(file, "PNG")
    run = real_inside(
        monkeypatch, capfd, "train", "data", "scan", str(tmp_path / "work"), str(photos), "--workers", "0"
    )
    assert run.code in (0, 8), run.err
    assert "internal error" not in run.err
