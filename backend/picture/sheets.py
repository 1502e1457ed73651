"""Contact sheets: pictures side by side, as one HTML page that links to their files, or as one picture with labels.

Heavy ring: Pillow, inside the functions.
"""

from __future__ import annotations

import html
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

if TYPE_CHECKING:
    from PIL import Image

_STYLE = (
    "body{font:14px system-ui,sans-serif;margin:1.5rem;background:#111;color:#ddd}"
    "main{display:grid;grid-template-columns:repeat(auto-fill,minmax(16rem,1fr));gap:1rem}"
    "figure{margin:0}img{width:100%;height:auto;display:block;border-radius:4px}"
    "figcaption{padding:.3rem 0;overflow-wrap:anywhere}small{color:#999}"
)
GAP = 8  # pixels between the pictures of a grid
LABEL = 18  # height of its letters, in pixels


def html_sheet(pictures: Sequence[tuple[Path, Mapping[str, Any]]], folder: Path, title: str = "lens") -> str:
    """A page with every (file, record), to lie in `folder`. It loads nothing but the pictures, and runs no script."""
    figures = "\n".join(_figure(path, record, folder) for path, record in pictures)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src 'self' file:; "
        "style-src 'unsafe-inline'\">"
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>\n"
        f"<h1>{html.escape(title)}: {len(pictures)} picture{'' if len(pictures) == 1 else 's'}</h1>\n"
        f"<main>\n{figures}\n</main></body></html>\n"
    )


def _figure(path: Path, record: Mapping[str, Any], folder: Path) -> str:
    link = html.escape(quote(os.fsencode(os.path.relpath(path.absolute(), folder)).replace(os.sep.encode(), b"/")))
    prompt = html.escape(str(record["prompt"]))
    told = ", ".join(f"{key} {record[key]}" for key in ("seed", "steps", "guidance"))
    size = f'width="{int(record["width"])}" height="{int(record["height"])}"'
    about = f"{html.escape(told)}, {html.escape(str(record['model']['name']))}, id {html.escape(str(record['id'])[:8])}"
    return (
        f'<figure><a href="{link}"><img src="{link}" alt="{prompt}" loading="lazy" {size}></a>'
        f"<figcaption>{prompt}<br><small>{about}</small></figcaption></figure>"
    )


def grid_sheet(
    rows: Sequence[Sequence[Image.Image | None]], columns: Sequence[str], sides: Sequence[str]
) -> Image.Image:
    """The pictures of a grid, row by row, with a label above each column and beside each row; None leaves a gap.

    All cells are as large as the largest picture, whose pixels are kept as they are.
    """
    from PIL import Image, ImageDraw, ImageFont

    pictures = [picture for row in rows for picture in row if picture is not None]
    width, height = max(p.width for p in pictures), max(p.height for p in pictures)
    font = ImageFont.load_default(LABEL)
    left = GAP + max((int(font.getlength(text)) + GAP for text in sides if text), default=0)
    top = GAP + (LABEL + GAP if any(columns) else 0)
    size = (left + len(columns) * (width + GAP), top + len(rows) * (height + GAP))
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for k, text in enumerate(columns):
        place = (left + k * (width + GAP) + width // 2, GAP + LABEL // 2)
        draw.text(place, _fitting(text, width, font), "black", font, anchor="mm")
    for k, (row, text) in enumerate(zip(rows, sides, strict=True)):
        y = top + k * (height + GAP)
        draw.text((GAP, y + height // 2), text, "black", font, anchor="lm")
        for place, picture in enumerate(row):
            if picture is not None:
                sheet.paste(picture.convert("RGB"), (left + place * (width + GAP), y))
    return sheet


def _fitting(text: str, width: int, font: Any) -> str:
    """As much of the text as fits, with an ellipsis where it was cut."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."
