"""What the verifier knows of each kind's look: maps of roles drawn from `train.world.things`, coloured on demand.

A template is a square window of `GRID` x `GRID` cells over the box [-SPAN, SPAN]² of a kind's own coordinates. Each
cell says which role covers it ("m", "d", ... or nothing), so one map serves all twelve colours. The drawing is done
here, from the shapes, and not with `scenes.render`: the maps must be free of style, background and outline.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw

from train.world.scenes import COLOURS
from train.world.things import KINDS

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]


def f32(values: ArrayLike) -> Floats:
    """Any numbers as a float32 array."""
    return np.asarray(values, np.float32)


ROLES = "mdlwkbgyotp"  # p: the white panel of a sign
GRID = 40  # cells a side
SPAN = 1.25  # half the window's side, in half-sizes of the thing
TILTS = (-5.0, 0.0, 5.0)  # degrees, clockwise; drawn things tilt up to 6
CONTAINERS = ("frame", "bubble")  # besides "ring", which is a kind of its own
SEEN = (*KINDS, *CONTAINERS, "sign")
_FINE = 4  # supersampling

_OTHER: dict[str, tuple[int, int, int]] = {
    "b": (122, 82, 48), "g": (92, 160, 72), "y": (255, 206, 70), "o": (240, 140, 50), "t": (226, 196, 150),
    "p": (252, 252, 250),
}  # fmt: skip


def _mix(a: Floats, b: float, t: float) -> Floats:
    return f32(np.round(a + (b - a) * t))


@functools.cache
def role_colours(colour: str) -> Floats:
    """(roles, 3), 0-255: what each role looks like in a thing of `colour`; the same rule as the drawing's."""
    main = np.asarray(COLOURS[colour], np.float32)
    roles = {
        "m": main,
        "d": f32((70, 70, 78)) if colour == "black" else _mix(main, 0, 0.28),
        "l": f32((214, 218, 226)) if colour == "white" else _mix(main, 255, 0.42),
        "w": f32((196, 204, 216)) if colour == "white" else f32((252, 252, 252)),
        "k": f32((226, 226, 230)) if colour == "black" else f32((40, 40, 46)),
        **{k: f32(v) for k, v in _OTHER.items()},
    }
    return np.stack([roles[r] for r in ROLES]).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Template:
    """One look of one kind: which role covers each cell. Hashed by identity: `template` makes each look once."""

    kind: str
    mirrored: bool
    shaded: bool
    tilt: float
    role: NDArray[np.int8]  # (GRID, GRID): index into ROLES, -1 outside the silhouette
    sure: Bools  # (GRID, GRID): cells that lie wholly in one role or wholly outside
    band: Bools  # (GRID, GRID): cells outside the silhouette where an outline, an edge or a shadow may lie
    hole: Bools  # (GRID, GRID): the open middle of a container, where another thing may be


def _canvas_points(points: Floats, mirrored: bool, tilt: float, side: int) -> list[tuple[float, float]]:
    a = np.radians(tilt)
    c, s = float(np.cos(a)), float(np.sin(a))
    x = -points[:, 0] if mirrored else points[:, 0]
    y = points[:, 1]
    scale, half = side / (2 * SPAN), side / 2
    return list(zip(((c * x - s * y) * scale + half).tolist(), ((s * x + c * y) * scale + half).tolist(), strict=True))


def _draw(kind: str, mirrored: bool, shaded: bool, tilt: float) -> NDArray[np.uint8]:
    """Fine map of role index + 1, 0 outside."""
    side = GRID * _FINE
    image = Image.new("L", (side, side), 0)
    draw = ImageDraw.Draw(image)
    index = {r: i + 1 for i, r in enumerate(ROLES)}
    unit = side / (2 * SPAN)
    if kind in CONTAINERS:
        box = (side / 2 - unit, side / 2 - unit, side / 2 + unit, side / 2 + unit)
        (draw.ellipse if kind == "bubble" else draw.rectangle)(box, outline=index["m"], width=round(0.16 * unit))
        return np.asarray(image)
    if kind == "sign":
        at = lambda x0, y0, x1, y1: tuple(side / 2 + v * unit for v in (x0, y0, x1, y1))  # noqa: E731
        draw.rectangle(at(-0.08, 0.2, 0.08, 0.85), fill=index["b"])
        draw.rectangle(at(-1, -0.55, 1, 0.25), fill=index["m"])
        draw.rectangle(at(-0.9, -0.45, 0.9, 0.15), fill=index["p"])
        return np.asarray(image)
    for shape in KINDS[kind].shapes:
        at_ = _canvas_points(shape.points, mirrored, tilt, side)
        if shape.width:
            draw.line(at_, fill=index[shape.role], width=max(1, int(shape.width * unit)), joint="curve")
        elif shaded and shape.role == "m":
            draw.polygon(at_, fill=index["d"])
            centre = shape.points.mean(0)
            lit = (shape.points - centre) * 0.86 + centre + f32((0.05 if mirrored else -0.05, -0.06))
            draw.polygon(_canvas_points(lit.astype(np.float32), mirrored, tilt, side), fill=index["m"])
        else:
            draw.polygon(at_, fill=index[shape.role])
    return np.asarray(image)


def dilate(mask: Bools, cells: int) -> Bools:
    """Grow by `cells` in the eight directions."""
    out = mask
    for _ in range(cells):
        p = np.pad(out, 1)
        out = p[1:-1, :-2] | p[1:-1, 2:] | p[1:-1, 1:-1]
        q = np.pad(out, 1)
        out = q[:-2, 1:-1] | q[2:, 1:-1] | q[1:-1, 1:-1]
    return out


@functools.cache
def template(kind: str, mirrored: bool = False, shaded: bool = False, tilt: float = 0.0) -> Template:
    """The map of one look of a kind in SEEN."""
    fine = _draw(kind, mirrored, shaded, tilt)
    cells = fine.reshape(GRID, _FINE, GRID, _FINE).transpose(0, 2, 1, 3).reshape(GRID, GRID, -1)
    share = np.stack([(cells == i).mean(-1) for i in range(len(ROLES) + 1)])
    best = share.argmax(0)
    inside = best > 0
    edge = dilate(inside, 3)
    shadow = np.zeros_like(edge)
    shadow[3:, 3:] = edge[:-3, :-3]  # falls to the lower right
    hole = np.zeros_like(inside)
    if kind in (*CONTAINERS, "ring"):
        y, x = np.mgrid[:GRID, :GRID] * (2 * SPAN / GRID) - SPAN + SPAN / GRID
        hole = ~inside & (np.maximum(abs(x), abs(y)) < 1 if kind == "frame" else np.hypot(x, y) < 0.95)
    return Template(
        kind=kind,
        mirrored=mirrored,
        shaded=shaded,
        tilt=tilt,
        role=(best - 1).astype(np.int8),
        # The board's rim, which alone has a sign's colour, is less than two cells wide.
        sure=share.max(0) > (0.6 if kind == "sign" else 0.85),
        band=~inside & (edge | shadow),
        hole=hole,
    )


@functools.cache
def looks(kind: str) -> tuple[tuple[bool, bool], ...]:
    """(mirrored, shaded) of every look of a kind that differs."""
    if kind not in KINDS:
        return ((False, False),)
    sides = (False, True) if KINDS[kind].faces else (False,)
    return tuple((m, s) for m in sides for s in (False, True))
