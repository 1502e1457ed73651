"""A picture file of unknown making: what its head says, and its pixels as 8-bit sRGB.

What comes of the odd ones:

    cut short, damaged      Unreadable, saying how
    too many pixels         Unreadable from its head alone: never decoded (a decompression bomb)
    EXIF-rotated            turned upright; sizes are those of the upright picture
    CMYK, ICC profile       converted to sRGB through the profile; by the plain formula where none is usable
    16 bits a channel       the upper 8 bits
    32 bits a pixel, float  Unreadable: no range is agreed upon
    animated, many pages    the first frame
    transparent             laid on white, then as above

A damaged stretch in the middle of a JPEG that libjpeg skips with a mere warning is not noticed.

Heavy ring: Pillow, numpy.
"""

from __future__ import annotations

import contextlib
import io
import struct
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageCms, ImageOps

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "AVIF", "BMP")  # nothing that runs programs or asks other programs
SUFFIXES = frozenset(
    (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".tif", ".tiff", ".avif", ".bmp")
)  # of files and tar members that are taken for pictures, in lower case
PICTURE_BYTES = 1_000_000_000  # of a picture's file: 100 million pixels of 8 bytes, and room
MAX_PIXELS = 100_000_000  # decoded: 300 MB of RGB, and Pillow may hold it twice
# What Pillow raises for damaged files.
_DAMAGE = (OSError, ValueError, SyntaxError, EOFError, KeyError, TypeError, IndexError, OverflowError, struct.error)
_ORIENTATION = 0x0112


class Unreadable(Exception):
    """A file that is no usable picture; the text says why. Never shown as an error: it becomes a row's `error`."""


@dataclass(frozen=True)
class Head:
    """What a file says about itself before anything is decoded."""

    width: int  # pixels, upright
    height: int  # pixels, upright
    format: str  # Pillow's name: "JPEG", "PNG", …
    mode: str  # Pillow's name of the stored pixels: "RGB", "CMYK", "I;16", …
    orientation: int  # EXIF, 1 (upright) to 8
    animated: bool  # more than one frame or page


def read_head(data: bytes, max_pixels: int = MAX_PIXELS) -> tuple[Head, str | None]:
    """The head, and why the picture cannot be used (None: nothing speaks against it yet).

    Raises Unreadable where not even the head can be read.
    """
    with _opened(data) as image:
        try:
            orientation = int(image.getexif().get(_ORIENTATION, 1))
        except _DAMAGE:  # damaged EXIF: viewers show the picture as it is stored
            orientation = 1
        orientation = orientation if 1 <= orientation <= 8 else 1
        width, height = image.size if orientation < 5 else image.size[::-1]
        reason = _forbidden(image, max_pixels)
        # Asking a huge file for its frames may read all of it.
        animated = reason is None and bool(getattr(image, "is_animated", False))
        head = Head(width, height, str(image.format), image.mode, orientation, animated)
    return head, reason


def decode(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The whole picture as upright 8-bit sRGB (mode "RGB"). Raises Unreadable."""
    with _opened(data) as image:
        reason = _forbidden(image, max_pixels)
        if reason is not None:
            raise Unreadable(reason)
        image.load()  # first: a file that is cut short fails here and not in a conversion
        profile = image.info.get("icc_profile")
        try:
            image = ImageOps.exif_transpose(image)
        except _DAMAGE:  # damaged EXIF, as above
            pass
        if image.mode.startswith("I;16"):
            return to_srgb(Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)), profile)
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            rgba = image.convert("RGBA")
            white = Image.new("RGBA", rgba.size, "white")
            image = Image.alpha_composite(white, rgba).convert("RGB")
        if image.mode == "P":
            image = image.convert("RGB")
        return to_srgb(image, profile)


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Colours of `profile` as sRGB; the plain conversion where there is none, or one that cannot be used."""
    # Most profiles are sRGB itself: its name stands near the start, and there is nothing to convert.
    if profile and image.mode in ("RGB", "CMYK", "L") and not (image.mode == "RGB" and b"sRGB" in profile[:1024]):
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
            if converted is not None:
                return converted
        except (ImageCms.PyCMSError, *_DAMAGE):  # damaged, or of another colour model: as browsers do, without it
            pass
    return image if image.mode == "RGB" else image.convert("RGB")


def _forbidden(image: Image.Image, max_pixels: int) -> str | None:
    if image.width * image.height > max_pixels:
        return f"{image.width}x{image.height} is more than {max_pixels:,} pixels: not decoded"
    if image.mode in ("I", "F"):
        return f"pixels of 32 bits (mode {image.mode}) have no agreed range"
    return None


# Pillow refuses to open a bomb, and then its size could not be recorded: `_forbidden` stands in for its limit, which is
# one for all threads.
_PILLOWS_GUARD = threading.Lock()


@contextlib.contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
    """The lazily opened image; whatever Pillow finds damaged while it is used becomes Unreadable."""
    if not data:
        raise Unreadable("empty file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged metadata, a few lines a picture; what matters is an error
            with _PILLOWS_GUARD:  # only the opening asks it
                limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
                try:
                    image = Image.open(io.BytesIO(data), formats=FORMATS)
                finally:
                    Image.MAX_IMAGE_PIXELS = limit
            with image:
                yield image
    except Image.UnidentifiedImageError:
        raise Unreadable("no picture of a known format") from None
    except Unreadable:
        raise
    except (*_DAMAGE, MemoryError, Image.DecompressionBombError) as error:
        raise Unreadable(str(error).split("\n")[0][:200] or type(error).__name__) from None
