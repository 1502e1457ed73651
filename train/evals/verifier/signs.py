"""Read the upper-case word on a sign by comparing its panel with drawn letters.

A first pass lays the 26 letters side by side over the panel's ink (dynamic programming over
columns); a second draws whole words, the first pass's readings and close variants, and keeps the one whose drawing
agrees best. It reads what is there: the word that was asked for takes part as one candidate among the others.
"""

from __future__ import annotations

import functools
import string
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from train.evals.verifier.regions import components
from train.evals.verifier.templates import dilate, f32
from train.world.lettering import SIZE, lettering
from train.world.scenes import WORDS

Floats = NDArray[np.float32]

PANEL = (-0.88, -0.43, 0.88, 0.13)  # of a sign, in its half-sizes, a little inside the white
_BOARD = (-0.97, -0.53, 0.97, 0.23)  # a little inside the board
ILLEGIBLE = 0.45  # least error of ink that reads as nothing
_TALL = 40  # rows of the panel's crop
_FONT = 72  # pixels at which letters are drawn before they are scaled
_LONGEST = 8  # letters
_LOW = 0.08  # of a letter's rows: those that hold a Q's tail
_LEAN = (
    0.17  # of a letter's half-width, from its middle to its lowest ink: drawn Os have 0.05 at most, Qs 0.23 at least
)


@functools.cache
def _drawn(word: str, stroke: int = 1) -> Floats:
    """(H, W), 1 where there is ink: `word` as signs have it, `stroke` pixels fatter, cropped to its ink."""
    image = lettering(word, _FONT / SIZE, stroke)
    ink = image.crop(image.getbbox())
    return f32(np.asarray(ink)) / np.float32(255)


def _scaled(ink: Floats, width: int, height: int) -> Floats:
    image = Image.fromarray((ink * 255).astype(np.uint8)).resize((max(1, width), max(1, height)), Image.Resampling.BOX)
    return f32(np.asarray(image)) / np.float32(255)


def _ink(panel: Image.Image) -> Floats | None:
    """(rows, columns), 0 paper to 1 ink, cropped to the ink; None where there is none."""
    luma = np.asarray(panel.convert("L"), np.float32)
    paper, black = np.percentile(luma, 85), np.percentile(luma, 0.5)  # an I is 1 % of a panel
    if paper - black < 60:
        return None
    ink = np.clip((paper - 12 - luma) / (paper - 12 - black), 0, 1)
    labels, pieces = components(ink > 0.35)
    height, width = ink.shape
    for k, (x0, y0, x1, y1, area) in enumerate(pieces):
        # A rim of the board that came into the crop is not ink, nor is a speck.
        if x0 == 0 or y0 == 0 or x1 == width or y1 == height or area < 4:
            ink[dilate(labels == k + 1, 2)] = 0
    strong = ink > 0.5
    rows, columns = np.nonzero(strong.sum(1) >= 2)[0], np.nonzero(strong.sum(0) >= 2)[0]
    if len(rows) < 8 or len(columns) < 3:
        return None
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(np.float32)


def panel_box(picture: Image.Image, at: tuple[float, float, float, float]) -> tuple[int, int, int, int]:
    """Pixel box (x0, y0, x1, y1) of the panel of a sign at centre x, y and half-sizes across, down (pixels).

    The panel is the largest bright piece inside the board; where none is large enough, what the sign's place implies.
    """
    cx, cy, rx, ry = at

    def box(of: tuple[float, float, float, float]) -> tuple[int, int, int, int]:
        return round(cx + of[0] * rx), round(cy + of[1] * ry), round(cx + of[2] * rx), round(cy + of[3] * ry)

    outer, inner = box(_BOARD), box(PANEL)
    luma = np.asarray(picture.crop(outer).convert("L"), np.float32)
    _, pieces = components(luma > np.percentile(luma, 95) - 40)
    if pieces:
        x0, y0, x1, y1, area = max(pieces, key=lambda piece: piece[4])
        wide, tall = inner[2] - inner[0], inner[3] - inner[1]
        if area > 0.3 * wide * tall and 0.7 * wide < x1 - x0 and 0.7 * tall < y1 - y0:
            return outer[0] + x0 + 1, outer[1] + y0 + 1, outer[0] + x1 - 1, outer[1] + y1 - 1
    return inner


def _lay(ink: Floats, widen: float) -> str:
    """The letters that explain the ink best when laid side by side at the ink's height, `widen` times as wide."""
    height, width = ink.shape
    blank = np.concatenate([[0.0], np.cumsum((ink**2).sum(0))])
    best = np.full(width + 1, np.inf)  # best[x]: least error of the columns before x
    back: list[tuple[int, str]] = [(0, "")] * (width + 1)
    best[0] = 0.0
    letters: list[tuple[str, int, Floats]] = []
    for letter in string.ascii_uppercase:
        drawn = _drawn(letter)
        w = round(drawn.shape[1] * height / _drawn("H").shape[0] * widen)
        if 1 <= w <= width + 2:
            letters.append((letter, w, _scaled(drawn, w, height)))
    padded = np.pad(ink, ((0, 0), (0, 3)))
    errors: dict[str, Floats] = {}
    for letter, w, glyph in letters:
        views = np.lib.stride_tricks.sliding_window_view(padded, (height, w))[0]
        errors[letter] = ((views - glyph) ** 2).sum((1, 2)).astype(np.float32)
    overlap = max(1, round(0.1 * height))
    price = 0.012 * height * height  # a letter must explain more than this
    for x in range(width):
        if not np.isfinite(best[x]):
            continue
        step = float(best[x] + blank[x + 1] - blank[x])
        if step < best[x + 1]:
            best[x + 1], back[x + 1] = step, (x, "")
        for letter, w, _ in letters:
            if x >= len(errors[letter]):
                continue
            cost = float(best[x] + errors[letter][x]) + price
            for end in range(min(width, x + w - overlap), min(width, x + w) + 1):
                if end > x and cost + 0.5 * (x + w - end) < best[end]:
                    best[end], back[end] = cost + 0.5 * (x + w - end), (x, letter)
    out, x = "", width
    while x > 0:
        x, letter = back[x]
        out = letter + out
    return out[:_LONGEST]


def _error(ink: Floats, word: str) -> float:
    """How badly a drawn word agrees with the ink: squared error per unit of ink, plus a price for a wrong shape."""
    drawn = _drawn(word)
    height, width = ink.shape
    stretch = abs(float(np.log((width / height) / (drawn.shape[1] / drawn.shape[0]))))
    scaled = _scaled(drawn, width, height)
    return float(((ink - scaled) ** 2).sum() / (ink.sum() + scaled.sum()) + max(0.0, stretch - 0.08))


def _careful_error(ink: Floats, word: str) -> float:
    """The same, allowing for an ink box that is off by a pixel at each end and for fatter strokes."""
    height, width = ink.shape
    room = np.pad(ink, ((0, 0), (1, 1)))
    best = np.inf
    for stroke in (1, 2):
        drawn = _drawn(word, stroke)
        for left in (0, 1, 2):
            for right in (0, 1, 2):
                scaled = np.zeros_like(room)
                scaled[:, left : width + right] = _scaled(drawn, width + right - left, height)
                best = min(best, float(((room - scaled) ** 2).sum() / (room.sum() + scaled.sum())))
    drawn = _drawn(word)
    stretch = abs(float(np.log((width / height) / (drawn.shape[1] / drawn.shape[0]))))
    return best + max(0.0, stretch - 0.08)


def _has_tail(ink: Floats, word: str, at: int) -> bool:
    """Whether the round letter in place `at` is a Q: an O's lowest ink lies below its middle, a Q's to the right."""
    width = ink.shape[1]
    drawn = lettering(word, _FONT / SIZE, 1)
    x0, _, x1, _ = drawn.getbbox() or (0, 0, 1, 1)
    left, right = ((i * drawn.width / len(word) - x0) / (x1 - x0) * width for i in (at, at + 1))
    letter = ink[:, max(0, int(left)) : min(width, int(np.ceil(right)))]
    strong = letter > 0.5
    rows, columns = np.nonzero(strong.any(1))[0], np.nonzero(strong.sum(0) >= 2)[0]
    if len(rows) < 5 or len(columns) < 3:
        return False
    low = letter[rows[-1] + 1 - max(1, round(_LOW * len(rows))) : rows[-1] + 1]
    weight = np.where(low > 0.3, low, 0).sum(0)
    middle, half = (columns[0] + columns[-1]) / 2, (columns[-1] - columns[0]) / 2
    return float((weight * (np.arange(len(weight)) - middle)).sum() / weight.sum() / half) > _LEAN


def _round_letters(ink: Floats, word: str) -> str:
    """The word with each O and Q told by its lowest ink: as wholes the two hardly differ."""
    for at in range(len(word)):
        if word[at] in "OQ":
            word = word[:at] + ("Q" if _has_tail(ink, word, at) else "O") + word[at + 1 :]
    return word


def _variants(word: str) -> Iterable[str]:
    for i in range(len(word)):
        yield word[:i] + word[i + 1 :]
        for letter in string.ascii_uppercase:
            yield word[:i] + letter + word[i + 1 :]


def read(panel: Image.Image, asked: Iterable[str] = ()) -> str | None:
    """The word on a panel of any size, or None where there is nothing to read.

    `asked` names further candidates; they win only where their drawing agrees better than every other.
    """
    height = _TALL
    width = max(height, round(height * panel.width / panel.height))
    ink = _ink(panel.resize((width, height), Image.Resampling.BICUBIC))
    if ink is None:
        return None
    words = {_lay(ink, widen) for widen in (0.85, 1.0, 1.15)} | {w for w in asked if 0 < len(w) <= _LONGEST}
    words = {w for w in words | set(WORDS) if w}
    errors = {w: _error(ink, w) for w in words}
    for _ in range(_LONGEST):
        best = min(errors, key=errors.__getitem__)
        fresh = {v for v in _variants(best) if v and v not in errors}
        errors |= {v: _error(ink, v) for v in fresh}
        if min(errors, key=errors.__getitem__) == best:
            break
    close = sorted(errors, key=errors.__getitem__)[:10]
    careful = {w: _careful_error(ink, w) for w in close}
    best = min(careful, key=careful.__getitem__)
    return _round_letters(ink, best) if careful[best] < ILLEGIBLE else None
