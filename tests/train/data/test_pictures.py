"""Pictures of odd making: each comes out as is stated in `train.data.pictures`, or is refused with a reason.

What is trusted: pixels set here, and Pillow's encoders.
"""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageCms

from tests.train.data_files import bomb, encoded, noise
from train.data.pictures import Unreadable, decode, read_head

_HALVES = np.zeros((4, 6, 3), np.uint8)  # the left half red, the right half blue
_HALVES[:, :3], _HALVES[:, 3:] = (255, 0, 0), (0, 0, 255)


def _pixels(data: bytes) -> np.ndarray:
    image = decode(data)
    assert image.mode == "RGB"
    return np.asarray(image)


def test_a_plain_picture_is_untouched() -> None:
    data = encoded(Image.fromarray(_HALVES), "PNG")
    head, reason = read_head(data)
    assert (head.width, head.height, head.format, head.mode, head.orientation, head.animated) == (
        6, 4, "PNG", "RGB", 1, False,
    )  # fmt: skip
    assert reason is None
    assert (_pixels(data) == _HALVES).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_undone(orientation: int) -> None:
    """EXIF's eight ways as NumPy states them: what was stored is what the camera saw, turned back."""
    store = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),  # shown by turning it clockwise, so stored turned anticlockwise
        7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
        8: lambda a: np.rot90(a, 3),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(np.ascontiguousarray(store(_HALVES))), "PNG", exif=exif)
    head, _ = read_head(data)
    assert (head.width, head.height, head.orientation) == (6, 4, orientation)
    assert (_pixels(data) == _HALVES).all()


def test_an_orientation_that_does_not_exist_is_none() -> None:
    exif = Image.Exif()
    exif[0x0112] = 99
    data = encoded(Image.fromarray(_HALVES), "PNG", exif=exif)
    assert read_head(data)[0].orientation == 1
    assert (_pixels(data) == _HALVES).all()


def test_a_bomb_is_measured_and_never_decoded() -> None:
    data = bomb(60_000, 60_000)
    head, reason = read_head(data)
    assert (head.width, head.height) == (60_000, 60_000)
    assert reason is not None and "60000x60000" in reason and "not decoded" in reason
    with pytest.raises(Unreadable, match="not decoded"):
        decode(data)
    assert Image.MAX_IMAGE_PIXELS is not None  # Pillow's own guard is back for everybody else
    assert read_head(encoded(Image.new("RGB", (30, 40)), "PNG"), max_pixels=1199)[1] is not None
    assert read_head(encoded(Image.new("RGB", (30, 40)), "PNG"), max_pixels=1200)[1] is None


def test_one_pixel_is_a_picture() -> None:
    data = encoded(Image.new("RGB", (1, 1), (1, 2, 3)), "PNG")
    assert (read_head(data)[0].width, read_head(data)[1]) == (1, None)
    assert _pixels(data).tolist() == [[[1, 2, 3]]]


def test_cmyk_without_a_profile() -> None:
    """No ink is white, all of one ink takes its complement away. (JPEG is lossy, hence the tolerance.)"""
    inks = [(0, 0, 0, 0), (255, 0, 0, 0), (0, 255, 0, 0), (0, 0, 255, 0), (0, 0, 0, 255)]
    expected = [(255, 255, 255), (0, 255, 255), (255, 0, 255), (255, 255, 0), (0, 0, 0)]
    for ink, colour in zip(inks, expected, strict=True):
        data = encoded(Image.new("CMYK", (16, 16), ink), "JPEG", quality=100)
        assert read_head(data)[0].mode == "CMYK"
        assert np.abs(_pixels(data).astype(int) - colour).max() <= 2


def test_a_profile_is_applied_and_a_damaged_one_ignored() -> None:
    """Of a linear-light profile, 50 % grey is 188 in sRGB (IEC 61966-2-1: 1.055 x 0.5^(1/2.4) - 0.055 = 0.735)."""
    grey = Image.new("RGB", (8, 8), (128, 128, 128))
    linear = _linear_profile()
    assert np.abs(_pixels(encoded(grey, "PNG", icc_profile=linear)).astype(int) - 188).max() <= 2
    assert (_pixels(encoded(grey, "PNG", icc_profile=linear[:200])) == 128).all()
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert (_pixels(encoded(grey, "PNG", icc_profile=srgb)) == 128).all()
    for other in (grey.convert("RGBA"), grey.quantize(4)):  # screenshots of some systems; palettes
        assert np.abs(_pixels(encoded(other, "PNG", icc_profile=linear)).astype(int) - 188).max() <= 2
    half = grey.convert("RGBA")
    half.putalpha(0)
    assert (_pixels(encoded(half, "PNG", icc_profile=linear)) >= 254).all()  # white stays white


def _linear_profile() -> bytes:
    """sRGB's own profile with the curve of each channel replaced by the identity (a `curv` of no entries)."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for i in range(int.from_bytes(data[128:132], "big")):
        tag = 132 + 12 * i
        if data[tag : tag + 4] in (b"rTRC", b"gTRC", b"bTRC"):
            offset = int.from_bytes(data[tag + 4 : tag + 8], "big")
            data[offset : offset + 12] = b"curv" + bytes(8)
            data[tag + 8 : tag + 12] = (12).to_bytes(4, "big")
        if data[tag : tag + 4] == b"desc":  # its name would say that there is nothing to convert
            offset, size = (int.from_bytes(data[tag + k : tag + k + 4], "big") for k in (4, 8))
            data[offset : offset + size] = bytes(data[offset : offset + size]).replace(b"s\0R\0G\0B", b"l\0i\0n\0e")
    return bytes(data)


def test_sixteen_bits_keep_the_upper_eight() -> None:
    values = np.array([[0, 255, 256, 32_768, 65_535]], np.uint16)
    data = encoded(Image.fromarray(values), "PNG")
    assert read_head(data)[0].mode == "I;16"
    assert _pixels(data)[0, :, 0].tolist() == [0, 0, 1, 128, 255]
    assert _pixels(encoded(Image.fromarray(values), "TIFF"))[0, :, 0].tolist() == [0, 0, 1, 128, 255]


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_pixels_of_32_bits_are_refused(kind: type[np.generic]) -> None:
    data = encoded(Image.fromarray(np.ones((4, 4), kind)), "TIFF")
    assert "32 bits" in (read_head(data)[1] or "")
    with pytest.raises(Unreadable, match="32 bits"):
        decode(data)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animation_the_first_frame_is_used(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    assert read_head(data)[0].animated
    assert np.abs(_pixels(data).astype(int) - (255, 0, 0)).max() <= 2


def test_transparency_is_laid_on_white() -> None:
    half = Image.new("RGBA", (2, 2), (255, 0, 0, 0))
    half.putpixel((0, 0), (255, 0, 0, 255))
    pixels = _pixels(encoded(half, "PNG"))
    assert pixels[0, 0].tolist() == [255, 0, 0]
    assert pixels[1, 1].tolist() == [255, 255, 255]
    palette = Image.new("P", (2, 2), 0)
    palette.putpalette([9, 9, 9])
    assert _pixels(encoded(palette, "PNG", transparency=0))[0, 0].tolist() == [255, 255, 255]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"])
def test_what_is_cut_short_is_refused(kind: str) -> None:
    data = encoded(noise(64, 64), kind)
    decode(data)
    with pytest.raises(Unreadable):
        decode(data[: len(data) // 2])


def test_any_damage_is_unreadable_and_nothing_worse() -> None:
    """Random bytes in random places of every format: a picture or Unreadable, never another exception."""
    rng = np.random.default_rng(0)
    refused = 0
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"):
        whole = encoded(noise(24, 24), kind)
        for _ in range(60):
            data = bytearray(whole)
            for at in rng.integers(0, len(data), rng.integers(1, 12)):
                data[at] = rng.integers(256)
            try:
                read_head(bytes(data), 10_000)
                decode(bytes(data), 10_000)
            except Unreadable as reason:
                refused += 1
                assert str(reason)
    assert refused > 60


@pytest.mark.parametrize("data", [b"", b"hello", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"])
def test_what_is_no_picture(data: bytes) -> None:
    with pytest.raises(Unreadable, match=r"empty file|no picture of a known format"):
        read_head(data)


def test_frames_are_not_counted_in_what_is_refused() -> None:
    """A TIFF of 32-bit pages: its head is read, its pages are not."""
    pages = [Image.fromarray(np.ones((4, 4), np.float32))] * 3
    out = io.BytesIO()
    pages[0].save(out, "TIFF", save_all=True, append_images=pages[1:])
    assert read_head(out.getvalue())[0].animated is False
