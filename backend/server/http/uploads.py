"""Pictures that come with a request: checked within bounds, and kept as files that only this server names.

A file is below the spool, in the folder of its job, and goes when the job has ended. What it holds are the bytes that
came, unless a client's program means something else with a mask than we do.

Heavy ring: Pillow, imported inside the functions.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from backend.disk import make_folder, write_new
from backend.errors import UsageError, human_bytes
from backend.inputs.files import DAMAGE, see_mask

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp"}  # of the formats that are taken
MOST_BYTES = 50_000_000  # of one picture; OpenAI takes as many
MOST_MEGAPIXELS = 40  # of one picture: a camera's, and an eighth of a gigabyte as RGB


@dataclass(frozen=True, kw_only=True)
class Uploads:
    """What a job begins from."""

    image: Path
    mask: Path | None = None  # drawn where it is white or transparent; None: everywhere


def keep_edit(folder: Path, image: bytes, mask: bytes | None) -> Uploads:
    """OpenAI's pictures: what is transparent in the mask is drawn anew, or without one in the picture itself.

    A mask in which nothing is transparent is read as ours are: white is drawn. Raises UsageError, FileError.
    """
    picture = open_upload(image, "image")
    path = _keep(folder, "image", picture, image)
    if mask is not None:
        return Uploads(image=path, mask=_keep(folder, "mask", open_upload(mask, "mask"), mask))
    return Uploads(image=path, mask=path if is_transparent(picture) else None)


def keep_img2img(folder: Path, image: bytes, mask: bytes | None, *, invert: bool) -> Uploads:
    """A1111's pictures: white in the mask is drawn anew; of one that is transparent somewhere, what is opaque is.

    `invert`: the other way round. Raises UsageError, FileError.
    """
    path = _keep(folder, "image", open_upload(image, "init_images"), image)
    if mask is None:
        return Uploads(image=path)
    from PIL import ImageOps

    picture = open_upload(mask, "mask")
    kept = _keep(folder, "mask", picture, mask)
    if is_transparent(picture) != invert:  # the other way round than it would be read
        buffer = io.BytesIO()
        ImageOps.invert(see_mask(kept)).save(buffer, format="PNG", compress_level=1)
        kept = write_new(kept.with_suffix(".png"), buffer.getvalue(), private=True)
    return Uploads(image=path, mask=kept)


def open_upload(data: bytes, name: str) -> Image.Image:
    """A picture that somebody sent, decoded. Raises UsageError, which calls it `name`."""
    from PIL import Image, UnidentifiedImageError

    if len(data) > MOST_BYTES:
        raise UsageError(f"{name} has {human_bytes(len(data))}; the limit is {human_bytes(MOST_BYTES)}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged EXIF, and of a size that is looked at below
            picture = Image.open(io.BytesIO(data), formats=tuple(SUFFIXES))
            if picture.width * picture.height > MOST_MEGAPIXELS * 10**6:
                raise UsageError(
                    f"{name} has {picture.width}x{picture.height} pixels; the limit is {MOST_MEGAPIXELS} megapixels"
                )
            picture.load()
    except UnidentifiedImageError:
        raise UsageError(f"{name} is no picture that this server takes", hint="PNG, JPEG or WebP") from None
    except Image.DecompressionBombError:
        raise UsageError(f"{name} claims too many pixels; the limit is {MOST_MEGAPIXELS} megapixels") from None
    except DAMAGE as error:
        raise UsageError(f"{name} is damaged: {error}"[:300]) from error
    return picture


def is_transparent(picture: Image.Image) -> bool:
    """Whether anything of it is."""
    return picture.has_transparency_data and picture.convert("RGBA").getchannel("A").getextrema()[0] != 255


def _keep(folder: Path, stem: str, picture: Image.Image, data: bytes) -> Path:
    make_folder(folder)
    return write_new(folder / f"{stem}{SUFFIXES[str(picture.format)]}", data, private=True)
