"""Drawing for `train.data.text_images.stage`: a ground, then pieces of text in bands one below another.

A band is a piece's own, and the piece is made smaller until it fits turned, so no text covers another and none is cut.
Its colour stands out from the ground below it by a contrast of at least 3:1 (WCAG's for large letters).

Heavy ring: Pillow, numpy.
"""

from __future__ import annotations

import functools
import itertools
import math
import random
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont, features

from backend.errors import FileError, UsageError
from train.data.pictures import SUFFIXES, Unreadable, decode
from train.data.text_images.texts import TextImageSettings, made_up, texts_of

if TYPE_CHECKING:
    RGB = tuple[int, int, int]

_FONT_FILES = (".ttf", ".otf", ".ttc")
_LEAST = 14  # pixels: letters below this are no longer read at the bases of training
_CONTRAST = 3.0
COLOURS: dict[str, RGB] = {
    "white": (250, 250, 250), "black": (16, 16, 18), "red": (206, 32, 41), "dark red": (122, 16, 24),
    "orange": (242, 128, 32), "yellow": (250, 212, 48), "green": (38, 140, 66), "dark green": (16, 74, 40),
    "teal": (20, 134, 136), "light blue": (132, 196, 240), "blue": (36, 88, 200), "navy blue": (20, 32, 92),
    "purple": (116, 52, 156), "pink": (244, 138, 176), "brown": (112, 70, 36), "beige": (232, 216, 186),
    "gray": (128, 130, 134), "light gray": (206, 208, 212),
}  # fmt: skip


@dataclass(frozen=True)
class Materials:
    """What pictures are made from; read once a worker."""

    fonts: tuple[Path | None, ...]  # None: the built-in one
    texts: Sequence[str] | None  # None: made up
    backgrounds: tuple[Path, ...]  # none: drawn


@dataclass(frozen=True)
class Piece:
    """One text as it stands in the picture."""

    text: str
    lines: tuple[str, ...]  # as it is broken
    font: str  # its family and style
    style: str  # words for it in the caption: "bold serif"; empty: its name tells nothing
    colour: str
    size: int  # pixels: the font's
    degrees: float  # counter-clockwise
    blur: float  # pixels: radius; 0: sharp
    outline: str | None  # colour
    place: str  # "in the upper left"
    box: tuple[int, int, int, int]  # left, top, right, bottom of what is drawn, pixels


@dataclass(frozen=True)
class TextImage:
    image: Image.Image
    pieces: tuple[Piece, ...]
    caption: str


def materials(settings: TextImageSettings) -> Materials:
    """Read the folders. Raises UsageError where one holds nothing of use, or no font has a text's letters."""
    fonts = _files(settings.fonts, _FONT_FILES, "fonts") or (None,)
    texts = texts_of(settings.texts)
    for font in fonts:
        load_font(font, 20)
    for text in texts or ():
        if not any(has_letters(font, text) for font in fonts):
            hint = "give a folder of fonts that have them: --set fonts=FOLDER"
            raise UsageError(f"no font has all letters of {text[:60]!r}", hint=hint)
        if not features.check("raqm") and _needs_shaping(text):
            raise UsageError(f"{text[:60]!r} needs Pillow with Raqm to be joined and ordered", hint="install libraqm")
    return Materials(fonts, texts, _files(settings.backgrounds, tuple(SUFFIXES), "pictures"))


def _files(folder: Path | None, suffixes: tuple[str, ...], what: str) -> tuple[Path, ...]:
    if folder is None:
        return ()
    found = tuple(sorted(path for path in folder.rglob("*") if path.suffix.lower() in suffixes and path.is_file()))
    if not found:
        raise UsageError(f"{folder} holds no {what}", hint=f"known endings: {', '.join(sorted(suffixes))}")
    return found


@functools.lru_cache(maxsize=256)
def load_font(path: Path | None, size: int) -> ImageFont.FreeTypeFont:
    """Raises UsageError for a file that is no font."""
    try:
        font = ImageFont.load_default(size) if path is None else ImageFont.truetype(str(path), size)
    except OSError as error:
        raise UsageError(f"cannot read the font {path}: {error}") from error
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


def has_letters(font: Path | None, text: str) -> bool:
    return all(_has(font, char) for char in set(text) if not char.isspace())


@functools.lru_cache(maxsize=100_000)
def _has(font: Path | None, char: str) -> bool:
    """Whether the font draws something else for `char` than its box for what it does not know."""
    return _glyph(font, char) != _glyph(font, "\U0010ffff")


def _glyph(font: Path | None, char: str) -> bytes:
    canvas = Image.new("L", (64, 64))
    ImageDraw.Draw(canvas).text((16, 8), char, fill=255, font=load_font(font, 32))
    return canvas.tobytes()


def _needs_shaping(text: str) -> bool:
    return any(unicodedata.bidirectional(c) in ("R", "AL") or unicodedata.category(c) == "Mc" for c in text)


# ---------------------------------------------------------------------------------------------------------- the picture


def draw_picture(
    width: int, height: int, settings: TextImageSettings, given: Materials, rng: random.Random
) -> TextImage:
    image, ground = _ground(width, height, given, rng)
    wanted = rng.randint(1, settings.most_texts)
    edges = _bands(height, wanted, rng)
    pieces: list[Piece] = []
    for top, bottom in itertools.pairwise(edges):
        text = rng.choice(given.texts) if given.texts else made_up(rng)
        able = [font for font in given.fonts if has_letters(font, text)] or [
            None
        ]  # the built-in one has all made-up ones
        piece = _write(image, text, rng.choice(able), (top, bottom), settings, rng)
        if piece is not None:
            pieces.append(piece)
    return TextImage(image, tuple(pieces), describe(pieces, ground, rng))


def _bands(height: int, count: int, rng: random.Random) -> list[int]:
    """Edges of `count` bands of uneven height."""
    shares = [rng.uniform(0.6, 1.4) for _ in range(count)]
    return [round(height * sum(shares[:k]) / sum(shares)) for k in range(count + 1)]


def _write(
    image: Image.Image, text: str, font: Path | None, band: tuple[int, int], settings: TextImageSettings,
    rng: random.Random,
) -> Piece | None:  # fmt: skip
    """Draw one text into a band; None where it could not be read there."""
    room = (round(image.width * 0.94), round((band[1] - band[0]) * 0.92))
    degrees = round(rng.uniform(-1, 1) * settings.most_degrees, 1) if rng.random() < settings.turned else 0.0
    lines = _broken(text, rng.randint(1, min(4, max(1, len(text) // 8))))
    size = round(room[1] / len(lines) * rng.uniform(0.35, 1.0))
    outlined, blurred = rng.random() < settings.outlined, rng.random() < settings.blurred
    softness = rng.uniform(0.015, 0.05)
    shade_draw, spot = rng.random(), (rng.random(), rng.random())
    while True:
        stroke = max(1, size // 18) if outlined else 0
        blur = round(size * softness, 2) if blurred else 0.0
        mask = _mask(lines, font, size, stroke, degrees, blur)
        if mask[0].width <= room[0] and mask[0].height <= room[1]:
            break
        size = round(size * 0.92) - 1
        if size < _LEAST:
            return None
    if size < _LEAST:
        return None
    letters, edge = mask
    left = round((image.width - letters.width) * (0.03 + 0.94 * spot[0]))
    top = band[0] + round((band[1] - band[0] - letters.height) * (0.04 + 0.92 * spot[1]))
    box = (left, top, left + letters.width, top + letters.height)
    colour = _standing_out(image, box, shade_draw)
    outline = None
    if edge is not None:
        outline = "black" if _luminance(COLOURS[colour]) > 0.3 else "white"
        image.paste(COLOURS[outline], box, edge)
    image.paste(COLOURS[colour], box, letters)
    name, style = _style(font)
    place = _place((box[0] + box[2]) / 2 / image.width, (box[1] + box[3]) / 2 / image.height)
    return Piece(text, tuple(lines), name, style, colour, size, degrees, blur, outline, place, box)


def _broken(text: str, count: int) -> list[str]:
    """The text in about `count` lines, at blanks; where there are none, at any letter (Chinese, Japanese)."""
    words = text.split(" ")
    glue = " "
    if len(words) == 1 and any(unicodedata.east_asian_width(c) == "W" for c in text):
        words, glue = list(text), ""
    target = len(text) / count
    lines: list[str] = [words[0]]
    for word in words[1:]:
        if len(lines[-1]) + len(word) / 2 > target and len(lines) < count:
            lines.append(word)
        else:
            lines[-1] += glue + word
    return lines


def _mask(
    lines: Sequence[str], font: Path | None, size: int, stroke: int, degrees: float, blur: float
) -> tuple[Image.Image, Image.Image | None]:
    """(where there are letters, the same with the outline or None), of one size, cropped to the ink."""
    loaded = load_font(font, size)
    measure = ImageDraw.Draw(Image.new("L", (1, 1)))
    text = "\n".join(lines)
    options = {"font": loaded, "spacing": size * 0.25, "align": "center"}
    x0, y0, x1, y1 = measure.multiline_textbbox((0, 0), text, stroke_width=stroke, **options)
    margin = math.ceil(3 * blur) + 1
    canvas = (math.ceil(x1 - x0) + 2 * margin, math.ceil(y1 - y0) + 2 * margin)
    layers: list[Image.Image] = []
    for width in (0, stroke) if stroke else (0,):
        layer = Image.new("L", canvas)
        ImageDraw.Draw(layer).multiline_text((margin - x0, margin - y0), text, fill=255, stroke_width=width, **options)
        if degrees:
            layer = layer.rotate(degrees, Image.Resampling.BICUBIC, expand=True)
        layers.append(layer.filter(ImageFilter.GaussianBlur(blur)) if blur else layer)
    ink = layers[-1].getbbox() or (0, 0, 1, 1)
    cropped = [layer.crop(ink) for layer in layers]
    return cropped[0], cropped[1] if stroke else None


def _luminance(colour: RGB) -> float:
    """WCAG's relative luminance of sRGB."""
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: RGB, other: RGB) -> float:
    """WCAG's contrast ratio, 1 to 21."""
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _standing_out(image: Image.Image, box: tuple[int, int, int, int], draw: float) -> str:
    """A colour with contrast to the ground's mean under the box; white or black where none has enough."""
    mean = np.asarray(image.crop(box).resize((4, 4), Image.Resampling.BOX)).reshape(-1, 3).mean(axis=0)
    ground = (int(mean[0]), int(mean[1]), int(mean[2]))
    able = [name for name, value in COLOURS.items() if contrast(value, ground) >= _CONTRAST]
    if not able:
        able = [max(("white", "black"), key=lambda name: contrast(COLOURS[name], ground))]
    return able[int(draw * len(able))]


def _style(font: Path | None) -> tuple[str, str]:
    """(family and style, words for the caption)."""
    family, style = load_font(font, 20).getname()
    name = f"{family or ''} {style or ''}".strip()
    low = name.lower()
    words = [word for word in ("bold", "italic", "oblique", "light", "condensed") if word in low]
    words = ["slanted" if word == "oblique" else word for word in words]
    if "mono" in low:
        words.append("monospaced")
    elif "sans" in low or "aileron" in low:
        words.append("sans-serif")
    elif "serif" in low:
        words.append("serif")
    return name, " ".join(words)


def _place(x: float, y: float) -> str:
    down = "upper" if y < 0.36 else "lower" if y > 0.64 else ""
    across = "left" if x < 0.36 else "right" if x > 0.64 else ""
    if down and across:
        return f"in the {down} {across}"
    if across:
        return f"on the {across} side"
    return {"upper": "near the top", "lower": "near the bottom", "": "in the middle"}[down]


# ---------------------------------------------------------------------------------------------------------- the grounds


def _ground(width: int, height: int, given: Materials, rng: random.Random) -> tuple[Image.Image, str]:
    """The empty picture and its description."""
    if given.backgrounds:
        return _photo(width, height, rng.choice(given.backgrounds)), ""
    first, second = rng.sample(sorted(COLOURS), 2)
    a, b = np.array(COLOURS[first], np.float32), np.array(COLOURS[second], np.float32)
    kind = rng.choice(("plain", "plain", "gradient", "gradient", "stripes", "squares", "clouds"))
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    if kind == "plain":
        share, said = np.zeros((height, width), np.float32), f"The background is plain {first}"
    elif kind == "gradient":
        down = rng.random() < 0.5
        share = y / height if down else x / width
        said = f"The background fades from {first} {'at the top' if down else 'on the left'} to {second}"
    elif kind == "stripes":
        step, upright = rng.uniform(0.04, 0.12) * max(width, height), rng.random() < 0.5
        share = ((x if upright else y) // step % 2) * 0.5
        said = f"The background has {'upright' if upright else 'level'} stripes of {first} and a shade towards {second}"
    elif kind == "squares":
        step = rng.uniform(0.06, 0.15) * max(width, height)
        share = ((x // step + y // step) % 2) * 0.4
        said = f"The background is a chequered pattern of {first} and a shade towards {second}"
    else:
        seeds = np.random.default_rng(rng.getrandbits(64)).random((6, 6), np.float32)
        share = np.asarray(Image.fromarray(seeds).resize((width, height), Image.Resampling.BICUBIC)).clip(0, 1) * 0.7
        said = f"The background is a cloudy mixture of {first} and {second}"
    pixels = a + (b - a) * share[..., None]
    return Image.fromarray(pixels.round().astype(np.uint8)), said + "."


def _photo(width: int, height: int, path: Path) -> Image.Image:
    """A picture of the user's, covering; what can be read on it is not in the caption. Raises FileError."""
    try:
        photo = decode(path.read_bytes())
    except (OSError, Unreadable) as error:
        raise FileError(f"cannot use the background {path}: {error}") from error
    from train.data.buckets import cover_box

    box = cover_box(photo.width, photo.height, width, height)
    return photo.resize((width, height), Image.Resampling.LANCZOS, box=box)


# ---------------------------------------------------------------------------------------------------------- the caption


def describe(pieces: Sequence[Piece], ground: str, rng: random.Random) -> str:
    """English sentences; every text letter by letter within double quotation marks."""
    sentences = [_sentence(piece, rng) for piece in pieces]
    if ground:
        sentences.insert(rng.choice((0, len(sentences))), ground)
    if not pieces:
        sentences.append("There are no words in the picture.")
    return " ".join(sentences)


def _sentence(piece: Piece, rng: random.Random) -> str:
    mark = ("“", "”") if '"' in piece.text else ('"', '"')
    quoted = f"{mark[0]}{piece.text}{mark[1]}"
    letters = f"{piece.colour} {piece.style} letters".replace("  ", " ")
    outline = f" with a thin {piece.outline} outline" if piece.outline else ""
    lines = f", set in {('one', 'two', 'three', 'four')[len(piece.lines) - 1]} lines" if len(piece.lines) > 1 else ""
    turned = ""
    if abs(piece.degrees) >= 4:
        turned = f", tilted with its {'right' if piece.degrees > 0 else 'left'} end up"
    soft = " The letters are slightly blurred." if piece.blur >= 0.8 else ""
    start = piece.place[0].upper() + piece.place[1:]
    forms = (
        f"{start} the text {quoted} is written in {letters}{outline}{lines}{turned}.",
        f"{letters[0].upper() + letters[1:]}{outline} {piece.place} read {quoted}{lines}{turned}.",
        f"{start} stands {quoted} in {letters}{outline}{lines}{turned}.",
    )
    return rng.choice(forms) + soft
