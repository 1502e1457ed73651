"""Record the app as a GIF: a prompt is typed, drawn by Lens-Nano through a real server, and found in the gallery.

`python -m benchmarks.record_app docs/app.gif` needs a monospaced font of the system (DejaVu Sans Mono), and takes as
long as the picture does. What is seen is the app itself, driven by keys; only the characters are drawn here.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from rich.color import Color
from rich.style import Style
from textual.app import App
from textual.pilot import Pilot

from backend import paths
from backend.settings import load
from lens_cli.tui.app import LensApp, Places
from lens_cli.tui.create.form import Form, SeedMode
from lens_cli.tui.jobs.connection import connect
from lens_cli.tui.state import State

CELL = (8, 16)  # pixels
FONT = "DejaVuSansMono"
COLOURS = 96  # of the last two frames, which have all that is seen
CONNECT = 60.0  # seconds for a server to answer
PROMPT = "three red balloons over a green hill"
Frame = tuple[Image.Image, int]  # with how long it stays, in milliseconds


def picture_of(app: App[Any]) -> Image.Image:
    """The screen as pixels: half blocks as two rectangles, everything else as the font has it."""
    wide, high = app.size
    image = Image.new("RGB", (wide * CELL[0], high * CELL[1]))
    draw = ImageDraw.Draw(image)
    fonts = {bold: ImageFont.truetype(f"{FONT}{'-Bold' if bold else ''}.ttf", 13) for bold in (False, True)}
    for row, strip in enumerate(app.screen._compositor.render_strips()):
        column = 0
        for segment in strip:
            ink, ground = colours(segment.style or Style())
            for character in "" if segment.control else segment.text:
                x, y = column * CELL[0], row * CELL[1]
                draw.rectangle((x, y, x + CELL[0] - 1, y + CELL[1] - 1), fill=ground)
                if character == "▀":
                    draw.rectangle((x, y, x + CELL[0] - 1, y + CELL[1] // 2 - 1), fill=ink)
                elif character != " ":
                    draw.text((x, y), character, fill=ink, font=fonts[bool(segment.style and segment.style.bold)])
                column += 1
    return image


def colours(style: Style) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """(ink, ground) of a style."""
    ink, ground = (rgb(style.color, 220), rgb(style.bgcolor, 16))
    return (ground, ink) if style.reverse else (ink, ground)


def rgb(colour: Color | None, grey: int) -> tuple[int, int, int]:
    if colour is None or colour.is_default:
        return grey, grey, grey
    red, green, blue = colour.get_truecolor()
    return red, green, blue


async def record(app: LensApp, pilot: Pilot[None]) -> list[Frame]:
    """Type, draw, wait, look into the gallery."""
    frames = list[Frame]()

    async def take(milliseconds: int) -> None:
        await pilot.pause()
        frames.append((picture_of(app), milliseconds))

    await take(600)
    for place in range(0, len(PROMPT), 4):
        await pilot.press(*PROMPT[place : place + 4])
        await take(140)
    await pilot.press("enter")
    seen, odd, until = "", False, time.monotonic() + 600
    while not any(one.state == "done" and one.job.prompt == PROMPT for one in app.link.jobs.listed()):
        assert time.monotonic() < until, "no picture within ten minutes"
        await asyncio.sleep(0.1)
        now = app.link.jobs.summary().rpartition(" s")[0].rpartition(" ")[0]  # without the seconds that are left
        if now != seen:
            seen, odd = now, not odd
            if odd:
                await take(160)
    await asyncio.sleep(1.5)
    await take(2200)
    await pilot.press("f6")
    await asyncio.sleep(3)
    await take(2600)
    return frames


async def run(output: Path) -> None:
    form = Form(seed_mode=SeedMode.fixed, seed=2).said(shape="4:3")
    places = Places(history=paths.history_file(), pictures=paths.data_dir() / "pictures")
    app = LensApp(load(), State(form=form), connect=connect, places=places)
    async with app.run_test(size=(100, 30)) as pilot:
        until = time.monotonic() + CONNECT
        while app.link.connection is None:
            assert time.monotonic() < until, "no server; see lens ps"
            await asyncio.sleep(0.1)
        frames = await record(app, pilot)
    last = frames[-1][0]
    both = Image.new("RGB", (last.width, 2 * last.height))
    both.paste(frames[-2][0], (0, 0))
    both.paste(last, (0, last.height))
    palette = both.quantize(COLOURS, dither=Image.Dither.NONE)
    images = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image, _ in frames]
    images[0].save(
        output, save_all=True, append_images=images[1:], duration=[stay for _, stay in frames], loop=0, optimize=True
    )
    print(f"{output}: {len(frames)} frames, {output.stat().st_size:,} bytes")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    asyncio.run(run(parser.parse_args().output))
