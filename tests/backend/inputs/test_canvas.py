"""What is kept of a picture, to the byte.

Why it can be trusted: the seams of shapes with straight edges are written down as numbers, and every statement about
kept bytes compares arrays, not pictures that look alike.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from backend.errors import FileError
from backend.inputs.canvas import FEATHER, Canvas, blend, open_canvas, seam
from backend.types import Fit, GenerationRequest, InputPicture


def noisy(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def box(width: int, height: int, *places: tuple[int, int, int, int], value: int = 255) -> Image.Image:
    mask = Image.new("L", (width, height), 0)
    for place in places:
        mask.paste(value, place)
    return mask


def test_the_seam_rises_inwards() -> None:
    """From the edge over FEATHER pixels to all; nothing outside; no edge where the picture ends."""
    row = np.asarray(seam(box(64, 48, (20, 0, 64, 48))))[24]
    assert not row[:20].any() and (row[20 + FEATHER - 1 :] == 255).all()
    assert list(row[20 : 20 + FEATHER]) == [round(255 * (k + 1) / FEATHER) for k in range(FEATHER)]


def test_a_thin_stroke_is_drawn_in_its_middle() -> None:
    rise = np.asarray(seam(box(64, 48, (30, 0, 33, 48))))[24]
    assert list(rise[29:34]) == [0, 128, 255, 128, 0]
    assert np.asarray(seam(box(64, 48, (30, 0, 31, 48))))[24, 30] == 255


def test_grey_is_no_more_than_its_grey() -> None:
    assert np.asarray(seam(box(64, 48, (0, 0, 64, 48), value=100))).max() == 100


def test_what_the_mask_keeps_is_kept_to_the_byte() -> None:
    old, new = noisy(64, 48), noisy(64, 48, seed=1)
    mask = box(64, 48, (10, 10, 40, 40), (50, 5, 53, 45))
    done, a, b = (np.asarray(p) for p in (Canvas(picture=old, mask=mask).restore(new), old, new))
    outside, inside = np.asarray(mask) == 0, np.asarray(seam(mask)) == 255
    assert (done[outside] == a[outside]).all() and (done[inside] == b[inside]).all() and inside.any()
    assert Canvas(picture=old, mask=None).restore(new) is new


def test_blend_is_exact_at_both_ends_and_between_them_in_between() -> None:
    old, new = noisy(8, 8), noisy(8, 8, seed=1)
    assert blend(old, new, Image.new("L", (8, 8), 0)).tobytes() == old.tobytes()
    assert blend(old, new, Image.new("L", (8, 8), 255)).tobytes() == new.tobytes()
    half = np.asarray(blend(old, new, Image.new("L", (8, 8), 51))).astype(float)
    assert np.abs(half - (np.asarray(old) * 0.8 + np.asarray(new) * 0.2)).max() <= 0.5


def test_cells_are_drawn_where_any_pixel_is() -> None:
    cells = Canvas(picture=noisy(64, 48), mask=box(64, 48, (15, 23, 16, 24))).cells()
    assert cells is not None and cells.size == (8, 6)
    assert [tuple(place) for place in np.argwhere(np.asarray(cells))] == [(2, 1)]
    assert Canvas(picture=noisy(64, 48), mask=None).cells() is None


# -------------------------------------------------------------------------------------------------------------- opening


def request(folder: Path, picture: Image.Image, size: tuple[int, int], fit: Fit, mask: Image.Image | None = None):
    def saved(image: Image.Image, name: str) -> InputPicture:
        image.save(folder / name)
        return InputPicture(path=str(folder / name), sha256=hashlib.sha256((folder / name).read_bytes()).hexdigest())

    return GenerationRequest(
        prompt="x", model="", seeds=(1,), width=size[0], height=size[1], steps=2, guidance=1.0,
        init=saved(picture, "a.png"), mask=None if mask is None else saved(mask, "mask.png"), strength=1.0, fit=fit,
    )  # fmt: skip


def test_a_picture_of_the_size_is_taken_as_it_is(tmp_path: Path) -> None:
    picture = noisy(64, 48)
    assert open_canvas(request(tmp_path, picture, (64, 48), Fit.scale)).picture.tobytes() == picture.tobytes()


def test_a_picture_of_another_size_covers_it(tmp_path: Path) -> None:
    """Twice as wide a picture loses its left and right quarter; the mask goes with it."""
    picture = Image.new("RGB", (256, 64))
    picture.paste("white", (64, 0, 192, 64))
    canvas = open_canvas(request(tmp_path, picture, (64, 32), Fit.scale, box(256, 64, (64, 0, 192, 64))))
    assert canvas.mask is not None and canvas.mask.getextrema() == (255, 255)
    assert np.asarray(canvas.picture)[:, 2:-2].min() > 240


def test_a_picture_is_extended(tmp_path: Path) -> None:
    """In the middle, on the grid; kept to the byte but for the rim where it goes on."""
    picture = noisy(64, 48)
    canvas = open_canvas(request(tmp_path, picture, (112, 48), Fit.extend, box(64, 48, (30, 20, 34, 24))))
    whole, mask = np.asarray(canvas.picture), np.asarray(canvas.mask)
    assert (whole[:, 16:80] == np.asarray(picture)).all()  # 24 on the left would be off the grid
    kept = np.zeros((48, 112), bool)
    kept[:, 16 + FEATHER : 80 - FEATHER] = True
    kept[20:24, 46:50] = False
    assert ((mask == 0) == kept).all()
    done = np.asarray(canvas.restore(noisy(112, 48, seed=1)))
    assert (done[kept] == whole[kept]).all()


def test_a_picture_that_changed_or_went(tmp_path: Path) -> None:
    wanted = request(tmp_path, noisy(64, 48), (64, 48), Fit.scale)
    noisy(64, 48, seed=2).save(tmp_path / "a.png")
    with pytest.raises(FileError, match="has changed"):
        open_canvas(wanted)
    (tmp_path / "a.png").unlink()
    with pytest.raises(FileError, match="cannot read"):
        open_canvas(wanted)
