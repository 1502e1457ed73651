"""A picture in the terminal: its graphics protocol where it has one, else two coloured half blocks per cell. Nothing
without colours (NO_COLOR, --no-color, TERM=dumb, a file): half blocks all alike show no picture.

Everything heavy is imported inside: textual-image asks the terminal what it can do the moment it is imported.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from lens_cli.terminal.console import Talk, looking_at_stdout, talking_to_a_terminal
from lens_cli.terminal.graphics import may_be_asked

if TYPE_CHECKING:
    from PIL import Image
    from rich.console import Console
    from rich.text import Text

MAX_COLUMNS = 80
BELOW = 6  # rows of the window that are left for the path, the time and the prompt of the shell
SMALL = 44  # columns of a picture that is drawn over and over


def wanted(flag: bool | None, setting: bool | None, talk: Talk) -> bool:
    """Flag, else setting, else: a person is looking at both streams."""
    if talk.json or talk.stream or talk.quiet:
        return False
    if flag:
        console = talk.screen()
        if not _has_colours(console) and not _has_graphics(console):
            talk.warn("--show draws nothing: there are no colours to draw with")
            return False
    if flag is not None or setting is not None:
        return bool(flag if flag is not None else setting)
    return looking_at_stdout() and talking_to_a_terminal()


def show(image: Image.Image, talk: Talk) -> None:
    """Draw on stderr: stdout is data."""
    console = talk.screen()
    if _has_graphics(console):
        from textual_image import renderable

        columns = fitting(image, console, MAX_COLUMNS, console.height - BELOW)
        console.print(renderable.Image(image, width=columns, height="auto"))
    elif _has_colours(console):
        console.print(half_blocks(image, console, rows=max(4, console.height - BELOW)))


def _has_colours(console: Console) -> bool:
    return console.color_system is not None and not console.no_color


def _has_graphics(console: Console) -> bool:
    """Whether the terminal knows a graphics protocol, which needs no colours of text."""
    if not console.is_terminal or console.is_dumb_terminal or not _has_cells() or not may_be_asked():
        return False
    from textual_image import renderable

    return renderable.Image in (renderable.TGPImage, renderable.SixelImage)


def _has_cells() -> bool:
    """Whether stdout is a terminal that knows its size: textual-image divides by it."""
    try:
        size = os.get_terminal_size(1)
    except OSError:
        return False
    return size.columns > 0 and size.lines > 0


def small_picture(image: Image.Image, console: Console) -> Text | None:
    """The picture as half blocks in the upper part of the screen, for a while; None: there are no colours.

    Never a graphics protocol: what is drawn over and over must be text that the next drawing replaces.
    """
    if not _has_colours(console):
        return None
    return half_blocks(image, console, columns=SMALL, rows=max(4, console.height - 4))


def fitting(image: Image.Image, console: Console, columns: int, rows: int | None) -> int:
    """Columns of the picture in so many cells at most; a cell is twice as high as wide. `rows` None: any number."""
    columns = min(console.width, columns)
    if rows is not None:
        columns = min(columns, round(2 * max(rows, 4) * image.width / image.height))
    return max(1, columns)


def half_blocks(image: Image.Image, console: Console, columns: int = MAX_COLUMNS, rows: int | None = None) -> Text:
    """The picture as `▀` with the upper pixel as foreground and the lower as background, of at most so many cells."""
    from PIL import Image
    from rich.text import Text

    columns = max(1, min(fitting(image, console, columns, rows), image.width))
    high = max(1, round(columns * image.height / image.width / 2))
    rows = high if rows is None else min(high, rows)
    small = image.convert("RGB").resize((columns, rows * 2), Image.Resampling.BOX)
    pixels = small.tobytes()
    text = Text(no_wrap=True)
    for row in range(rows):
        for column in range(columns):
            upper = pixels[(2 * row * columns + column) * 3 :][:3]
            lower = pixels[((2 * row + 1) * columns + column) * 3 :][:3]
            text.append("▀", style=f"#{upper.hex()} on #{lower.hex()}")
        text.append("\n" if row + 1 < rows else "")
    return text
