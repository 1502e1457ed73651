"""A contact sheet: judged pictures side by side, each with its prompt and the verdict."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from train.evals.nano import EvalResult

CELL = 168  # pixels a side of a picture
_TEXT = 64  # pixels below it
_RIGHT, _WRONG = (40, 150, 70), (210, 50, 50)


def contact_sheet(judged: Sequence[tuple[EvalResult, Image.Image]], columns: int = 8) -> Image.Image:
    """An RGB picture of all of them, row by row; right ones framed green, wrong ones red with the reason.

    Raises ValueError where there is nothing to show.
    """
    if not judged:
        raise ValueError("a contact sheet needs at least one picture")
    columns = min(columns, len(judged))
    rows = -(-len(judged) // columns)
    sheet = Image.new("RGB", (columns * (CELL + 12), rows * (CELL + _TEXT + 12)), (255, 255, 255))
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(10)
    for i, (result, picture) in enumerate(judged):
        x, y = (i % columns) * (CELL + 12) + 6, (i // columns) * (CELL + _TEXT + 12) + 6
        colour = _RIGHT if result.right else _WRONG
        draw.rectangle((x - 3, y - 3, x + CELL + 2, y + CELL + 2), fill=colour)
        sheet.paste(picture.convert("RGB").resize((CELL, CELL), Image.Resampling.LANCZOS), (x, y))
        lines = textwrap.wrap(result.asked, 34)[:2]
        lines += textwrap.wrap("right" if result.right else result.reason, 34)[:3]
        for n, line in enumerate(lines):
            shade = (30, 30, 36) if n < len(textwrap.wrap(result.asked, 34)[:2]) else colour
            draw.text((x, y + CELL + 4 + 12 * n), line, font=font, fill=shade)
    return sheet
