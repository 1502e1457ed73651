"""Pictures on disk, both ways: `save_image` writes a finished picture with its record, `read_metadata` gives it back.

PNG: text chunks `parameters` and `lens`. JPEG and WebP: the A1111 text in EXIF UserComment, the record in XMP. All
three: the IPTC DigitalSourceType in XMP and the software's name. The grammar is in `backend.picture.metadata`.

Heavy ring: Pillow, imported inside the functions.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backend.disk import read_error, write_new
from backend.errors import FileError
from backend.events import Generation
from backend.inputs.files import DAMAGE, open_image
from backend.picture import metadata
from backend.types import ImageFormat

if TYPE_CHECKING:
    from PIL import Image

JPEG_QUALITY = 95  # of 100
XMP_LIMIT = 65_000  # bytes in a JPEG: one segment holds 65,533 including its header
_EXIF_SOFTWARE, _EXIF_SUBTABLE, _EXIF_USER_COMMENT = 0x0131, 0x8769, 0x9286
_UTF16 = b"UNICODE\0"


@dataclass(frozen=True, kw_only=True)
class ImageMetadata:
    """What a picture file says about itself; nothing of it is trusted further than its type."""

    format: str  # "PNG", "JPEG", "WEBP", …
    width: int  # pixels
    height: int  # pixels
    generator: str | None = None  # "lens", "AUTOMATIC1111", "ComfyUI", …; None: no parameters found
    record: Mapping[str, Any] | None = None  # ours only
    parameters: str | None = None  # the A1111 text
    fields: Mapping[str, str] = field(default_factory=dict[str, str])  # prompt, negative_prompt, Steps, Seed, …
    source_type: str | None = None  # IPTC DigitalSourceType


def pixel_sha256(image: Image.Image) -> str:
    """Identity of the decoded pixels, as written into the record."""
    rgb = image.convert("RGB")
    return metadata.pixel_sha256(rgb.size, rgb.tobytes())


def encode(image: Image.Image, format: ImageFormat, *, quality: int | None, record: Mapping[str, Any] | None) -> bytes:  # noqa: A002
    """A picture file as bytes. `quality` 1..100, None: JPEG 95, WebP lossless; `record` None: no metadata at all.

    Raises FileError where a JPEG cannot hold so long a description.
    """
    buffer = io.BytesIO()
    options: dict[str, Any]
    if format is ImageFormat.png:
        options = {"format": "PNG", "pnginfo": _png_chunks(record)} if record else {"format": "PNG"}
    elif format is ImageFormat.jpeg:
        # 4:4:4: halved colour resolution is visible on drawn outlines and rendered words.
        options = {"format": "JPEG", "quality": quality or JPEG_QUALITY, "subsampling": 0, "optimize": True}
    else:
        options = {"format": "WEBP", "lossless": quality is None, "quality": quality or 80, "method": 4}
    if record and format is not ImageFormat.png:
        options["xmp"] = metadata.xmp_packet(metadata.dump_record(record), metadata.source_type(record))
        options["exif"] = _exif(record)
        if format is ImageFormat.jpeg and max(len(options["xmp"]), len(options["exif"])) > XMP_LIMIT:
            raise FileError("a JPEG cannot hold so long a description", hint="use --format png, or --no-metadata")
    image.convert("RGB").save(buffer, **options)
    return buffer.getvalue()


def save_image(
    generation: Generation,
    path: Path,
    *,
    format: ImageFormat,  # noqa: A002
    quality: int | None = None,
    with_metadata: bool = True,
    parent_id: str | None = None,
    signed: bool = False,
) -> tuple[Path, dict[str, Any]]:
    """Write a finished picture under the first free name; returns that name and the record (also where not written).

    Atomic and exclusive: another process's file is never replaced, a full disk leaves nothing. Raises FileError.
    """
    record = metadata.make_record(generation, pixels=pixel_sha256(generation.image), parent_id=parent_id)
    data = encode(generation.image, format, quality=quality, record=record if with_metadata else None)
    if signed:
        from backend.picture.credentials import sign  # a library that few have

        data = sign(data, format, record)
    return write_new(path, data), record


def read_metadata(path: Path) -> ImageMetadata:
    """What a picture says about how it was made, by us or by other tools. Raises FileError. Loads no model."""
    with open_image(path) as image:
        packet = image.info.get("xmp") or b""
        packet = packet.encode() if isinstance(packet, str) else bytes(packet)
        written = image.info.get("lens") if image.format == "PNG" else None
        text = written if isinstance(written, str) else metadata.record_in_xmp(packet)
        record = metadata.load_record(text, str(path)) if text else None
        parameters = _parameters(image)
        generator, fields = _foreign(image, parameters)
        return ImageMetadata(
            format=image.format or "?",
            width=image.width,
            height=image.height,
            generator="lens" if record is not None else generator,
            record=record,
            parameters=parameters,
            fields=fields,
            source_type=metadata.source_type_in_xmp(packet),
        )


def loses_nothing(path: Path) -> bool:
    """Whether the file holds the very pixels it was given: a PNG, or a WebP that says so. Raises FileError."""
    with open_image(path) as image:
        kind = image.format
    if kind != "WEBP":
        return kind == "PNG"
    try:
        return b"VP8L" in _riff_chunks(path.read_bytes())
    except OSError as error:
        raise read_error(path, error) from error


def _riff_chunks(data: bytes) -> set[bytes]:
    """The names of a RIFF file's chunks (WebP container specification: name, length, data padded to even)."""
    found: set[bytes] = set()
    place = 12  # after "RIFF", the length and "WEBP"
    while place + 8 <= len(data):
        found.add(data[place : place + 4])
        length = int.from_bytes(data[place + 4 : place + 8], "little")
        place += 8 + length + length % 2
    return found


def psnr(first: Image.Image, second: Image.Image) -> float:
    """Peak signal-to-noise ratio in dB of two RGB pictures of one size; infinite where they are equal."""
    import numpy as np

    difference = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    error = float(np.mean(difference**2))
    return float("inf") if error == 0 else float(10 * np.log10(255.0**2 / error))


def _png_chunks(record: Mapping[str, Any]) -> Any:
    """`parameters`, `lens`, XMP and Software as text chunks, which Pillow writes before the pixels."""
    from PIL.PngImagePlugin import PngInfo

    chunks = PngInfo()
    chunks.add_itxt("parameters", metadata.a1111_text(record))
    chunks.add_itxt("lens", metadata.dump_record(record))
    chunks.add_itxt("XML:com.adobe.xmp", metadata.xmp_packet(None, metadata.source_type(record)).decode())
    chunks.add_text("Software", str(record["software"]))
    return chunks


def _exif(record: Mapping[str, Any]) -> bytes:
    """EXIF with the A1111 text as UserComment (`UNICODE\\0` and big-endian UTF-16) and the software's name."""
    from PIL import Image

    exif = Image.Exif()
    exif[_EXIF_SOFTWARE] = str(record["software"])
    exif.get_ifd(_EXIF_SUBTABLE)[_EXIF_USER_COMMENT] = _UTF16 + metadata.a1111_text(record).encode("utf-16-be")
    return exif.tobytes()


def _parameters(image: Image.Image) -> str | None:
    """The A1111 text of a PNG chunk or an EXIF UserComment."""
    text = image.info.get("parameters")
    if isinstance(text, str):
        return text
    try:
        comment = image.getexif().get_ifd(_EXIF_SUBTABLE).get(_EXIF_USER_COMMENT)
    except DAMAGE:
        return None  # a broken EXIF block says nothing; the record in XMP may still be whole
    if isinstance(comment, bytes) and comment.startswith(_UTF16):
        return comment.removeprefix(_UTF16).decode("utf-16-be", "replace")
    return None


def _foreign(image: Image.Image, parameters: str | None) -> tuple[str | None, dict[str, str]]:
    """(tool, fields) of a picture that another tool made; (None, {}) where nothing is known."""
    if parameters and (fields := metadata.parse_a1111(parameters)):
        return "AUTOMATIC1111 or alike", fields
    from sd_parsers import ParserManager  # knows ComfyUI, InvokeAI, Fooocus, NovelAI

    try:
        found = ParserManager().parse(image)
    except (*DAMAGE, AttributeError, RecursionError):
        return None, {}  # metadata of a kind the reader knows but in a shape it does not: as good as none
    if found is None:
        return None, {}
    fields = {"prompt": found.full_prompt, "negative_prompt": found.full_negative_prompt}
    for sampler in found.samplers:
        fields |= {"Sampler": str(sampler.name), **{key: str(value) for key, value in sampler.parameters.items()}}
        if sampler.model and sampler.model.name:
            fields["Model"] = str(sampler.model.name)
    return found.generator.value, fields
