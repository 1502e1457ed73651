"""Pictures that look the same: scaled, encoded again, a little brighter. 256 bits and 64 colours a picture.

The bits are the signs, against their median, of the 16 x 16 lowest frequencies of the grey picture (a DCT hash); the
colours are the picture in 8 x 8 pixels. Two pictures are the same where few bits differ *and* the colours and the shape
agree: bits alone take all plain pictures for one another, red ones for blue ones.

Pairs are found exactly and without comparing all with all: where at most k bits differ, at least one of k + 1 bands of
bits is equal (there are not enough differences for all bands).

Heavy ring: numpy, Pillow.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

VERSION = 1
BITS = 256
COLOURS = 192  # bytes: 8 x 8 pixels of RGB
_SIDE, _LOW = 64, 16


def look(image: Image.Image) -> tuple[bytes, bytes]:
    """(32 bytes of bits, 192 bytes of colours) of an RGB picture."""
    from PIL import Image

    grey = image.convert("L").resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    waves = _cosines()
    low = waves @ np.asarray(grey, np.float64) @ waves.T
    flat = low.ravel()
    bits = flat > np.median(flat[1:])  # without the mean brightness
    colours = np.asarray(image.resize((8, 8), Image.Resampling.BOX), np.uint8)
    return np.packbits(bits).tobytes(), colours.tobytes()


@functools.cache
def _cosines() -> np.ndarray:
    """(16, 64): the lowest rows of the orthonormal DCT-II."""
    k, x = np.arange(_LOW)[:, None], np.arange(_SIDE)[None]
    waves = np.cos(np.pi * (2 * x + 1) * k / (2 * _SIDE)) * np.sqrt(2 / _SIDE)
    waves[0] /= np.sqrt(2)
    return waves


def alike(
    bits: np.ndarray, colours: np.ndarray, ratios: np.ndarray, *, most_bits: int, most_colour: float
) -> np.ndarray:
    """(m, 2) int64: pairs (later, earlier) that look the same, each once, in no particular order.

    `bits` (n, 32) uint8, `colours` (n, 192) uint8, `ratios` (n,) width over height. `most_bits` of 256 may differ, the
    colours by `most_colour` of 255 on average, the ratios by 2 %.
    """
    pairs = [np.empty((0, 2), np.int64)]
    for band in _bands(bits, most_bits + 1):
        order = np.argsort(band, kind="stable")  # stable: earlier ones first within a group
        ends = np.flatnonzero(np.diff(band[order])) + 1
        groups = np.split(order, ends)
        pairs += [_compare(group, bits, colours, ratios, most_bits, most_colour) for group in groups if len(group) > 1]
    return np.unique(np.concatenate(pairs), axis=0)


def _bands(bits: np.ndarray, count: int) -> list[np.ndarray]:
    """(n,) integers for each of `count` bands that share out all bits: equal where the band's bits are."""
    unpacked = np.unpackbits(bits, axis=1)
    bands: list[np.ndarray] = []
    for columns in np.array_split(np.arange(BITS), count):
        packed = np.ascontiguousarray(np.packbits(unpacked[:, columns], axis=1))
        whole = packed.view(np.dtype((np.void, packed.shape[1]))).ravel()
        bands.append(np.unique(whole, return_inverse=True)[1])
    return bands


def _compare(
    group: np.ndarray, bits: np.ndarray, colours: np.ndarray, ratios: np.ndarray, most_bits: int, most_colour: float
) -> np.ndarray:
    found = [np.empty((0, 2), np.int64)]
    for place, one in enumerate(group[1:].tolist(), start=1):
        others = group[:place]  # what comes earlier
        near = np.bitwise_count(bits[others] ^ bits[one]).sum(axis=1, dtype=np.int64) <= most_bits
        others = others[near]
        if len(others):
            apart = np.abs(colours[others].astype(np.int16) - colours[one].astype(np.int16)).mean(axis=1)
            shape = np.abs(np.log(ratios[others] / ratios[one]))
            others = others[(apart <= most_colour) & (shape <= 0.02)]
            found.append(np.stack([np.full(len(others), one), others], axis=1))
    return np.concatenate(found)
