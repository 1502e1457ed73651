"""A person's folder of pictures: what is taken, and what each kind of mistake is told. No network is loaded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from backend.errors import FileError, LensError, UsageError
from tests.train.drawn_folder import draw_folder, zorb
from train.lora.config import LoraConfig
from train.lora.pictures import Folder, read_folder


def config(pictures: Path, **fields: object) -> LoraConfig:
    return LoraConfig(run_dir=pictures / "run", pictures=pictures, model="nano", **fields)  # pyright: ignore[reportArgumentType]


def read(pictures: Path, **fields: object) -> Folder:
    return read_folder(config(pictures, **fields), (64,))


def refused(pictures: Path, **fields: object) -> LensError:
    with pytest.raises(LensError) as caught:
        read(pictures, **fields)
    return caught.value


def test_every_picture_has_its_caption_and_bucket(tmp_path: Path) -> None:
    draw_folder(tmp_path, 4)
    (tmp_path / "below").mkdir()
    zorb(9, 70, 66).save(tmp_path / "below" / "x.PNG")
    (tmp_path / "below" / "x.txt").write_bytes("\ufeff  ein Zorb für dich\n".encode())  # Notepad begins with a mark
    (tmp_path / ".hidden.png").write_bytes(b"not looked at")
    (tmp_path / "run" / "previews").mkdir(parents=True)  # what a run in this folder draws is not trained on
    zorb(8, 64, 64).save(tmp_path / "run" / "previews" / "0000001.png")
    found = read(tmp_path, trigger="sks")
    assert [p.key for p in found.training] == ["below/x.PNG", *(f"zorb{i:02}.png" for i in range(4))]
    assert found.training[0].caption == "sks ein Zorb für dich" and not found.held
    assert {shape: len(ones) for shape, ones in found.buckets().items()} == {(48, 96): 1, (64, 64): 3, (96, 48): 1}
    assert found.training[0].placed.box == (2, 0, 68, 66)  # 70 x 66, the middle of it


def test_turned_and_odd_pictures_are_upright_rgb(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying, shown standing
    zorb(0, 96, 48).save(tmp_path / "turned.jpg", exif=exif)
    zorb(1, 64, 64).convert("CMYK").save(tmp_path / "cmyk.jpg")
    zorb(2, 64, 64).convert("LA").save(tmp_path / "grey.png")
    found = read(tmp_path, caption="a zorb")
    assert {p.key: p.shape for p in found.training} == {
        "cmyk.jpg": (64, 64),
        "grey.png": (64, 64),
        "turned.jpg": (96, 48),
    }
    from train.lora.source import pixels

    assert all(pixels(picture).shape == (*picture.shape, 3) for picture in found.training)


def test_held_out_pictures_are_few_fixed_and_no_copies(tmp_path: Path) -> None:
    draw_folder(tmp_path, 20)
    (tmp_path / "copy.png").write_bytes((tmp_path / "zorb03.png").read_bytes())
    (tmp_path / "copy.txt").write_text("a copy")
    found = read(tmp_path, held_out=0.3)
    assert 6 <= len(found.held) <= 7 and len(found.held) + len(found.training) == 21
    assert not {p.sha256 for p in found.held} & {p.sha256 for p in found.training}
    (tmp_path / "zorb05.png").rename(tmp_path / "aaa.png")
    (tmp_path / "zorb05.txt").rename(tmp_path / "aaa.txt")
    assert {p.sha256 for p in read(tmp_path, held_out=0.3).held} == {p.sha256 for p in found.held}
    assert not read(tmp_path, held_out=0.0).held


def test_captions_that_are_none(tmp_path: Path) -> None:
    draw_folder(tmp_path, 6)
    (tmp_path / "zorb00.txt").unlink()
    (tmp_path / "zorb01.txt").write_text(" \n")
    (tmp_path / "zorb02.txt").write_bytes(bytes(range(256)))
    (tmp_path / "zorb03.txt").write_text("word " * 200_000)
    (tmp_path / "zorb04.txt").write_text("a\0b")
    error = refused(tmp_path)
    assert isinstance(error, FileError) and str(error).startswith("5 of 6 pictures cannot be used: ")
    for said in (
        "zorb00.png: its caption zorb00.txt is missing",
        "zorb01.png: its caption zorb01.txt is empty",
        "zorb02.png: its caption zorb02.txt is no UTF-8 text (binary data?)",
        "zorb03.png: its caption zorb03.txt has 1,000,000 bytes",
        "zorb04.png: the caption is no text",
    ):
        assert said in str(error)
    assert error.hint is not None and '--set caption="' in error.hint and "skip=true" in error.hint
    assert "3 of 6" in str(refused(tmp_path, caption="a sks zorb"))  # it stands in for nothing that is there
    found = read(tmp_path, caption="a sks zorb", skip=True)
    assert [p.caption for p in found.training] == ["a sks zorb", "a sks zorb", "a zorb on a plain background, number 5"]
    assert [key for key, _ in found.left_out] == ["zorb02.png", "zorb03.png", "zorb04.png"]


def test_pictures_that_cannot_be_used(tmp_path: Path) -> None:
    draw_folder(tmp_path, 3)
    whole = (tmp_path / "zorb00.png").read_bytes()
    (tmp_path / "zorb00.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "zorb01.png").write_text("this is no picture")
    zorb(0, 40, 40).save(tmp_path / "zorb02.png")
    error = refused(tmp_path)
    assert "3 of 3" in str(error) and "zorb02.png: 40x40 is too small for every base" in str(error)
    assert "zorb00.png: " in str(error) and "zorb01.png: no picture of a known format" in str(error)
    assert error.hint == "enlarge small pictures: --set upscale=1.6"  # 64 / 40
    assert refused(tmp_path, skip=True)  # nothing would be left
    (tmp_path / "zorb00.png").write_bytes(whole)
    assert len(read(tmp_path, skip=True).training) == 1
    assert len(read(tmp_path, skip=True, upscale=1.6).training) == 2


def test_two_pictures_with_one_caption(tmp_path: Path) -> None:
    draw_folder(tmp_path, 2)
    zorb(5, 64, 64).save(tmp_path / "zorb01.jpg")
    error = refused(tmp_path)
    assert "2 of 3" in str(error) and "zorb01.jpg: shares the caption zorb01.txt with zorb01.png" in str(error)
    (tmp_path / "zorb01.txt").unlink()
    assert len(read(tmp_path, caption="a zorb").training) == 3  # nothing is shared any more


def test_folders_without_pictures(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("a caption of nothing")
    for folder, says in ((tmp_path, "no pictures here"), (tmp_path / "gone", "no such folder")):
        error = refused(folder)
        assert isinstance(error, UsageError) and says in str(error) and error.hint
    assert "not a folder" in str(refused(tmp_path / "notes.txt"))


def test_the_fingerprint_is_of_what_is_trained_on(tmp_path: Path) -> None:
    draw_folder(tmp_path, 4)
    before = read(tmp_path).fingerprint
    assert read_folder(replace(config(tmp_path), steps=7), (64,)).fingerprint == before
    assert read(tmp_path, trigger="sks").fingerprint != before
    assert read_folder(config(tmp_path), (32,)).fingerprint != before
    zorb(9, 64, 64).save(tmp_path / "zorb00.png")
    assert read(tmp_path).fingerprint != before
