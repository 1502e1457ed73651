"""Pictures from files, small enough for a screen. What a file holds is hostile until it is checked."""

from __future__ import annotations

import base64
import binascii
import io
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from backend.disk import read_error
from backend.errors import FileError, shown

if TYPE_CHECKING:
    from PIL import Image

SIDE = 1024  # pixels of the longer side that a screen needs at most
PREVIEW_BYTES = 8 << 20
_MOST_PIXELS = 1 << 26  # 8192 x 8192


def load(path: Path, side: int = SIDE) -> Image.Image:
    """The picture in a file, RGB, its longer side at most `side`. Raises FileError."""
    try:
        with path.open("rb") as file:
            return _read(file, side, str(path))
    except OSError as error:
        raise read_error(path, error) from error


def load_bytes(data: bytes, side: int = SIDE) -> Image.Image:
    """The picture in the bytes of a file. Raises FileError."""
    return _read(io.BytesIO(data), side, "a picture of the server")


def preview(text: object) -> Image.Image | None:
    """The picture of a `preview_made` event; None where it holds none."""
    if not isinstance(text, str) or len(text) > PREVIEW_BYTES:
        return None
    try:
        return _read(io.BytesIO(base64.b64decode(text, validate=True)), SIDE, "preview")
    except (FileError, binascii.Error):
        return None


def _read(file: BinaryIO, side: int, where: str) -> Image.Image:
    from PIL import Image

    try:
        with Image.open(file, formats=("PNG", "JPEG", "WEBP")) as image:
            if image.width * image.height > _MOST_PIXELS:
                raise FileError(f"{where}: {image.width}x{image.height} is too large to show")
            image.draft("RGB", (side, side))  # JPEG alone can
            image.load()
            plain = image.convert("RGB")
    except FileError:
        raise
    except Exception as error:
        raise FileError(f"{where} is no picture that can be read: {shown(str(error))}") from error
    plain.thumbnail((side, side), Image.Resampling.BOX)
    return plain
