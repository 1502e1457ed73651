"""Pictures of every kind that people have, as 8-bit RGB.

Why it can be trusted: each file is written by Pillow from numbers that the test knows, and read back as numbers.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from backend.errors import FileError
from backend.inputs import files
from backend.inputs.files import look_at, see, see_mask


def test_rgb_keeps_every_byte(tmp_path: Path) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8))
    image.save(tmp_path / "a.png")
    assert see(tmp_path / "a.png").tobytes() == image.tobytes()


def test_sixteen_bits_are_rounded_not_cut(tmp_path: Path) -> None:
    levels = np.array([[0, 128, 257, 30_000, 65_535]], dtype=np.uint16)
    Image.fromarray(levels).save(tmp_path / "a.png")
    assert np.asarray(see(tmp_path / "a.png"))[0, :, 0].tolist() == [0, 0, 1, 117, 255]
    assert np.asarray(see_mask(tmp_path / "a.png"))[0].tolist() == [0, 0, 1, 117, 255]


def test_cmyk_is_seen_as_rgb(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)
    red, green, blue = see(tmp_path / "a.jpg").getpixel((3, 3))  # pyright: ignore[reportGeneralTypeIssues]
    assert red > 240 and green < 15 and blue < 15


def test_what_is_transparent_is_white(tmp_path: Path) -> None:
    image = Image.new("RGBA", (2, 1), (200, 0, 0, 255))
    image.putpixel((1, 0), (200, 0, 0, 0))
    image.save(tmp_path / "a.png")
    assert list(see(tmp_path / "a.png").get_flattened_data()) == [(200, 0, 0), (255, 255, 255)]


def test_a_phone_s_picture_is_turned(tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 4))
    image.paste("white", (0, 0, 2, 4))  # on the left as it is stored
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn clockwise: what is left is seen above
    image.save(tmp_path / "a.png", exif=exif)
    shape = look_at(tmp_path / "a.png")
    assert (shape.width, shape.height) == (4, 8) == see(tmp_path / "a.png").size
    assert see(tmp_path / "a.png").getpixel((2, 0)) == (255, 255, 255)


def test_the_first_frame_is_taken(tmp_path: Path) -> None:
    Image.new("RGB", (8, 4), "red").save(
        tmp_path / "a.gif", save_all=True, append_images=[Image.new("RGB", (8, 4), "blue")]
    )
    assert look_at(tmp_path / "a.gif").frames == 2
    assert see(tmp_path / "a.gif").getpixel((0, 0)) == (255, 0, 0)


def test_masks(tmp_path: Path) -> None:
    """Grey as it is; colours by their lightness; of one with transparent pixels those alone, whatever their colour."""
    Image.fromarray(np.array([[0, 100, 255]], dtype=np.uint8)).save(tmp_path / "grey.png")
    assert np.asarray(see_mask(tmp_path / "grey.png")).tolist() == [[0, 100, 255]]
    clear = Image.new("RGBA", (3, 1), (255, 255, 255, 255))
    clear.putpixel((1, 0), (0, 0, 0, 0))
    clear.save(tmp_path / "clear.png")
    assert np.asarray(see_mask(tmp_path / "clear.png")).tolist() == [[0, 255, 0]]
    Image.new("RGBA", (2, 1), (255, 255, 255, 255)).save(tmp_path / "solid.png")
    assert np.asarray(see_mask(tmp_path / "solid.png")).tolist() == [[255, 255]]


def test_what_is_no_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("F", (4, 4)).save(tmp_path / "float.tiff")
    (tmp_path / "words.png").write_text("not a picture")
    Image.new("RGB", (64, 64), "red").save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:-40])
    for name, said in (("float.tiff", "fractions"), ("words.png", "no picture"), ("none.png", "does not exist")):
        with pytest.raises(FileError, match=said):
            look_at(tmp_path / name)
    with pytest.raises(FileError, match="cannot read"):
        see(tmp_path / "cut.png")
    monkeypatch.setattr(files, "FILE_BYTES", 10)
    with pytest.raises(FileError, match="the limit is"):
        look_at(tmp_path / "whole.png")
