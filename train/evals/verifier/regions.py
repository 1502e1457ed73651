"""From a picture to regions: what is background, and the connected pieces of each palette colour.

Works on a small float array (short side `SMALL` pixels): the reduction removes noise and softness alike. Pillow and
numpy only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from train.evals.verifier.templates import f32, role_colours
from train.world.drawing import CLOUD, DASH
from train.world.scenes import GROUNDS, SKIES

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int32]

SIDE = 256  # pixels: every picture is brought to this short side
SMALL = 128
_OVERCAST, _CLOUD = f32(SKIES["cloudy"][0]), f32(CLOUD)
_ROAD, _DASH = f32(GROUNDS["road"]), f32(DASH)
_ROADLIKE = 45.0  # RGB distance of a ground that may have dashes
_DASH_REACH, _DASH_HEIGHT = 12, 6  # rows of the small picture: a model draws them off the middle, and blurred
FAMILY = 46.0  # RGB distance within which a pixel belongs to a colour's m, d or l


def normalised(picture: Image.Image) -> Image.Image:
    """RGB at a short side of 256 pixels."""
    picture = picture.convert("RGB")
    w, h = picture.size
    if min(w, h) == SIDE:
        return picture
    k = SIDE / min(w, h)
    return picture.resize((round(w * k), round(h * k)), Image.Resampling.LANCZOS)


def small(picture: Image.Image) -> Floats:
    """(H, W, 3) float32, 0-255, at half the normalised size."""
    return np.asarray(picture.reduce(SIDE // SMALL), np.float32)


def distance(pixels: Floats, colour: Floats) -> Floats:
    """Euclidean RGB distance of (..., 3) to a colour (3,) or to as many colours."""
    d = pixels - colour
    return np.sqrt(np.einsum("...c,...c->...", d, d))


def _between(pixels: Floats, start: Floats, end: Floats) -> tuple[Floats, Floats]:
    """How far along the line from one colour to another each pixel (..., 3) lies, 0 to 1, and its distance to it."""
    line = end - start
    along = np.einsum("...c,...c->...", pixels - start, line) / np.maximum(1, np.einsum("...c,...c->...", line, line))
    along = np.clip(along, 0, 1).astype(np.float32)
    return along, distance(pixels, start + along[..., None] * line)


def family_distance(pixels: Floats, colour: str) -> Floats:
    """Distance of (..., 3) to the line from a colour's darker shade over itself to its lighter one.

    To the line and not to its three points: a softened picture holds every mixture of two neighbouring shades.
    """
    main, dark, light = role_colours(colour)[:3]
    out = np.full(pixels.shape[:-1], np.inf, np.float32)
    for end in (dark, light):
        out = np.minimum(out, _between(pixels, main, end)[1])
    return out


# ------------------------------------------------------------------------------------------------------ background


def _split_fit(profile: Floats) -> tuple[int, Floats, Floats]:
    """Fit one column of the picture, (H, 3), as a linear sky above a row and a constant ground below it.

    Returns (row, sky colour per row (H, 3), ground colour (3,)). With no split, row is H and ground the sky's end.
    """
    h = len(profile)
    rows = np.arange(h, dtype=np.float32)

    def line(upto: int) -> Floats:
        part, x = profile[:upto], rows[:upto]
        keep = np.ones(upto, bool)
        fit = np.zeros((2, 3), np.float32)
        for _ in range(3):  # drop what an object or a cloud at the border disturbs
            a = np.stack([x[keep], np.ones(int(keep.sum()), np.float32)], 1)
            fit = np.linalg.lstsq(a, part[keep], rcond=None)[0].astype(np.float32)
            off = distance(x[:, None] * fit[0] + fit[1], part)
            keep = off <= max(6.0, float(np.median(off)) * 2)
            if keep.sum() < upto // 3:
                break
        return rows[:, None] * fit[0] + fit[1]

    def cost(model: Floats) -> float:
        return float(np.minimum(distance(model, profile), 40).mean())

    whole = line(h)
    best = (cost(whole), h, whole, whole[-1])
    for row in range(h // 4, h * 19 // 20, max(1, h // 32)):
        sky, ground = line(row), np.median(profile[row + 1 :], 0).astype(np.float32)
        model = np.where(rows[:, None] < row, sky, ground)
        c = cost(model) + 1.0  # a split must earn its place
        if c < best[0]:
            best = (c, row, sky, ground)
    return best[1:]


def _dashes(pixels: Floats, ground: Floats, middle: float) -> Bools:
    """The dashes of a road: flat light runs about its middle row with road close above and close below.

    By their form and not only by their colour, which a model draws as white as a white thing; nothing that is drawn is
    as flat.
    """
    first, last = round(middle) - _DASH_REACH, round(middle) + _DASH_REACH + 1
    along, off = _between(pixels[first:last], ground, _DASH)
    road = (along < 0.25) & (off < FAMILY)
    light = (along >= 0.25) & (off < FAMILY)
    above, below = road, road
    for _ in range(_DASH_HEIGHT):
        above = above | np.pad(above, ((1, 0), (0, 0)))[:-1]
        below = below | np.pad(below, ((0, 1), (0, 0)))[1:]
    out = np.zeros(pixels.shape[:2], bool)
    out[first:last] = grown(light & above & below)
    return out


def background_distance(pixels: Floats) -> tuple[Floats, float]:
    """(H, W): how far each pixel is from the nearest background colour that the borders show, in RGB units; and how
    far the borders themselves typically are (their noise).

    The borders of a picture are taken to be background. Their columns give a sky (a vertical gradient) and a ground;
    a row whose two ends agree is background in that colour too (a table's edge, planks).
    """
    left, right = np.median(pixels[:, :3], 1), np.median(pixels[:, -3:], 1)
    near = np.full(pixels.shape[:2], np.inf, np.float32)
    height = len(pixels)
    rows = np.arange(height)[:, None]
    slack = height // 5  # a hill's top lies this much above its feet at the borders
    for profile in (left, right):
        row, sky, ground = _split_fit(profile.astype(np.float32))
        near = np.minimum(near, distance(pixels, sky[:, None, :]) + np.where(rows < row + slack, 0, 1e3))
        near = np.minimum(near, distance(pixels, ground) + np.where(rows > row - slack, 0, 1e3))
        if float(distance(sky[0], _OVERCAST)) < 24:
            # Clouds and their soft edges are background too, but a white thing must stay one: the nearer to a cloud's
            # own colour a pixel lies, the less it may be off.
            along, off = _between(pixels, sky[:, None, :], _CLOUD)
            near = np.minimum(near, (1 + along) * off + np.where(rows < row + slack, 0, 1e3))
        if float(distance(ground, _ROAD)) < _ROADLIKE:
            near[_dashes(pixels, ground, (row + height) / 2)] = 0
    agree = distance(left, right) < 12
    ends = distance(pixels, f32((left + right) / 2)[:, None, :])
    away = np.where(agree[:, None], np.minimum(near, ends), near).astype(np.float32)
    return away, float(np.median(np.concatenate([away[:, :3].ravel(), away[:, -3:].ravel(), away[:3].ravel()])))


# ------------------------------------------------------------------------------------------------------ components


def components(mask: Bools) -> tuple[Ints, list[tuple[int, int, int, int, int]]]:
    """4-connected pieces of a mask: labels (H, W) from 1, and (x0, y0, x1, y1, area) of each, ends exclusive."""
    h, w = mask.shape
    edge = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    ys, starts = np.nonzero(edge == 1)
    ends = np.nonzero(edge == -1)[1]
    parent = list(range(len(ys)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first = np.searchsorted(ys, np.arange(h + 1)).tolist()
    s, e = starts.tolist(), ends.tolist()
    for y in range(1, h):
        i, j = first[y - 1], first[y]
        while i < first[y] and j < first[y + 1]:
            if s[i] < e[j] and s[j] < e[i]:
                a, b = root(i), root(j)
                parent[max(a, b)] = min(a, b)
            if e[i] < e[j]:
                i += 1
            else:
                j += 1
    labels = np.zeros((h, w), np.int32)
    number: dict[int, int] = {}
    boxes: list[tuple[int, int, int, int, int]] = []
    for i, y in enumerate(ys.tolist()):
        r = root(i)
        if r not in number:
            number[r] = len(boxes) + 1
            boxes.append((s[i], y, e[i], y + 1, 0))
        k = number[r]
        labels[y, s[i] : e[i]] = k
        x0, y0, x1, _, area = boxes[k - 1]
        boxes[k - 1] = (min(x0, s[i]), y0, max(x1, e[i]), y + 1, area + e[i] - s[i])
    return labels, boxes


def eroded(mask: Bools, pixels: int = 1) -> Bools:
    """Shrink by `pixels` in the four directions."""
    for _ in range(pixels):
        p = np.pad(mask, 1)
        mask = p[1:-1, 1:-1] & p[:-2, 1:-1] & p[2:, 1:-1] & p[1:-1, :-2] & p[1:-1, 2:]
    return mask


def grown(mask: Bools, pixels: int = 1) -> Bools:
    """Grow by `pixels` in the four directions."""
    for _ in range(pixels):
        p = np.pad(mask, 1)
        mask = p[1:-1, 1:-1] | p[:-2, 1:-1] | p[2:, 1:-1] | p[1:-1, :-2] | p[1:-1, 2:]
    return mask


def opened(mask: Bools, pixels: int = 1) -> Bools:
    """Without what is no more than 2 * `pixels` wide: outlines, softened edges, strings."""
    return grown(eroded(mask, pixels), pixels)


def core_box(mask: Bools) -> tuple[float, float, float, float]:
    """(x0, y0, x1, y1), ends exclusive, of a non-empty mask without the outermost 1.5 % of its mass on each side."""
    out: list[float] = []
    for axis in (0, 1):
        mass = np.cumsum(mask.sum(axis), dtype=np.float64)
        total = mass[-1]
        out += [float(np.searchsorted(mass, 0.015 * total)), float(np.searchsorted(mass, 0.985 * total)) + 1]
    return out[0], out[2], out[1], out[3]


@dataclass(frozen=True)
class Regions:
    """`pixels` (H, W, 3) and, of the same size, how far each is from the background and whether it is foreground."""

    pixels: Floats
    away: Floats
    foreground: Bools

    def family(self, colour: str) -> Bools:
        """(H, W): foreground pixels that could be a thing's `colour`, its darker or its lighter shade."""
        out = np.zeros_like(self.foreground)
        out[self.foreground] = family_distance(self.pixels[self.foreground], colour) < FAMILY
        return out


def regions(picture: Image.Image) -> Regions:
    """Split a normalised picture."""
    pixels = small(picture)
    away, noise = background_distance(pixels)
    return Regions(pixels, away, away > max(18.0, 4 * noise))
