"""Find the things in a picture: kind, colour, place and extent, by comparing with drawings (analysis by synthesis).

1. `regions` tells background from foreground.
2. Each connected piece of each palette colour proposes where a thing of that colour may be.
3. Every look of every kind is laid over the proposal so that the coloured parts coincide, and compared; the best few
   are moved and stretched a little until they fit best.
4. What fits well enough is taken in the order of how much picture it explains; what is explained is used up.

No network and nothing fitted: the constants below are thresholds, chosen on drawn scenes and on degraded ones.
Coordinates of what is found are in short sides of the picture, as in `train.data.scenes`.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from train.data.scenes import COLOURS
from train.evals import regions as rg
from train.evals.templates import GRID, ROLES, SEEN, SPAN, TILTS, Template, looks, role_colours, template

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]
Box = tuple[float, float, float, float]

ACCEPT = 0.62  # least score of a thing that counts as seen
FREE = 10.0  # RGB distance that costs nothing
WRONG = 70.0  # RGB distance that costs everything
SHORTLIST = 7  # looks refined per proposal
LEAST = 14  # pixels of the small picture: a smaller piece proposes nothing
_CELLS = 28  # cells a side of the quick comparison; the middle 20 are the coloured parts' box
_MARGIN = 4
_M, _PANEL = ROLES.index("m"), ROLES.index("p")
_INK = np.float32((30, 30, 36))
_OUTLINES = np.float32(((24, 24, 30), (236, 240, 232), (255, 255, 255), (150, 150, 160)))


@dataclass(frozen=True)
class Found:
    """One thing seen. `box` is (x0, y0, x1, y1) of the whole thing; all lengths in short sides."""

    kind: str  # a name in SEEN
    colour: str
    x: float
    y: float
    box: Box
    score: float  # 1 is a perfect fit, ACCEPT the least that counts
    at: Box  # centre x, y and half-size across, down of the kind's own box [-1, 1]²
    word: str | None = None  # what a sign says


# --------------------------------------------------------------------------------------------- the quick comparison


@dataclass(frozen=True)
class _Looks:
    """All looks in one colour, laid out so that the parts of the colour's family fill the middle of the window."""

    templates: tuple[Template, ...]
    parts: Floats  # (looks, 4): family box x0, y0, x1, y1 in the kind's own coordinates
    colours: Floats  # (looks, cells, 3)
    inside: Floats  # (looks, cells)
    outside: Floats  # (looks, cells): where the family must not show
    panel: Bools  # (looks, cells): the white of a sign, where dark is a letter


def _family_roles(colour: str) -> Bools:
    return rg.family_distance(role_colours(colour), colour) < rg.FAMILY


def _part_boxes(mine: Bools) -> list[tuple[float, float, float, float]]:
    """Boxes of a look's coloured parts that a piece of a picture may show: all, all but thin lines, the largest."""
    labels, pieces = rg.components(mine)
    largest = labels == 1 + max(range(len(pieces)), key=lambda i: pieces[i][4])
    boxes = [rg.core_box(mine)]
    for mask in (rg.opened(mine), largest):
        if mask.any():
            box = rg.core_box(mask)
            if all(max(abs(p - q) for p, q in zip(box, other, strict=True)) > 2 for other in boxes):
                boxes.append(box)
    return boxes


@functools.cache
def _looks_in(colour: str, whole: bool) -> _Looks:
    """Looks to lay over a piece of one colour or, where `whole`, over a piece of foreground by the silhouette."""
    family, tints = _family_roles(colour), role_colours(colour)
    step = (np.arange(_CELLS) + 0.5 - _MARGIN) / (_CELLS - 2 * _MARGIN)  # 0..1 across the family box
    rows: list[tuple[Template, Floats, Floats, Bools, Bools, Bools]] = []
    for kind in SEEN:
        if kind == "sign" and colour == "white":
            continue  # never drawn, and every sign has a white panel that would pass for one
        for mirrored, shaded in looks(kind):
            t = template(kind, mirrored, shaded)
            mine = np.append(family, False)[t.role]
            for part in [rg.core_box(t.role >= 0)] if whole else _part_boxes(mine):
                box = np.float32(part) * np.float32(2 * SPAN / GRID) - np.float32(SPAN)
                at = [
                    np.clip(((box[i] + step * (box[i + 2] - box[i]) + SPAN) / (2 * SPAN) * GRID), -1, GRID).astype(int)
                    for i in (0, 1)
                ]
                role = np.pad(t.role, 1, constant_values=-1)[np.ix_(at[1] + 1, at[0] + 1)].ravel()
                free = np.pad(t.hole | t.band, 1)[np.ix_(at[1] + 1, at[0] + 1)].ravel()
                inside = role >= 0
                rows.append((t, box, tints[role], inside, ~inside & ~free, role == _PANEL))
    return _Looks(
        tuple(r[0] for r in rows),
        np.stack([r[1] for r in rows]),
        np.stack([r[2] for r in rows]),
        np.stack([r[3] for r in rows]).astype(np.float32),
        np.stack([r[4] for r in rows]).astype(np.float32),
        np.stack([r[5] for r in rows]),
    )


def _cost(d: Floats) -> Floats:
    return np.clip((d - FREE) / (WRONG - FREE), 0, 1)


@dataclass(frozen=True)
class _Fit:
    """A look laid over the picture: centre and half-sizes in pixels of the small picture."""

    look: Template
    colour: str
    cx: float
    cy: float
    rx: float
    ry: float
    score: float


class _Eye:
    """One picture, prepared for sampling windows of any size."""

    def __init__(self, picture: Image.Image) -> None:
        self.regions = rg.regions(picture)
        h, w = self.regions.foreground.shape
        self.size = (w, h)
        pad = max(h, w) // 2
        self._pad = pad
        levels = [(2.0, np.asarray(picture, np.float32)), (1.0, self.regions.pixels)]
        half = np.asarray(picture.reduce(4), np.float32)
        levels.append((0.5, half))
        self._levels = [
            (k, np.pad(a, ((int(pad * k),) * 2, (int(pad * k),) * 2, (0, 0)), mode="edge")) for k, a in levels
        ]
        self.foreground = np.pad(self.regions.foreground, pad)
        self.families = {c: self.regions.family(c) for c in COLOURS}
        self.padded_families = {c: np.pad(f, pad) for c, f in self.families.items()}

    def axes(self, centre: Floats, half: Floats, steps: Floats, scale: float, limit: int) -> NDArray[np.int64]:
        """(J, cells) indices along one padded axis for J windows."""
        at = (centre[:, None] + half[:, None] * steps[None, :] + self._pad) * scale
        return np.clip(at.astype(np.int64), 0, limit - 1)

    def windows(self, xy: Floats, r: Floats, steps: Floats) -> Floats:
        """(J, cells, cells, 3) colours for centres (J, 2) and half-sizes (J, 2)."""
        cell = float(r.mean()) * float(steps[1] - steps[0])  # small pixels
        scale, level = min(self._levels, key=lambda s: abs(np.log(s[0] * cell)))
        xs = self.axes(xy[:, 0], r[:, 0], steps, scale, level.shape[1])
        ys = self.axes(xy[:, 1], r[:, 1], steps, scale, level.shape[0])
        return level[ys[:, :, None], xs[:, None, :]]

    def masks(self, mask: Bools, xy: Floats, r: Floats, steps: Floats) -> Bools:
        """(J, cells, cells) of a padded mask."""
        xs = self.axes(xy[:, 0], r[:, 0], steps, 1.0, mask.shape[1])
        ys = self.axes(xy[:, 1], r[:, 1], steps, 1.0, mask.shape[0])
        return mask[ys[:, :, None], xs[:, None, :]]

    def scores(self, look: Template, colour: str, xy: Floats, r: Floats, stride: int) -> Floats:
        """(J,) how well a look fits J windows; 1 is perfect. `stride` compares every so many-th cell only."""
        cells = slice(stride // 2, None, stride)
        steps = ((np.arange(GRID) + 0.5) * (2 * SPAN / GRID) - SPAN).astype(np.float32)[cells]
        seen = self.windows(xy, r, steps)
        roles, sure, band, hole = (a[cells, cells] for a in (look.role, look.sure, look.band, look.hole))
        inside = roles >= 0
        within = inside & sure
        role = roles[within]
        cost = _cost(rg.distance(seen[:, within], role_colours(colour)[role]))
        family = self.masks(self.padded_families[colour], xy, r, steps)
        ground = self.masks(self.foreground, xy, r, steps)
        # Where the background shows through a thing's own colour the thing is not there, however near the colours.
        cost = np.where((role == _M) & ~ground[:, within], np.maximum(cost, 0.8), cost)
        if look.kind == "sign":  # dark on the panel is a letter
            panel = role == _PANEL
            cost[:, panel] = np.minimum(cost[:, panel], 0.1 + _cost(rg.distance(seen[:, within][:, panel], _INK)))
        wrong = cost.sum(1)
        outside = ~inside & sure
        band = band & outside
        edge = np.min([rg.distance(seen[:, band], o) for o in _OUTLINES], 0) < 40
        extra = (family[:, band] & ~edge).sum(1) + 0.4 * (ground[:, band] & ~family[:, band] & ~edge).sum(1)
        far = outside & ~band & ~hole
        extra = extra + family[:, far].sum(1) + family[:, hole & outside & ~band].sum(1)
        return (1 - (wrong + 0.8 * extra) / max(1, int(within.sum()))).astype(np.float32)


def _shortlist(eye: _Eye, colour: str, box: Box, whole: bool) -> list[_Fit]:
    """The looks that agree best with the coloured parts (or the silhouette) at `box` in small pixels, unrefined."""
    all_looks = _looks_in(colour, whole)
    x0, y0, x1, y1 = box
    w, h = x1 - x0, y1 - y0
    parts = all_looks.parts
    rx, ry = w / (parts[:, 2] - parts[:, 0]), h / (parts[:, 3] - parts[:, 1])
    stretch = np.abs(np.log(rx / ry))
    keep = np.nonzero((stretch < 0.5) & (np.maximum(rx, ry) < 0.75 * max(eye.size)))[0]
    if not len(keep):
        return []
    steps = ((np.arange(_CELLS) + 0.5 - _MARGIN) / (_CELLS - 2 * _MARGIN) * 2 - 1).astype(np.float32)
    xy, r = np.float32([[(x0 + x1) / 2, (y0 + y1) / 2]]), np.float32([[w / 2, h / 2]])
    seen = eye.windows(xy, r, steps).reshape(1, -1, 3)
    family = eye.masks(eye.padded_families[colour], xy, r, steps).reshape(1, -1)
    cost = _cost(rg.distance(seen, all_looks.colours[keep]))
    panel = all_looks.panel[keep]
    cost[panel] = np.minimum(cost[panel], 0.1 + _cost(rg.distance(seen, _INK)).repeat(len(cost), 0)[panel])
    inside = all_looks.inside[keep]
    wrong = (cost * inside).sum(1)
    extra = (family * all_looks.outside[keep]).sum(1)
    score = 1 - (wrong + 0.8 * extra) / inside.sum(1) - np.maximum(0, stretch[keep] - 0.12)
    fits: list[_Fit] = []
    for j in np.argsort(-score)[:SHORTLIST].tolist():
        if score[j] < 0.2:
            break
        i = int(keep[j])
        p = parts[i]
        cx = (x0 + x1) / 2 - rx[i] * (p[0] + p[2]) / 2
        cy = (y0 + y1) / 2 - ry[i] * (p[1] + p[3]) / 2
        where = (float(cx), float(cy), float(rx[i]), float(ry[i]))
        fits.append(_Fit(all_looks.templates[i], colour, *where, score=float(score[j])))
    return fits


_MOVES = np.float32([(0, 0, 0, 0), (1, 0, 0, 0), (-1, 0, 0, 0), (0, 1, 0, 0), (0, -1, 0, 0),
                     (0, 0, 1, 0), (0, 0, -1, 0), (0, 0, 0, 1), (0, 0, 0, -1)])  # fmt: skip


def _refine(eye: _Eye, fit: _Fit, look: Template | None = None, *, steps: tuple[float, ...], stride: int = 1) -> _Fit:
    """Move and stretch a look until it fits best; `stride` skips cells."""
    look = look or fit.look
    at = np.float32([fit.cx, fit.cy, fit.rx, fit.ry])
    best = -np.inf
    for step in steps:
        for _ in range(3):
            size = float(at[2:].mean())
            tries = at + _MOVES * step * size
            tries = tries[(tries[:, 2:] > 1.5).all(1)]
            stretch = np.abs(np.log(tries[:, 2] / tries[:, 3]))
            score = eye.scores(look, fit.colour, tries[:, :2], tries[:, 2:], stride) - 0.5 * np.maximum(
                0, stretch - 0.1
            )
            i = int(score.argmax())
            if score[i] <= best + 1e-4:
                break
            best, at = float(score[i]), tries[i]
            if i == 0:
                break
    return _Fit(look, fit.colour, *(float(v) for v in at), score=best)


def _proposals(eye: _Eye) -> list[tuple[str, Box, bool]]:
    """(colour, box in small pixels, whether the box is a silhouette's).

    Pieces of one colour, all of one colour inside one piece of foreground, and whole pieces of foreground.
    """
    solid = rg.opened(eye.regions.foreground)
    labels, wholes = rg.components(solid)
    big = [k + 1 for k, piece in enumerate(wholes) if piece[4] >= 4 * LEAST]
    whole_boxes = {k: rg.core_box(labels == k) for k in big}
    areas = np.bincount(labels.ravel(), minlength=len(wholes) + 1)
    out: list[tuple[str, Box, bool]] = []
    for colour, full in eye.families.items():
        if int(full.sum()) < LEAST:
            continue
        boxes: set[Box] = set()
        family = rg.opened(full)
        if family.sum() < 0.4 * full.sum():  # thin by nature, such as the covers of an open book
            family = full
        piece_labels, pieces = rg.components(family)
        for k, piece in enumerate(pieces):
            if piece[4] >= LEAST:
                boxes.add(rg.core_box(piece_labels == k + 1))
        counts = np.bincount(labels[family], minlength=len(wholes) + 1)
        for k in big:
            if counts[k] >= LEAST:
                boxes.add(rg.core_box(family & (labels == k)))
        out += [(colour, box, False) for box in boxes if min(box[2] - box[0], box[3] - box[1]) >= 3]
        shares = np.bincount(labels[full], minlength=len(wholes) + 1)
        out += [(colour, whole_boxes[k], True) for k in big if shares[k] > 0.12 * areas[k]]
    return out


def _extent(look: Template) -> tuple[float, float, float, float]:
    axis = (np.arange(GRID) + 0.5) * (2 * SPAN / GRID) - SPAN
    inside = look.role >= 0
    ys, xs = axis[inside.any(1)], axis[inside.any(0)]
    half = SPAN / GRID
    return float(xs[0]) - half, float(ys[0]) - half, float(xs[-1]) + half, float(ys[-1]) + half


def _silhouette(fit: _Fit, size: tuple[int, int]) -> tuple[slice, slice, Bools]:
    """Rows, columns and mask of the small pixels a fit covers."""
    w, h = size
    x0, x1 = max(0, int(fit.cx - SPAN * fit.rx)), min(w, int(fit.cx + SPAN * fit.rx) + 1)
    y0, y1 = max(0, int(fit.cy - SPAN * fit.ry)), min(h, int(fit.cy + SPAN * fit.ry) + 1)
    xs = ((np.arange(x0, x1) + 0.5 - fit.cx) / fit.rx + SPAN) / (2 * SPAN) * GRID
    ys = ((np.arange(y0, y1) + 0.5 - fit.cy) / fit.ry + SPAN) / (2 * SPAN) * GRID
    role = np.pad(fit.look.role, 1, constant_values=-1)
    cells = role[np.ix_(np.clip(ys, -1, GRID).astype(int) + 1, np.clip(xs, -1, GRID).astype(int) + 1)]
    return slice(y0, y1), slice(x0, x1), cells >= 0


def fits_in(eye: _Eye) -> list[_Fit]:
    """Every proposal's best few fits, refined."""
    fits: list[_Fit] = []
    for colour, box, whole in _proposals(eye):
        rough = [_refine(eye, f, steps=(0.08, 0.04), stride=2) for f in _shortlist(eye, colour, box, whole)]
        rough = sorted((f for f in rough if f.score > 0.45), key=lambda f: -f.score)[:2]
        for fit in [_refine(eye, f, steps=(0.04, 0.025)) for f in rough]:
            options = [fit]
            for tilt in TILTS:
                if tilt and fit.look.kind not in ("frame", "bubble", "sign"):
                    look = template(fit.look.kind, fit.look.mirrored, fit.look.shaded, tilt)
                    options.append(_refine(eye, fit, look, steps=(0.04,)))
            fits.append(max(options, key=lambda f: f.score))
    return fits


def find_things(picture: Image.Image) -> list[Found]:
    """The things in a picture of any size, most explaining first. Words on signs are not read here."""
    eye = _Eye(rg.normalised(picture))
    w, h = eye.size
    unit = min(w, h)
    candidates: list[tuple[float, _Fit, tuple[slice, slice, Bools]]] = []
    for fit in fits_in(eye):
        if fit.score >= ACCEPT:
            cover = _silhouette(fit, eye.size)
            candidates.append(((fit.score - 0.5) * float(cover[2].sum()) ** 0.5, fit, cover))
    used = np.zeros((h, w), bool)
    found: list[Found] = []
    for _, fit, (rows, columns, mask) in sorted(candidates, key=lambda c: -c[0]):
        if (used[rows, columns] & mask).sum() > 0.3 * mask.sum():
            continue
        used[rows, columns] |= mask
        x0, y0, x1, y1 = _extent(fit.look)
        box = (
            (fit.cx + x0 * fit.rx) / unit, (fit.cy + y0 * fit.ry) / unit,
            (fit.cx + x1 * fit.rx) / unit, (fit.cy + y1 * fit.ry) / unit,
        )  # fmt: skip
        at = (fit.cx / unit, fit.cy / unit, fit.rx / unit, fit.ry / unit)
        centre = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
        found.append(Found(fit.look.kind, fit.colour, *centre, box, round(fit.score, 3), at))
    return found
