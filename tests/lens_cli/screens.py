"""A screen of the app as text that a person can review: its lines, and below them which style stands where.

Own code, because pytest-textual-snapshot pins a pytest older than this project's. A snapshot is a plain file beside the
tests; UPDATE_SCREENS=1 writes it anew.
"""

from __future__ import annotations

import os
from pathlib import Path

from textual.app import App

FLAGS = ("bold", "dim", "italic", "reverse", "strike")
FOLDER = Path(__file__).parent / "screens"


def lines(app: App[None]) -> list[str]:
    """The characters on the screen."""
    wide, high = app.size
    strips = app.screen._compositor.render_strips()
    return [strip.text.ljust(wide)[:wide].rstrip() for strip in strips[:high]]


def styled(app: App[None]) -> str:
    """Lines, then each style with the runs of cells that have it: `12:3-9` is line 12, cells 3 to 8."""
    places = dict[str, list[str]]()
    for row, strip in enumerate(app.screen._compositor.render_strips()):
        column = 0
        for segment in strip:
            if segment.control:
                continue
            end = column + segment.cell_length
            style = segment.style
            if style is not None and segment.text.strip(" ▀"):  # blanks and pictures have no looks of their own
                flags = "".join(
                    name[0] for name in ("bold", "dim", "italic", "reverse", "strike") if getattr(style, name)
                )
                colours = f"{style.color.name if style.color else '-'} {style.bgcolor.name if style.bgcolor else '-'}"
                places.setdefault(f"{colours} {flags}".strip(), []).append(f"{row}:{column}-{end}")
            column = end
    text = [line.replace("▀", "#") for line in lines(app)]
    return "\n".join([*text, "---", *(f"{style}: {' '.join(runs)}" for style, runs in sorted(places.items()))]) + "\n"


def check(app: App[None], name: str) -> None:
    """Compare the screen with the file of that name."""
    found, path = styled(app), FOLDER / f"{name}.txt"
    if os.environ.get("UPDATE_SCREENS"):
        FOLDER.mkdir(exist_ok=True)
        path.write_text(found, encoding="utf-8")
    assert found == path.read_text(encoding="utf-8"), f"{path} differs; look at it, then UPDATE_SCREENS=1"
