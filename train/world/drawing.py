"""Draw a scene: Pillow at three times the size, box-reduced. Five styles; a pure function of the scene and the size.

The look is frozen: Lens-Nano was trained on it and the verifier of `train.evals` knows it. Knows nothing about
captions or training.
"""

from __future__ import annotations

import random

import numpy as np
from PIL import Image, ImageDraw

from train.world.lettering import CENTRE, lettering
from train.world.scenes import BOARD, COLOURS, GROUNDS, HILL_COLOURS, PAPER, PLAIN, RGB, SKIES, Background, Scene, Thing
from train.world.things import KINDS, Kind

CLOUD: RGB = (236, 240, 244)  # of an overcast sky
DASH: RGB = (244, 240, 220)  # of a road's middle line


def _mix(a: RGB, b: RGB, t: float) -> RGB:
    return tuple(round(x + (y - x) * t) for x, y in zip(a, b, strict=True))  # type: ignore[return-value]


def _roles(colour: str) -> dict[str, RGB]:
    main = COLOURS[colour]
    return {
        "m": main,
        "d": _mix(main, (0, 0, 0), 0.28) if colour != "black" else (70, 70, 78),
        "l": _mix(main, (255, 255, 255), 0.42) if colour != "white" else (214, 218, 226),
        "w": (252, 252, 252) if colour != "white" else (196, 204, 216),
        "k": (40, 40, 46) if colour != "black" else (226, 226, 230),
        "b": (122, 82, 48),
        "g": (92, 160, 72),
        "y": (255, 206, 70),
        "o": (240, 140, 50),
        "t": (226, 196, 150),
    }


_SS = 3  # supersampling


def render(scene: Scene, width: int, height: int) -> Image.Image:
    """Draw `scene` at width x height pixels, RGB."""
    unit = min(width, height) * _SS  # pixels of one short side on the large canvas
    canvas = _draw_background(scene.background, width * _SS, height * _SS)
    draw = ImageDraw.Draw(canvas)
    # A container is drawn before what it holds.
    for thing in sorted(scene.things, key=lambda t: t.kind not in ("frame", "bubble", "ring")):
        if scene.style == "paper":
            _draw_thing(draw, thing, unit, "shadow")
        _draw_thing(draw, thing, unit, scene.style)
    return canvas.reduce(_SS)


def _draw_background(background: Background, width: int, height: int) -> Image.Image:
    if background.plain is not None:
        return Image.new("RGB", (width, height), {**PLAIN, **PAPER, "board": BOARD}[background.plain])
    rng = random.Random(background.seed)
    sky, ground = background.sky, background.ground
    assert sky is not None and ground is not None, "a background is plain or has sky and ground"
    if sky in PLAIN:
        canvas = Image.new("RGB", (width, height), PLAIN[sky])
    else:
        top, bottom = (np.asarray(c, np.float32) for c in SKIES[sky])
        t = np.linspace(0, 1, height, dtype=np.float32)[:, None]
        column = (top + (bottom - top) * t + 0.5).astype(np.uint8)[:, None, :]
        canvas = Image.fromarray(np.ascontiguousarray(np.broadcast_to(column, (height, width, 3))))
    draw = ImageDraw.Draw(canvas)
    unit = min(width, height)
    line = int(background.horizon * height)
    if sky == "starry night":
        for _ in range(26):
            x, y, r = rng.uniform(0, width), rng.uniform(0, line), rng.uniform(0.004, 0.009) * unit
            draw.ellipse((x - r, y - r, x + r, y + r), fill=(244, 240, 200))
    elif sky == "cloudy":
        for _ in range(3):
            x, y, r = rng.uniform(0, width), rng.uniform(0.05, 0.4) * height, rng.uniform(0.08, 0.13) * unit
            for dx in (-1.0, 0.0, 1.0):
                draw.ellipse((x + dx * r - r, y - r * 0.5, x + dx * r + r, y + r * 0.5), fill=CLOUD)
    _draw_ground(draw, rng, background, width, height, line, unit)
    return canvas


def _draw_ground(
    draw: ImageDraw.ImageDraw, rng: random.Random, background: Background, width: int, height: int, line: int, unit: int
) -> None:
    ground = background.ground
    assert ground is not None
    if ground == "hill":
        colour = HILL_COLOURS[background.tint or "green"]
        x, rise = width * rng.uniform(0.35, 0.65), unit * 0.16
        reach = width * 0.95
        draw.ellipse((x - reach, line - rise * 0.4, x + reach, line + 2.4 * (height - line) + rise), fill=colour)
        return
    colour = GROUNDS[ground]
    draw.rectangle((0, line, width, height), fill=colour)
    if ground == "meadow":
        for _ in range(16):
            x, y = rng.uniform(0, width), rng.uniform(line + 0.02 * unit, height)
            draw.line(
                (x, y, x + 0.008 * unit, y - 0.03 * unit),
                fill=_mix(colour, (70, 130, 50), 0.5),
                width=int(0.008 * unit),
            )
    elif ground == "sea":
        for i in range(1, 5):
            y = line + (height - line) * i / 5
            x = rng.uniform(-0.1, 0.1) * unit
            while x < width:
                draw.line((x, y, x + 0.12 * unit, y), fill=_mix(colour, (255, 255, 255), 0.45), width=int(0.008 * unit))
                x += 0.3 * unit
    elif ground == "desert":
        draw.pieslice((width * 0.1, line - 0.06 * unit, width * 0.8, line + 0.1 * unit), 180, 360, fill=colour)
        draw.arc(
            (-width * 0.1, line + 0.1 * unit, width * 0.7, line + 0.4 * unit),
            200,
            340,
            fill=_mix(colour, (150, 100, 50), 0.3),
            width=int(0.008 * unit),
        )
    elif ground == "road":
        y = (line + height) / 2
        for i in range(5):
            x = width * (i + 0.2) / 5
            draw.rectangle((x, y - 0.012 * unit, x + width * 0.11, y + 0.012 * unit), fill=DASH)
    elif ground == "wooden floor":
        for i in range(1, 4):
            y = line + (height - line) * i / 4
            draw.line((0, y, width, y), fill=_mix(colour, (90, 60, 30), 0.35), width=int(0.008 * unit))
    elif ground == "table":
        draw.rectangle((0, line, width, line + 0.03 * unit), fill=_mix(colour, (255, 255, 255), 0.25))


def _placed(
    points: np.ndarray, thing: Thing, unit: float, grow: float = 0.0, shift: tuple[float, float] = (0, 0)
) -> list[tuple[float, float]]:
    """Box coordinates -> canvas pixels."""
    a = np.radians(thing.tilt)
    c, s, r = np.cos(a), np.sin(a), thing.r * unit
    x = -points[:, 0] if thing.mirrored else points[:, 0]
    y = points[:, 1]
    px = (c * x - s * y) * r + thing.x * unit + shift[0]
    py = (s * x + c * y) * r + thing.y * unit + shift[1]
    return list(zip(px.tolist(), py.tolist(), strict=True))


def _draw_thing(draw: ImageDraw.ImageDraw, thing: Thing, unit: float, style: str) -> None:
    if thing.kind == "sign":
        _draw_sign(draw, thing, unit, style)
        return
    if thing.kind in ("frame", "bubble"):
        _draw_container(draw, thing, unit, style)
        return
    kind: Kind = KINDS[thing.kind]
    roles = _roles(thing.colour)
    r = thing.r * unit
    edge = {"ink": 0.011 * unit + 0.03 * r, "chalk": 0.009 * unit + 0.02 * r, "paper": 0.02 * unit + 0.03 * r}.get(
        style, 0.0
    )
    if style == "shadow":
        edge = 0.02 * unit + 0.03 * r
    if edge:
        colour = {"ink": (24, 24, 30), "chalk": (236, 240, 232), "paper": (255, 255, 255), "shadow": (150, 150, 160)}[
            style
        ]
        off = (0.022 * unit, 0.026 * unit) if style == "shadow" else (0.0, 0.0)
        for shape in kind.shapes:
            at = _placed(shape.points, thing, unit, shift=off)
            if shape.width:
                draw.line(at, fill=colour, width=int(shape.width * r + 2 * edge), joint="curve")
            else:
                draw.polygon(at, fill=colour)
                draw.line([*at, at[0], at[1]], fill=colour, width=int(2 * edge), joint="curve")
        if style == "shadow":
            return
    for shape in kind.shapes:
        at = _placed(shape.points, thing, unit)
        if shape.width:
            draw.line(at, fill=roles[shape.role], width=max(1, int(shape.width * r)), joint="curve")
        elif style == "shaded" and shape.role == "m":
            draw.polygon(at, fill=roles["d"])
            centre = shape.points.mean(0)
            lit = (
                (shape.points - centre) * 0.86
                + centre
                + np.asarray((0.05 if thing.mirrored else -0.05, -0.06), np.float32)
            )
            draw.polygon(_placed(lit, thing, unit), fill=roles["m"])
        else:
            draw.polygon(at, fill=roles[shape.role])


def _draw_container(draw: ImageDraw.ImageDraw, thing: Thing, unit: float, style: str) -> None:
    roles, x, y, r = _roles(thing.colour), thing.x * unit, thing.y * unit, thing.r * unit
    band = 0.16 * r
    shade = {"ink": (24, 24, 30), "chalk": (236, 240, 232), "paper": (255, 255, 255), "shadow": (150, 150, 160)}.get(
        style
    )
    off = (0.022 * unit, 0.026 * unit) if style == "shadow" else (0.0, 0.0)
    edge = 0.016 * unit

    def box(k: float) -> tuple[float, float, float, float]:
        return (x - k + off[0], y - k + off[1], x + k + off[0], y + k + off[1])

    shape = draw.ellipse if thing.kind == "bubble" else draw.rectangle
    if shade is not None:
        shape(box(r + edge), outline=shade, width=int(band + 2 * edge))
    if style != "shadow":
        shape(box(r), outline=roles["m"], width=int(band))


def _draw_sign(draw: ImageDraw.ImageDraw, thing: Thing, unit: float, style: str) -> None:
    """A board of the thing's colour with a white panel and the word in near-black, on a wooden post."""
    roles, x, y, r = _roles(thing.colour), thing.x * unit, thing.y * unit, thing.r * unit
    shade = {"ink": (24, 24, 30), "chalk": (236, 240, 232), "paper": (255, 255, 255), "shadow": (150, 150, 160)}.get(
        style
    )
    off = (0.022 * unit, 0.026 * unit) if style == "shadow" else (0.0, 0.0)
    edge = 0.016 * unit
    board = (x - r, y - 0.55 * r, x + r, y + 0.25 * r)
    post = (x - 0.08 * r, y + 0.2 * r, x + 0.08 * r, y + 0.85 * r)
    if shade is not None:
        for x0, y0, x1, y1 in (post, board):
            draw.rectangle((x0 - edge + off[0], y0 - edge + off[1], x1 + edge + off[0], y1 + edge + off[1]), fill=shade)
    if style == "shadow":
        return
    draw.rectangle(post, fill=roles["b"])
    draw.rectangle(board, fill=roles["m"])
    m = 0.1 * r
    draw.rectangle((board[0] + m, board[1] + m, board[2] - m, board[3] - m), fill=(252, 252, 250))
    ink = lettering(thing.word or "", r, stroke=max(1, int(0.012 * r)))
    draw.bitmap((round(x - ink.width / 2), round(y + CENTRE * r - ink.height / 2)), ink, fill=(30, 30, 36))
