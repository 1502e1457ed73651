"""The picture that another begins from, as large as that will be; what of it is drawn anew, and what is put back.

Where something is kept, it is kept twice: its latent is held to the picture's own at every step, so that what is drawn
fits it, and at the end its very bytes are put back. Between drawn and kept lies a seam FEATHER pixels wide, inside what
is drawn: no byte outside the mask changes.

Shapes: h = H / 16 and w = W / 16 for a picture of H x W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageFilter, ImageOps

from backend.checkpoints.identity import known_sha256
from backend.disk import read_error
from backend.errors import FileError
from backend.inputs.files import see, see_mask
from backend.sizes import GRID
from backend.types import Fit, GenerationRequest, InputPicture

FEATHER = 8  # pixels from the edge of a mask to where nothing of the old picture is left
CELL = 8  # pixels of one place of the latent


@dataclass(frozen=True, kw_only=True)
class Canvas:
    """A picture to begin from."""

    picture: Image.Image  # RGB, W x H
    mask: Image.Image | None  # grey, W x H: 0 is kept; None: all is drawn

    def cells(self) -> Image.Image | None:
        """The mask as the latent has it, 2w x 2h: white wherever a pixel of a place is drawn. None: everywhere."""
        if self.mask is None:
            return None
        drawn = np.asarray(self.mask) > 0
        height, width = drawn.shape
        whole = drawn.reshape(height // CELL, CELL, width // CELL, CELL).any(axis=(1, 3))
        return Image.fromarray(whole.astype(np.uint8) * 255)

    def restore(self, drawn: Image.Image) -> Image.Image:
        """The drawn picture with every kept byte put back."""
        return drawn if self.mask is None else blend(self.picture, drawn, seam(self.mask))


def open_canvas(request: GenerationRequest) -> Canvas:
    """What a request with an `init` begins from. Raises FileError: gone, changed since it was asked for, cut short."""
    assert request.init is not None
    size = request.width, request.height
    picture = see(_unchanged(request.init))
    mask = None if request.mask is None else see_mask(_unchanged(request.mask))
    if request.fit is Fit.extend:
        return _extended(picture, mask, size)
    if picture.size != size:
        picture = ImageOps.fit(picture, size, Image.Resampling.LANCZOS)
        mask = mask and ImageOps.fit(mask, size, Image.Resampling.BOX)
    return Canvas(picture=picture, mask=mask)


def enlarge(picture: Image.Image, width: int, height: int) -> Image.Image:
    """A picture as the second pass begins from it."""
    return picture.resize((width, height), Image.Resampling.LANCZOS)


def seam(mask: Image.Image) -> Image.Image:
    """How much of the drawn picture is seen, 0 to 255: 0 outside the mask, rising inwards over FEATHER pixels.

    In a stroke that is too thin for the whole rise, it is as steep as it takes to be 255 in the middle. Where the mask
    is grey, no more than its grey.
    """
    left = np.asarray(mask) > 0
    depth = np.zeros(left.shape, np.uint8)
    for _ in range(FEATHER):
        depth += left
        left = _shrunk(left)
    around = Image.fromarray(depth).filter(ImageFilter.MaxFilter(2 * FEATHER + 1))
    share = depth / np.maximum(np.asarray(around), 1)
    return Image.fromarray(np.round(share * np.asarray(mask)).astype(np.uint8))


def _shrunk(inside: np.ndarray) -> np.ndarray:
    """Without the pixels that touch one outside; the picture's own border is none."""
    wide = np.pad(inside, 1, mode="edge")
    rows = wide[:-2] & wide[1:-1] & wide[2:]
    return rows[:, :-2] & rows[:, 1:-1] & rows[:, 2:]


def blend(kept: Image.Image, drawn: Image.Image, share: Image.Image) -> Image.Image:
    """kept + (drawn - kept) share / 255, rounded: the very bytes of one of them at 0 and at 255."""
    a, b = (np.asarray(image).astype(np.int32) for image in (kept, drawn))
    s = np.asarray(share).astype(np.int32)[:, :, None]
    return Image.fromarray(((a * (255 - s) + b * s + 127) // 255).astype(np.uint8))


def _extended(picture: Image.Image, mask: Image.Image | None, size: tuple[int, int]) -> Canvas:
    """The picture in the middle, on the grid of the latent; around it its own border, which is drawn over.

    So is the rim of the picture where it goes on, FEATHER pixels wide: a border that was once the picture's end would
    show as a line.
    """
    left, top = ((whole - own) // 2 // GRID * GRID for whole, own in zip(size, picture.size, strict=True))
    right, bottom = size[0] - left - picture.width, size[1] - top - picture.height
    around = np.pad(np.asarray(picture), ((top, bottom), (left, right), (0, 0)), mode="edge")
    beyond = Image.new("L", size, 255)
    rim = [FEATHER if grown else 0 for grown in (left, top, right, bottom)]
    kept = (left + rim[0], top + rim[1], left + picture.width - rim[2], top + picture.height - rim[3])
    if kept[0] < kept[2] and kept[1] < kept[3]:
        beyond.paste(0, kept)
    if mask is not None:
        own = Image.new("L", size, 0)
        own.paste(mask, (left, top))
        beyond = ImageChops.lighter(beyond, own)
    return Canvas(picture=Image.fromarray(around), mask=beyond)


def _unchanged(wanted: InputPicture) -> Path:
    path = Path(wanted.path)
    try:
        found = known_sha256(path)
    except OSError as error:
        raise read_error(path, error) from error
    if found != wanted.sha256:
        raise FileError(f"{path} has changed since it was asked for", hint="run it again")
    return path
