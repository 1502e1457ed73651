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
from collections.abc import Iterator
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


def first_alike(
    bits: np.ndarray, colours: np.ndarray, ratios: np.ndarray, *, most_bits: int, most_colour: float
) -> np.ndarray:
    """(n,) int64: of each picture the first before it that looks the same and is no duplicate itself, or -1.

    Pictures come in order of preference: `bits` (n, 32) uint8, `colours` (n, 192) uint8, `ratios` (n,) width over
    height. `most_bits` of 256 may differ, the colours by `most_colour` of 255 on average, the ratios by 2 %.

    Only what stays is compared with, so 100,000 copies of one picture are as many comparisons and no list of pairs.
    """
    bands = [_Band(values) for values in _bands(bits, most_bits + 1)]
    found = np.full(len(bits), -1, np.int64)
    meets = np.zeros(len(bits), bool)
    for band in bands:
        meets |= band.sizes[band.group] > 1
    for one in np.flatnonzero(meets).tolist():
        others = np.unique(np.concatenate([band.staying(one) for band in bands]))
        near = np.bitwise_count(bits[others] ^ bits[one]).sum(axis=1, dtype=np.int64) <= most_bits
        others = others[near]
        if len(others):
            apart = np.abs(colours[others].astype(np.int16) - colours[one].astype(np.int16)).mean(axis=1)
            shape = np.abs(np.log(ratios[others] / ratios[one]))
            others = others[(apart <= most_colour) & (shape <= 0.02)]
        if len(others):
            found[one] = others[0]
            continue
        for band in bands:
            band.add(one)
    return found


class _Band:
    """One band of bits: the pictures that stay, by its value. 12 bytes a picture."""

    def __init__(self, values: np.ndarray) -> None:
        self.group = values  # (n,) int32: the picture's group; pictures of one group have the same bits here
        self.sizes = np.bincount(values).astype(np.int32)
        self._begin = np.cumsum(self.sizes, dtype=np.int64) - self.sizes
        self._filled = np.zeros_like(self.sizes)
        self._members = np.empty(len(values), np.int32)

    def staying(self, one: int) -> np.ndarray:
        group = self.group[one]
        begin = self._begin[group]
        return self._members[begin : begin + self._filled[group]]

    def add(self, one: int) -> None:
        group = self.group[one]
        self._members[self._begin[group] + self._filled[group]] = one
        self._filled[group] += 1


def _bands(bits: np.ndarray, count: int) -> Iterator[np.ndarray]:
    """(n,) int32 for each of `count` bands that share out all bits: equal where the band's bits are."""
    for columns in np.array_split(np.arange(BITS), count):
        first = columns[0] // 8  # only the bytes that hold them are unpacked
        unpacked = np.unpackbits(bits[:, first : columns[-1] // 8 + 1], axis=1)[:, columns - 8 * first]
        packed = np.ascontiguousarray(np.packbits(unpacked, axis=1))
        whole = packed.view(np.dtype((np.void, packed.shape[1]))).ravel()
        yield np.unique(whole, return_inverse=True)[1].astype(np.int32)
