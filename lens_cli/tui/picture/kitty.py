"""A picture by Kitty's graphics protocol, with Unicode placeholders: the pixels are sent once, and cells that are
ordinary text say which part of them stands where. So the picture scrolls, is covered and is cut as text is.

https://sw.kovidgoyal.net/kitty/graphics-protocol/#unicode-placeholders

Everything goes out within the screen's own update: one write, between the marks of a synchronised one.
"""

from __future__ import annotations

import base64
import io
import itertools
import os
from typing import TYPE_CHECKING

from rich.color import Color
from rich.segment import ControlType, Segment
from rich.style import Style
from textual.strip import Strip

if TYPE_CHECKING:
    from PIL import Image

CHUNK = 4096  # characters of one message at most
_PLACEHOLDER = chr(0x10EEEE)
# The marks that number rows and columns, as code points or ranges of them, in the protocol's order.
_MARKS = """
305 30d-30e 310 312 33d-33f 346 34a-34c 350-352 357 35b 363-36f 483-487 592-595 597-599 59c-5a1 5a8-5a9 5ab-5ac 5af 5c4
610-617 657-65b 65d-65e 6d6-6dc 6df-6e2 6e4 6e7-6e8 6eb-6ec 730 732-733 735-736 73a 73d 73f-741 743 745 747 749-74a
7eb-7f1 7f3 816-819 81b-823 825-827 829-82d 951 953-954 f82-f83 f86-f87 135d-135f 17dd 193a 1a17 1a75-1a7c 1b6b
1b6d-1b73 1cd0-1cd2 1cda-1cdb 1ce0 1dc0-1dc1 1dc3-1dc9 1dcb-1dcc 1dd1-1de6 1dfe 20d0-20d1 20d4-20d7 20db-20dc 20e1 20e7
20e9 20f0 2cef-2cf1 2de0-2dff a66f a67c-a67d a6f0-a6f1 a8e0-a8f1 aab0 aab2-aab3 aab7-aab8 aabe-aabf aac1 fe20-fe26 10a0f
10a38 1d185-1d189 1d1aa-1d1ad 1d242-1d244
"""


def _marks() -> list[str]:
    runs = [(int(first, 16), int(last or first, 16)) for first, _, last in (w.partition("-") for w in _MARKS.split())]
    return [chr(code) for first, last in runs for code in range(first, last + 1)]


MARKS = _marks()
MOST = len(MARKS)  # cells along a side
# A number of this process: another program's picture on the same terminal keeps its own.
_ids = itertools.count((os.getpid() & 0x7FFF) << 8 | 1)


def send(image: Image.Image, columns: int, rows: int) -> tuple[int, str]:
    """(number, what to write) of a picture that a box of cells will show, and nobody answers."""
    number = next(_ids) & 0xFFFFFF or 1
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    data = base64.b64encode(file.getvalue()).decode()
    parts = [data[i : i + CHUNK] for i in range(0, len(data), CHUNK)]
    messages = list[str]()
    for place, part in enumerate(parts):
        more = int(place + 1 < len(parts))
        head = f"a=t,f=100,i={number},q=2,m={more}" if place == 0 else f"q=2,m={more}"
        messages.append(f"\x1b_G{head};{part}\x1b\\")
    messages.append(f"\x1b_Ga=p,U=1,i={number},c={columns},r={rows},q=2\x1b\\")
    return number, "".join(messages)


def forget(number: int) -> str:
    """What to write to take a picture out of the terminal's memory."""
    return f"\x1b_Ga=d,d=I,i={number},q=2\x1b\\"


def placeholders(number: int, columns: int, rows: int) -> list[Strip]:
    """The cells where the picture appears: its number is their colour. At most `MOST` of either."""
    style = Style(color=Color.from_rgb(number >> 16 & 255, number >> 8 & 255, number & 255))
    strips = list[Strip]()
    for row in range(rows):
        text = "".join(_PLACEHOLDER + MARKS[row] + MARKS[column] for column in range(columns))
        strips.append(Strip([Segment(text, style)], columns))
    return strips


def control(text: str) -> Segment:
    """Something to write that takes no room."""
    return Segment(text, Style(), [(ControlType.CURSOR_FORWARD, 0)])
