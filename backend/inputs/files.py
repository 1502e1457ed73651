"""Picture files that are read: opened within bounds, and their pixels as 8-bit RGB whatever they are stored as.

Heavy ring: Pillow, imported inside the functions.
"""

from __future__ import annotations

import struct
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from backend.disk import meant_instead, read_error
from backend.errors import FileError, human_bytes

if TYPE_CHECKING:
    from PIL import Image

FILE_BYTES = 512 << 20  # of a picture that another begins from
READABLE = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "AVIF", "BMP")
# What Pillow raises for damaged files, found by feeding it a few thousand of them.
DAMAGE = (OSError, ValueError, SyntaxError, EOFError, KeyError, TypeError, IndexError, OverflowError, struct.error)
_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N", "I")
_ORIENTATION, _TURNED = 0x0112, (5, 6, 7, 8)  # EXIF's, and those that exchange width and height


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What a picture's header says of how it is seen."""

    width: int  # pixels, as a person sees it
    height: int  # pixels
    frames: int  # 1: it does not move
    mode: str  # Pillow's name of how a pixel is stored


def open_image(path: Path) -> Image.Image:
    """Open a picture file; pixels are decoded later. Raises FileError for anything that is no picture."""
    from PIL import Image, UnidentifiedImageError

    # Pillow warns of damaged EXIF on stderr and goes on; what can be read is reported, the rest is nobody's concern.
    warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
    try:
        if not path.is_file():
            what = "is a folder" if path.is_dir() else "does not exist" if not path.exists() else "is no regular file"
            hint = meant_instead(path) if what == "does not exist" else None
            raise FileError(f"{path} {what}", hint=hint or "a picture is meant: PNG, JPEG or WebP")
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return Image.open(path, formats=READABLE)
    except UnidentifiedImageError:
        raise FileError(f"{path} is no picture that lens can read", hint="known: PNG, JPEG, WebP") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise FileError(f"{path} claims too many pixels to be opened safely") from error
    except DAMAGE as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise FileError(f"cannot read {path}: {reason}") from error


def load_pixels(path: Path) -> Image.Image:
    """The decoded RGB picture as it is stored. Raises FileError, also for a file cut short."""
    with open_image(path) as image:
        try:
            return image.convert("RGB")
        except DAMAGE as error:
            raise FileError(f"cannot read {path}: {error}") from error


# As a person sees it -------------------------------------------------------------------------------------------------


def look_at(path: Path) -> Shape:
    """The shape of a picture that another may begin from. Raises FileError: no picture, or too large a file."""
    try:
        size = path.stat().st_size if path.is_file() else 0
    except OSError as error:
        raise read_error(path, error) from error
    if size > FILE_BYTES:
        raise FileError(f"{path} has {human_bytes(size)}; the limit is {human_bytes(FILE_BYTES)}")
    with open_image(path) as image:
        try:
            turned = image.getexif().get(_ORIENTATION) in _TURNED
        except DAMAGE:
            turned = False
        width, height = (image.height, image.width) if turned else image.size
        frames = int(getattr(image, "n_frames", 1))
        if image.mode == "F":
            raise FileError(f"{path} holds fractions, whose white nobody knows", hint="save it with 8 or 16 bits")
        return Shape(width=width, height=height, frames=frames, mode=image.mode)


def see(path: Path) -> Image.Image:
    """The first frame as RGB: turned as its EXIF says, 16 bits rounded to 8, what is transparent before white.

    A picture that is stored as 8-bit RGB keeps every byte. Raises FileError.
    """
    image = _upright(path)
    if image.mode in _SIXTEEN_BITS:
        return _eight_bits(image).convert("RGB")
    if image.has_transparency_data:
        from PIL import Image

        whole = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", whole.size, "white"), whole).convert("RGB")
    return image.convert("RGB")


def see_mask(path: Path) -> Image.Image:
    """A mask as 8-bit grey: white where something is to be drawn. Where it has transparent pixels, those are white and
    all others black, as in OpenAI's edits. Raises FileError."""
    from PIL import ImageOps

    image = _upright(path)
    if image.has_transparency_data:
        alpha = image.convert("RGBA").getchannel("A")
        if alpha.getextrema()[0] != 255:
            return ImageOps.invert(alpha)
    return _eight_bits(image) if image.mode in _SIXTEEN_BITS else image.convert("RGB").convert("L")


def _upright(path: Path) -> Image.Image:
    from PIL import ImageOps

    with open_image(path) as image:
        try:
            image.load()
        except DAMAGE as error:
            raise FileError(f"cannot read {path}: {error}") from error
        try:
            return ImageOps.exif_transpose(image) or image
        except DAMAGE:
            return image.copy()  # its EXIF is damaged: as it is stored


def _eight_bits(image: Image.Image) -> Image.Image:
    """16 bits of grey as 8; Pillow would cut off what is above 255."""
    import numpy as np
    from PIL import Image

    values = np.asarray(image).astype(np.float64).clip(0, 65535)
    return Image.fromarray(np.round(values / 257).astype(np.uint8))
