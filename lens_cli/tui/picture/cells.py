"""A picture as characters: two pixels a cell as coloured half blocks, or shades of grey where there are no colours."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from rich.color import Color
from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip

if TYPE_CHECKING:
    from PIL import Image

SHADES = " ░▒▓█"
CELL = 2.0  # height over width of a character cell


def fit(width: int, height: int, columns: int, rows: int) -> tuple[int, int]:
    """(columns, rows) of the largest picture of this shape inside a box of cells; at least one cell."""
    wide = min(columns, round(rows * CELL * width / height))
    return max(1, min(wide, columns)), max(1, min(rows, round(wide * height / width / CELL)))


def cells(image: Image.Image, columns: int, rows: int, *, colours: bool = True) -> list[Strip]:
    """`rows` strips of `columns` cells. `image`: RGB, any size. 60 x 30 cells take about 3 ms."""
    return _blocks(image, columns, rows) if colours else _shades(image, columns, rows)


def _blocks(image: Image.Image, columns: int, rows: int) -> list[Strip]:
    from PIL import Image

    pixels = image.resize((columns, rows * 2), Image.Resampling.BOX).tobytes()
    strips = list[Strip]()
    for row in range(rows):
        upper, lower = pixels[2 * row * columns * 3 :], pixels[(2 * row + 1) * columns * 3 :]
        line = list[Segment]()
        for place in range(0, columns * 3, 3):
            line.append(Segment("▀", _style(upper[place : place + 3], lower[place : place + 3])))
        strips.append(Strip(line, columns))
    return strips


def _shades(image: Image.Image, columns: int, rows: int) -> list[Strip]:
    from PIL import Image

    levels = image.convert("L").resize((columns, rows), Image.Resampling.BOX).tobytes()
    text = "".join(SHADES[level * len(SHADES) // 256] for level in levels)
    return [Strip([Segment(text[row * columns : (row + 1) * columns], Style())], columns) for row in range(rows)]


@lru_cache(maxsize=20_000)
def _style(upper: bytes, lower: bytes) -> Style:
    return Style(color=Color.from_rgb(*upper), bgcolor=Color.from_rgb(*lower))
