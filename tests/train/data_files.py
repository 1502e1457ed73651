"""Pictures of every making, for the tests of the data stages."""

from __future__ import annotations

import io
import struct
import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def noise(width: int, height: int, seed: int = 0, *, smooth: int = 16, low: int = 0, high: int = 255) -> Image.Image:
    """Colour clouds with some grain: `smooth` pixels from one colour to the next, within `low` to `high`."""
    rng = np.random.default_rng(seed)
    size = (-(-height // smooth), -(-width // smooth), 3)
    clouds = Image.fromarray(rng.integers(low, high + 1, size, dtype=np.uint8))
    grain = rng.normal(0, 6, (height, width, 1))
    pixels = np.asarray(clouds.resize((width, height), Image.Resampling.BICUBIC)) + grain
    return Image.fromarray(np.clip(pixels, low, high).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims to be huge; its pixels are missing, so decoding it would fail at once."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def write_tar(path: Path, members: Mapping[str, bytes]) -> bytes:
    """A tar of these members in this order; returns its bytes."""
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path.read_bytes()
