"""Words as signs have them: upper-case letters in equal slots, so that a letter looks alike wherever it stands.

Lengths are in half-sizes of the sign. On the token grid a sign's half-size is six cells (`train.world.grid`), so a slot
is two cells wide and a letter two cells tall: each letter is a pattern of four tokens of its own, as things are of
theirs, and a small model learns 26 patterns instead of one for every word. Knows nothing about signs' boards.
"""

from __future__ import annotations

import functools

from PIL import Image, ImageDraw, ImageFont

__all__ = ["CENTRE", "HEIGHT", "SIZE", "SLOTS", "lettering", "pitch", "slots"]

SLOTS = 5  # letters of full width; longer words are squeezed into as much room
CENTRE = -1 / 6  # of the letters' height, below the sign's centre
HEIGHT = 1 / 3  # of a slot
SIZE = 0.44  # of the font
_PITCH = 1 / 3  # from letter to letter
_SQUEEZE = 0.88  # of the font's widths …
_WIDEST = 0.94  # … of a slot: W and M are squeezed more
_TOP, _MIDDLE, _BOTTOM = 0.18, 0.62, 1.06  # of the font's size: above all capitals, halfway up H, below Q's tail


def pitch(letters: int) -> float:
    """From one letter to the next in a word of so many."""
    return _PITCH * min(1.0, SLOTS / max(1, letters))


def slots(letters: int) -> tuple[float, ...]:
    """Centre of each letter's slot, to the right of the sign's centre."""
    return tuple((i - (letters - 1) / 2) * pitch(letters) for i in range(letters))


@functools.lru_cache(512)
def _glyph(letter: str, size: int, width: int, squeeze: float, stroke: int) -> Image.Image:
    """Mode L, 255 where there is ink: a letter in the middle of a slot `width` pixels wide, H halfway up."""
    font = ImageFont.load_default(size)
    x0, _, x1, _ = ImageDraw.Draw(Image.new("L", (1, 1))).textbbox((0, 0), letter, font=font, stroke_width=stroke)
    tall = round((_BOTTOM - _TOP) * size)
    drawn = Image.new("L", (max(1, int(x1 - x0)), tall), 0)
    ImageDraw.Draw(drawn).text(
        (-x0, tall / 2 - _MIDDLE * size), letter, font=font, fill=255, stroke_width=stroke, stroke_fill=255
    )
    narrow = max(1, min(round(drawn.width * squeeze), int(width * _WIDEST)))
    slot = Image.new("L", (width, tall), 0)
    slot.paste(drawn.resize((narrow, tall), Image.Resampling.BOX), ((width - narrow) // 2, 0))
    return slot


def lettering(word: str, unit: float, stroke: int) -> Image.Image:
    """Mode L, 255 where there is ink: `word` on a sign whose half-size is `unit` pixels, strokes `stroke` pixels fatter
    on each side. Halfway up lies CENTRE, halfway across the sign's middle."""
    size, share = max(1, round(SIZE * unit)), pitch(len(word)) / _PITCH
    width = max(1, round(pitch(len(word)) * unit))
    glyphs = [_glyph(letter, size, width, _SQUEEZE * share, stroke) for letter in word]
    image = Image.new("L", (max(1, width * len(word)), max((glyph.height for glyph in glyphs), default=1)), 0)
    for i, glyph in enumerate(glyphs):
        image.paste(glyph, (i * width, 0))
    return image
