"""The things of Lens-Nano's world: flat drawings made of filled polygons and strokes, as data.

A drawing lives in the box [-1, 1] x [-1, 1], y pointing down. Every shape becomes a polygon once, at import, so that
moving, scaling, mirroring and tilting a thing is one affine map. Knows nothing about scenes, captions or training.

Roles name colours: `m` the thing's own colour, `d` darker, `l` lighter, `w` white, `k` near-black, `b` wood, `g` leaf.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float32]  # (P, 2), x then y


@dataclass(frozen=True)
class Outline:
    """One filled polygon, or one stroke of `width` (box units) where `width` > 0."""

    role: str
    points: Points
    width: float = 0.0


@dataclass(frozen=True)
class Kind:
    """One kind of thing."""

    name: str
    plural: str
    detail: str  # a true phrase about its look, for dense captions: "with ..."
    shapes: tuple[Outline, ...]
    flies: bool = False  # belongs in the air rather than on the ground
    faces: bool = False  # looks different mirrored, so it may be mirrored


def _ellipse(role: str, x: float, y: float, rx: float, ry: float, start: float = 0, end: float = 360) -> Outline:
    n = max(8, int(abs(end - start) / 12))
    angle = np.radians(np.linspace(start, end, n, endpoint=end - start < 360))
    return Outline(role, np.stack([x + rx * np.cos(angle), y + ry * np.sin(angle)], 1).astype(np.float32))


def _poly(role: str, *xy: float) -> Outline:
    return Outline(role, np.asarray(xy, np.float32).reshape(-1, 2))


def _rect(role: str, x0: float, y0: float, x1: float, y1: float) -> Outline:
    return _poly(role, x0, y0, x1, y0, x1, y1, x0, y1)


def _line(role: str, width: float, *xy: float) -> Outline:
    return Outline(role, np.asarray(xy, np.float32).reshape(-1, 2), width)


def _curve(points: Points, closed: bool) -> Points:
    """Catmull-Rom through `points`, six samples a segment."""
    n = len(points)
    out: list[NDArray[Any]] = []
    at = (lambda i: points[i % n]) if closed else (lambda i: points[min(max(i, 0), n - 1)])
    for i in range(n if closed else n - 1):
        p0, p1, p2, p3 = at(i - 1), at(i), at(i + 1), at(i + 2)
        t = np.linspace(0, 1, 6, endpoint=False, dtype=np.float32)[:, None]
        out.append(
            0.5 * (2 * p1 + (p2 - p0) * t + (2 * p0 - 5 * p1 + 4 * p2 - p3) * t**2 + (3 * (p1 - p2) + p3 - p0) * t**3)
        )
    if not closed:
        out.append(points[-1:])
    return np.concatenate(out).astype(np.float32)


def _blob(role: str, *xy: float) -> Outline:
    return Outline(role, _curve(np.asarray(xy, np.float32).reshape(-1, 2), closed=True))


def _wire(role: str, width: float, *xy: float) -> Outline:
    return Outline(role, _curve(np.asarray(xy, np.float32).reshape(-1, 2), closed=False), width)


def _star(role: str, points: int, outer: float, inner: float, x: float = 0, y: float = 0) -> Outline:
    xy: list[float] = []
    for i in range(2 * points):
        radius, angle = (outer if i % 2 == 0 else inner), math.pi * i / points - math.pi / 2
        xy += [x + radius * math.cos(angle), y + radius * math.sin(angle)]
    return _poly(role, *xy)


def _eyes(x: float, y: float, gap: float, r: float) -> list[Outline]:
    return [_ellipse("k", x - gap, y, r, r), _ellipse("k", x + gap, y, r, r)]


def _petals(role: str, count: int, ring: float, r: float, y: float) -> list[Outline]:
    step = 2 * math.pi / count
    return [_ellipse(role, ring * math.sin(i * step), y - ring * math.cos(i * step), r, r) for i in range(count)]


_E, _P, _R, _L, _B, _W = _ellipse, _poly, _rect, _line, _blob, _wire


def _kind(
    name: str, detail: str, *shapes: Outline | list[Outline], plural: str = "", flies: bool = False, faces: bool = False
) -> Kind:
    flat: list[Outline] = []
    for shape in shapes:
        flat += shape if isinstance(shape, list) else [shape]
    return Kind(name, plural or name + "s", detail, tuple(flat), flies, faces)


# fmt: off
_ALL: Sequence[Kind] = (
    # ---- plain shapes
    _kind("ball", "with a light band around it", _E("m", 0, 0, .9, .9), _P("l", -.88, -.2, .88, -.2, .88, .2, -.88, .2)),
    _kind("star", "with five points", _star("m", 5, 1, .42)),
    _kind("heart", "with a round top and a pointed tip",
          _B("m", 0, -.45, .3, -.82, .75, -.8, .95, -.35, .75, .15, .3, .6, 0, .95, -.3, .6, -.75, .15, -.95, -.35, -.75, -.8, -.3, -.82)),
    _kind("gem", "cut with flat sides", _P("m", -.6, -.7, .6, -.7, 1, -.2, 0, .95, -1, -.2), _P("l", -.6, -.7, .6, -.7, .35, -.2, -.35, -.2),
          _P("d", .35, -.2, 1, -.2, 0, .95)),
    _kind("cube", "with three visible faces", _P("m", -.85, -.35, .1, -.1, .1, .95, -.85, .65), _P("l", -.85, -.35, 0, -.75, .9, -.5, .1, -.1),
          _P("d", .1, -.1, .9, -.5, .9, .5, .1, .95)),
    _kind("ring", "with a hole in the middle", Outline("m", np.concatenate([_E("m", 0, 0, .92, .92).points, _E("m", 0, 0, .92, .92).points[:1],
          _E("m", 0, 0, .5, .5).points[:1], _E("m", 0, 0, .5, .5).points[::-1]]))),
    _kind("arrow", "pointing to one side", _P("m", -.95, -.28, .1, -.28, .1, -.75, .98, 0, .1, .75, .1, .28, -.95, .28), faces=True),
    # ---- sky
    _kind("moon", "shaped like a crescent", _B("m", .35, -.92, -.2, -.85, -.72, -.45, -.85, .05, -.65, .58, -.15, .9, .45, .88, .05, .6, -.22, .2,
          -.25, -.25, -.05, -.62), flies=True, faces=True),
    _kind("sun", "with short rays all around", _star("d", 10, 1, .66), _E("m", 0, 0, .6, .6), flies=True),
    _kind("cloud", "with a flat base and a puffy top", _E("m", -.5, .15, .45, .38), _E("m", 0, -.15, .5, .5), _E("m", .5, .12, .45, .4),
          _R("m", -.55, .1, .55, .52), flies=True),
    _kind("balloon", "with a thin string below it", _W("k", .05, 0, .45, .12, .62, -.1, .8, .05, 1), _E("m", 0, -.28, .62, .7), _P("m", 0, .36, .14, .56, -.14, .56),
          _E("l", -.22, -.5, .13, .2), flies=True),
    _kind("kite", "with a tail of small bows", _W("k", .05, 0, .4, .2, .6, -.05, .8, .2, 1), _P("m", 0, -1, .62, -.25, 0, .5, -.62, -.25),
          _P("l", 0, -1, .62, -.25, 0, -.25), _P("d", 0, -.25, 0, .5, -.62, -.25), _E("d", .14, .68, .12, .09), flies=True),
    _kind("rocket", "with a round window and a small flame", _P("w", -.22, .6, .22, .6, 0, 1), _P("d", -.3, .1, -.7, .7, -.3, .62), _P("d", .3, .1, .7, .7, .3, .62),
          _B("m", 0, -1, .3, -.6, .38, 0, .3, .62, -.3, .62, -.38, 0, -.3, -.6), _E("w", 0, -.25, .17, .17), flies=True),
    _kind("plane", "with two wings and a tail", _P("d", .05, 0, -.35, -.75, -.55, -.75, -.35, 0), _P("d", -.6, -.05, -.95, -.55, -.75, -.55, -.4, -.05),
          _B("m", .98, .05, .7, -.18, .1, -.22, -.6, -.2, -.95, -.1, -.9, .12, -.4, .22, .3, .25, .8, .2), _P("l", .2, .1, -.3, .75, -.5, .75, -.25, .1),
          _E("w", .6, -.04, .12, .08), flies=True, faces=True),
    # ---- fruit and plants
    _kind("apple", "with a short stem and one leaf", _L("b", .1, 0, -.45, .08, -.9), _B("g", .08, -.7, .35, -.95, .6, -.85, .4, -.62),
          _B("m", 0, -.48, .4, -.62, .85, -.35, .85, .25, .5, .85, .1, .9, 0, .82, -.1, .9, -.5, .85, -.85, .25, -.85, -.35, -.4, -.62), _E("l", -.42, -.12, .13, .2)),
    _kind("pear", "narrow at the top and wide below", _L("b", .1, 0, -.6, .1, -.98), _B("m", 0, -.75, .28, -.62, .32, -.2, .68, .2, .7, .65, .35, .93, -.35, .93,
          -.7, .65, -.68, .2, -.32, -.2, -.28, -.62), _E("l", -.3, .3, .12, .2)),
    _kind("banana", "bent like a smile", _B("m", -.95, -.45, -.75, -.5, -.5, .0, 0, .28, .5, .05, .75, -.55, .95, -.5, .9, .1, .5, .62, 0, .75, -.5, .6, -.88, .15), _P("k", .72, -.55, .78, -.78, .98, -.72, .97, -.5)),
    _kind("cherry", "hanging from two green stems", _W("g", .08, -.42, .3, -.3, -.3, .2, -.9), _W("g", .08, .45, .35, .45, -.2, .2, -.9), _B("g", .2, -.85, .5, -1, .85, -.85, .5, -.72),
          _E("m", -.45, .52, .42, .42), _E("m", .47, .55, .42, .42), _E("l", -.58, .4, .1, .13), _E("l", .34, .42, .1, .13), plural="cherries"),
    _kind("mushroom", "with white dots on its cap", _B("w", -.25, 0, .25, 0, .35, .85, 0, .95, -.35, .85), _B("m", -.95, .05, -.8, -.5, -.35, -.88, .35, -.88, .8, -.5, .95, .05, .5, .18, -.5, .18),
          _E("w", -.4, -.35, .16, .16), _E("w", .25, -.5, .15, .15), _E("w", .58, -.12, .12, .12)),
    _kind("flower", "with round petals on a green stem", _L("g", .1, 0, -.2, 0, 1), _B("g", 0, .75, .3, .4, .6, .45, .35, .75), _petals("m", 6, .42, .28, -.35), _E("w", 0, -.35, .24, .24)),
    _kind("tree", "with a round crown and a brown trunk", _R("b", -.15, .2, .15, 1), _E("m", -.42, -.1, .45, .42), _E("m", .42, -.1, .45, .42), _E("m", 0, -.5, .55, .48)),
    _kind("pine tree", "in three pointed layers", _R("b", -.13, .6, .13, 1), _P("m", 0, -.2, .8, .7, -.8, .7), _P("m", 0, -.62, .65, .25, -.65, .25), _P("m", 0, -1, .48, -.2, -.48, -.2)),
    _kind("cactus", "with two raised arms", _W("m", .3, -.25, .3, -.68, .25, -.68, -.25), _W("m", .3, .25, .1, .68, .05, .68, -.45), _B("m", -.28, 1, -.3, -.5, -.2, -.9, .2, -.9, .3, -.5, .28, 1), _L("l", .07, 0, -.6, 0, .85), plural="cacti"),
    _kind("leaf", "with a line along its middle", _B("m", -.85, .8, -.75, .1, -.2, -.6, .9, -.9, .65, .2, .1, .75, -.55, .8), _L("d", .08, -1, .98, .5, -.55), plural="leaves", faces=True),
    # ---- buildings
    _kind("house", "with a pointed roof, a door and a window", _R("l", -.75, -.1, .75, .95), _P("m", 0, -1, 1, -.08, -1, -.08), _R("b", -.5, .3, -.1, .95), _R("w", .15, .2, .55, .55)),
    _kind("castle", "with two towers and a gate", _P("m", -.95, -.9, -.75, -.9, -.75, -.7, -.6, -.7, -.6, -.9, -.4, -.9, -.4, -.3, -.15, -.3, -.15, -.1, .15, -.1, .15, -.3, .4, -.3, .4, -.9, .6, -.9, .6, -.7,
          .75, -.7, .75, -.9, .95, -.9, .95, .9, -.95, .9), _B("k", -.22, .9, -.22, .4, 0, .2, .22, .4, .22, .9), _R("d", -.75, -.35, -.6, -.05), _R("d", .6, -.35, .75, -.05)),
    _kind("tent", "with an open entrance", _P("m", 0, -.8, 1, .8, -1, .8), _P("d", 0, -.8, .42, .8, -.1, .8), _P("k", 0, -.2, .25, .8, -.18, .8)),
    # ---- vehicles
    _kind("car", "with two round black wheels", _B("l", -.5, -.05, -.35, -.5, .25, -.52, .55, -.05), _B("m", -.95, .0, -.6, -.12, .6, -.12, .95, .05, .95, .42, .8, .48, -.8, .48, -.97, .4), _E("k", -.5, .48, .25, .25), _E("k", .52, .48, .25, .25),
          _E("w", -.5, .48, .1, .1), _E("w", .52, .48, .1, .1), faces=True),
    _kind("bus", "with a row of windows", _R("m", -.98, -.62, .98, .5), _R("w", -.8, -.42, -.45, -.05), _R("w", -.28, -.42, .07, -.05), _R("w", .24, -.42, .6, -.05), _R("l", .72, -.42, .9, .4), _E("k", -.52, .52, .22, .22), _E("k", .5, .52, .22, .22), plural="buses", faces=True),
    _kind("boat", "with one sail on a mast", _R("b", -.06, -.9, .04, .4), _P("m", .08, -.95, .8, .22, .08, .22), _P("l", -.1, -.7, -.1, .22, -.6, .22), _P("d", -.95, .35, .95, .35, .6, .9, -.6, .9), faces=True),
    # ---- household
    _kind("umbrella", "with a curved wooden handle", _W("b", .09, 0, -.2, 0, .7, .12, .95, .3, .75), _P("m", *[v for p in _E("m", 0, 0, .98, .85, 180, 360).points for v in p], .98, 0, .65, -.14, .33, .02, 0, -.14, -.33, .02, -.65, -.14, -.98, 0), _P("l", 0, -.85, .33, .02, 0, -.14, -.33, .02)),
    _kind("cup", "with a round handle", _W("m", .17, .4, -.35, .88, -.3, .88, .35, .4, .4), _B("m", -.7, -.6, .5, -.6, .45, .4, .25, .85, -.45, .85, -.65, .4), _E("d", -.1, -.58, .58, .14)),
    _kind("bottle", "with a long neck and a label", _R("b", -.16, -1, .16, -.8), _B("m", -.15, -.82, .15, -.82, .18, -.4, .42, -.1, .42, .9, 0, .96, -.42, .9, -.42, -.1, -.18, -.4), _R("w", -.4, .15, .4, .6)),
    _kind("vase", "with a narrow neck and a wide belly", _B("m", -.4, -.95, .4, -.95, .22, -.6, .3, -.3, .75, .2, .6, .7, .3, .95, -.3, .95, -.6, .7, -.75, .2, -.3, -.3, -.22, -.6), _W("l", .12, -.66, .2, -.3, .3, .3, .3, .66, .2)),
    _kind("lamp", "with a wide shade on a thin stand", _L("b", .12, 0, -.2, 0, .85), _P("b", -.42, .98, .42, .98, .3, .8, -.3, .8), _P("m", -.4, -.95, .4, -.95, .8, .05, -.8, .05), _P("l", -.2, -.95, .05, -.95, .1, .05, -.35, .05)),
    _kind("candle", "with a small yellow flame", _B("y", 0, -1, .16, -.7, .08, -.5, -.08, -.5, -.16, -.7), _L("k", .06, 0, -.55, 0, -.35), _R("m", -.28, -.38, .28, .85), _P("b", -.6, .98, .6, .98, .45, .78, -.45, .78)),
    _kind("book", "lying open with white pages", _P("m", -.98, -.5, 0, -.3, .98, -.5, .98, .6, 0, .8, -.98, .6), _P("w", -.82, -.52, -.03, -.34, -.03, .56, -.82, .42), _P("w", .82, -.52, .03, -.34, .03, .56, .82, .42)),
    _kind("key", "with two teeth at the end", Outline("m", np.concatenate([_E("m", -.55, 0, .42, .42).points, _E("m", -.55, 0, .42, .42).points[:1], _E("m", -.55, 0, .18, .18).points[:1], _E("m", -.55, 0, .18, .18).points[::-1]])),
          _P("m", -.15, -.12, .98, -.12, .98, .45, .78, .45, .78, .12, .58, .12, .58, .38, .38, .38, .38, .12, -.15, .12), faces=True),
    _kind("bell", "with a small clapper below", _E("k", 0, .78, .18, .18), _B("m", 0, -.92, .35, -.75, .48, -.2, .58, .3, .9, .65, 0, .75, -.9, .65, -.58, .3, -.48, -.2, -.35, -.75), _L("l", .1, -.62, .45, .62, .45)),
    _kind("hat", "with a wide brim and a dark ribbon", _B("m", -.5, .3, -.48, -.55, -.2, -.75, .2, -.75, .48, -.55, .5, .3), _P("k", -.52, .05, .52, .05, .54, .3, -.54, .3), _E("m", 0, .42, .98, .22)),
    _kind("crown", "with three points", _P("m", -.9, -.55, -.42, .0, 0, -.8, .42, .0, .9, -.55, .75, .7, -.75, .7), _E("l", 0, -.78, .12, .12), _E("l", -.88, -.55, .12, .12), _E("l", .88, -.55, .12, .12), _R("d", -.75, .45, .75, .7)),
    _kind("chair", "with a tall back and four legs", _R("m", -.7, -.95, -.45, .98), _R("m", .45, .1, .68, .98), _R("d", -.2, .2, -.05, .85), _P("m", -.7, .0, .68, .0, .68, .25, -.7, .25), _R("l", -.68, -.95, -.47, -.1), faces=True),
    _kind("clock", "with a white face and two hands", _E("m", 0, 0, .95, .95), _E("w", 0, 0, .72, .72), _L("k", .1, 0, 0, 0, -.5), _L("k", .1, 0, 0, .36, .15)),
    _kind("cupcake", "with swirls of icing", _P("b", -.62, .1, .62, .1, .42, .95, -.42, .95), _E("m", 0, .05, .78, .3), _E("m", 0, -.28, .56, .28), _E("m", 0, -.58, .32, .25), _E("k", 0, -.85, .13, .13)),
    _kind("robot", "with a square head and an antenna", _L("k", .07, 0, -.7, 0, -.95), _E("k", 0, -.93, .09, .09), _R("d", -.85, -.02, -.55, .5), _R("d", .55, -.02, .85, .5), _R("d", -.4, .6, -.1, .98), _R("d", .1, .6, .4, .98), _R("m", -.55, -.1, .55, .68), _R("m", -.42, -.75, .42, -.15),
          _E("w", -.18, -.48, .12, .12), _E("w", .18, -.48, .12, .12), _R("l", -.3, .1, .3, .4)),
    _kind("ghost", "with two dark eyes and a wavy hem", _P("m", *[v for p in _E("m", 0, -.2, .72, .75, 180, 360).points for v in p], .72, .9, .48, .68, .24, .92, 0, .7, -.24, .92, -.48, .68, -.72, .9), _eyes(0, -.28, .25, .13), flies=True),
    # ---- animals
    _kind("fish", "with a fan tail and one eye", _P("d", -.45, 0, -.98, -.5, -.98, .5), _B("m", .98, .02, .55, -.45, 0, -.52, -.45, -.2, -.6, 0, -.45, .22, 0, .52, .55, .45), _P("l", .1, .0, -.25, .25, -.2, -.22), _E("k", .58, -.12, .1, .1), plural="fish", faces=True),
    _kind("bird", "with a small orange beak", _P("o", .62, -.5, .98, -.36, .62, -.24), _P("d", -.5, .1, -.98, -.2, -.85, .25), _B("m", .35, -.75, .68, -.5, .65, -.1, .45, .45, -.1, .62, -.6, .3, -.55, .05, -.1, -.1, .1, -.55),
          _B("l", .1, .0, -.15, .38, -.5, .18, -.25, .0), _E("k", .42, -.48, .09, .09), _L("o", .07, -.05, .6, -.05, .95), _L("o", .07, .2, .58, .2, .95), flies=True, faces=True),
    _kind("duck", "swimming with a yellow beak", _P("y", .68, -.55, 1, -.42, .68, -.3), _B("m", .42, -.82, .72, -.6, .66, -.2, .8, .2, .6, .6, 0, .72, -.6, .6, -.95, .0, -.5, .12, .1, .05, .2, -.4, .15, -.65), _B("d", .3, .2, -.1, .5, -.5, .35, -.15, .18), _E("k", .48, -.55, .09, .09), faces=True),
    _kind("cat", "sitting with pointed ears and a tail", _W("m", .2, .4, .75, .85, .6, .8, .1), _B("m", -.45, .95, -.42, .2, -.1, -.1, .25, .2, .5, .7, .45, .95), _P("m", -.72, -.98, -.28, -.65, -.68, -.35), _P("m", .42, -.98, -.02, -.65, .38, -.35), _E("m", -.15, -.38, .55, .42), _eyes(-.15, -.42, .2, .09), _P("w", -.25, -.22, -.05, -.22, -.15, -.1), faces=True),
    _kind("rabbit", "with two long ears", _E("m", -.22, -.62, .15, .4), _E("m", .22, -.62, .15, .4), _E("l", -.22, -.6, .07, .26), _E("l", .22, -.6, .07, .26), _E("m", 0, .62, .5, .38), _E("m", 0, -.02, .44, .38), _eyes(0, -.08, .17, .08), _E("w", 0, .12, .13, .09)),
    _kind("butterfly", "with four spread wings", _E("m", -.52, -.38, .46, .42), _E("m", .52, -.38, .46, .42), _E("m", -.42, .4, .34, .36), _E("m", .42, .4, .34, .36), _E("l", -.52, -.38, .2, .18), _E("l", .52, -.38, .2, .18), _W("k", .06, -.05, -.55, -.2, -.95), _W("k", .06, .05, -.55, .2, -.95), _E("k", 0, 0, .11, .6), plural="butterflies", flies=True),
    _kind("snail", "with a spiral shell", _B("t", -.95, .9, -.8, .6, .3, .55, .6, .0, .85, .0, .85, .5, .6, .9), _L("t", .08, .68, .1, .6, -.35), _L("t", .08, .82, .1, .95, -.3), _E("m", -.15, .08, .62, .6), _W("d", .1, .2, .2, -.1, .45, -.45, .1, -.1, -.22, .15, .05, -.1, .15), faces=True),
    _kind("turtle", "with a domed shell", _E("g", .82, .2, .22, .2), _R("g", -.6, .4, -.3, .75), _R("g", .2, .4, .5, .75), _P("g", -.8, .4, -1, .6, -.7, .55), _P("m", *[v for p in _E("m", -.05, .45, .75, .95, 180, 360).points for v in p]), _E("l", -.05, -.1, .22, .2), _E("l", -.42, .18, .15, .15), _E("l", .32, .18, .15, .15), _E("k", .88, .14, .06, .06), faces=True),
)
# fmt: on

KINDS: dict[str, Kind] = {kind.name: kind for kind in _ALL}
