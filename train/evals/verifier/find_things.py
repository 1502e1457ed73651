"""Find the things in a picture: kind, colour, place and extent, by comparing with drawings (analysis by synthesis).

1. `regions` tells background from foreground.
2. Each connected piece of each palette colour proposes where a thing of that colour may be.
3. Every look of every kind is laid over the proposal so that the coloured parts coincide, and compared; the best few
   are moved and stretched a little until they fit best.
4. What fits well enough is taken in the order of how well and how much foreground it explains, and uses that up.

No network and nothing fitted: the constants below are thresholds, chosen on drawn scenes and on degraded ones. The
order of step 4 was chosen among a dozen on pictures that Lens-Nano had drawn before, looking at each that it changed.
Coordinates of what is found are in short sides of the picture, as in `train.world.scenes`.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from train.evals.verifier import regions as rg
from train.evals.verifier.pixel_errors import BAND, FAR, LEAST, NOTHING, Eye, uses_of
from train.evals.verifier.templates import (
    CONTAINERS,
    GRID,
    SEEN,
    SPAN,
    TILTS,
    Template,
    f32,
    looks,
    role_colours,
    template,
)

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]
Box = tuple[float, float, float, float]

ACCEPT = 0.45  # least score of a thing that counts as seen
ROUGH = 0.3  # least score, before the last refinement, of a look that is refined
SHORTLIST = 32  # looks per proposal that are moved a little: where an arm is missing, a robot starts far from its place
BEST = 6  # kinds per proposal that are refined in full
# Half-sizes of drawn things are 0.054 to 0.46 short sides, of 20,000 scenes. What is far from it is a road's dashes or
# a whole sky: laid over it, a look that is mostly open explains what nobody drew.
SIZES = (0.047, 0.53)
GAPS = (2, 6)  # pixels of the small picture by which pieces are grown to see which belong together
_CELLS = 28  # cells a side of the quick comparison; the middle 20 are the coloured parts' box
_MARGIN = 4


@dataclass(frozen=True)
class FoundThing:
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
    uses: NDArray[np.int64]  # (looks, cells): use * cells + cell, an index into the window's costs
    inside: Floats  # (looks,): how many cells have a role


def _family_roles(colour: str) -> Bools:
    return rg.family_distance(role_colours(colour), colour) < rg.FAMILY


def _part_boxes(mine: Bools) -> list[tuple[float, float, float, float]]:
    """Boxes of a look's coloured parts that a piece of a picture may show: all, all but thin lines, each large part."""
    parts: list[Bools] = []
    for mask in (mine, rg.opened(mine)):  # a strip of one cell joins a bottle's neck to its foot, past the label
        labels, pieces = rg.components(mask)
        largest = max((piece[4] for piece in pieces), default=0)
        parts += [labels == k + 1 for k, piece in enumerate(pieces) if piece[4] > 0.35 * largest]
    boxes = [rg.core_box(mine)]
    for mask in (rg.opened(mine), rg.opened(mine, 2), *parts):
        if mask.any():
            box = rg.core_box(mask)
            if all(max(abs(p - q) for p, q in zip(box, other, strict=True)) > 2 for other in boxes):
                boxes.append(box)
    return boxes


@functools.cache
def _looks_in(colour: str, whole: bool) -> _Looks:
    """Looks to lay over a piece of one colour or, where `whole`, over a piece of foreground by the silhouette."""
    family = _family_roles(colour)
    step = (np.arange(_CELLS) + 0.5 - _MARGIN) / (_CELLS - 2 * _MARGIN)  # 0..1 across the family box
    cells = np.arange(_CELLS * _CELLS)
    rows: list[tuple[Template, Floats, NDArray[np.int64], int]] = []
    for kind in SEEN:
        if kind == "sign" and colour == "white":
            continue  # never drawn, and every sign has a white panel that would pass for one
        for mirrored, shaded in looks(kind):
            t = template(kind, mirrored, shaded)
            uses = np.pad(np.where(t.hole | t.band, NOTHING, uses_of(t)), 1, constant_values=FAR)
            mine = np.append(family, False)[t.role]
            for part in [rg.core_box(t.role >= 0)] if whole else _part_boxes(mine):
                box = f32(part) * f32(2 * SPAN / GRID) - f32(SPAN)
                at = [
                    np.clip(((box[i] + step * (box[i + 2] - box[i]) + SPAN) / (2 * SPAN) * GRID), -1, GRID).astype(int)
                    for i in (0, 1)
                ]
                use = uses[np.ix_(at[1] + 1, at[0] + 1)].ravel()
                rows.append((t, box, use * len(cells) + cells, max(1, int((use < BAND).sum()))))
    return _Looks(
        tuple(r[0] for r in rows),
        np.stack([r[1] for r in rows]),
        np.stack([r[2] for r in rows]),
        f32([r[3] for r in rows]),
    )


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


def _shortlist(eye: Eye, colour: str, box: Box, whole: bool) -> list[_Fit]:
    """The looks that agree best with the coloured parts (or the silhouette) at `box` in small pixels, unrefined."""
    all_looks = _looks_in(colour, whole)
    x0, y0, x1, y1 = box
    w, h = x1 - x0, y1 - y0
    parts = all_looks.parts
    rx, ry = w / (parts[:, 2] - parts[:, 0]), h / (parts[:, 3] - parts[:, 1])
    stretch = np.abs(np.log(rx / ry))
    # No drawn thing is as small as four pixels, nor larger than the picture.
    keep = np.nonzero((stretch < 0.5) & (np.minimum(rx, ry) > 2) & (np.maximum(rx, ry) < 0.75 * max(eye.size)))[0]
    if not len(keep):
        return []
    steps = ((np.arange(_CELLS) + 0.5 - _MARGIN) / (_CELLS - 2 * _MARGIN) * 2 - 1).astype(np.float32)
    costs = eye.window(colour, box, steps).ravel()
    score = 1 - costs[all_looks.uses[keep]].sum(1) / all_looks.inside[keep] - np.maximum(0, stretch[keep] - 0.12)
    fits: list[_Fit] = []
    times: dict[str, int] = {}
    for j in np.argsort(-score).tolist():
        if score[j] < 0.2 or len(fits) == SHORTLIST:
            break
        kind = all_looks.templates[keep[j]].kind
        times[kind] = times.get(kind, 0) + 1
        if times[kind] > 2:  # leave room for kinds that show their worth only when the whole thing is compared
            continue
        i = int(keep[j])
        p = parts[i]
        cx = (x0 + x1) / 2 - rx[i] * (p[0] + p[2]) / 2
        cy = (y0 + y1) / 2 - ry[i] * (p[1] + p[3]) / 2
        where = (float(cx), float(cy), float(rx[i]), float(ry[i]))
        fits.append(_Fit(all_looks.templates[i], colour, *where, score=float(score[j])))
    return fits


_MOVES = f32([(0, 0, 0, 0), (1, 0, 0, 0), (-1, 0, 0, 0), (0, 1, 0, 0), (0, -1, 0, 0),
                     (0, 0, 1, 0), (0, 0, -1, 0), (0, 0, 0, 1), (0, 0, 0, -1)])  # fmt: skip


def _refine(eye: Eye, fit: _Fit, look: Template | None = None, *, steps: tuple[float, ...], stride: int = 1) -> _Fit:
    """Move and stretch a look until it fits best; `stride` skips cells."""
    look = look or fit.look
    at = f32([fit.cx, fit.cy, fit.rx, fit.ry])
    best = -np.inf
    for step in steps:
        for _ in range(3):
            size = float(at[2:].mean())
            tries = f32(at + _MOVES * f32(step * size))
            tries = tries[(tries[:, 2:] > 1.5).all(1)]
            stretch = np.abs(np.log(tries[:, 2] / tries[:, 3]))
            score = eye.scores(look, fit.colour, tries, stride) - 0.5 * np.maximum(0, stretch - 0.1)
            i = int(score.argmax())
            if score[i] <= best + 1e-4:
                break
            best, at = float(score[i]), tries[i]
            if i == 0:
                break
    return _Fit(look, fit.colour, *(float(v) for v in at), score=best)


def _proposals(eye: Eye) -> list[tuple[str, Box, bool]]:
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
        for mask in (family, rg.opened(full, 2)):  # the second parts things from a road's dashes and a sea's waves
            piece_labels, pieces = rg.components(mask)
            for k, piece in enumerate(pieces):
                if piece[4] >= LEAST:
                    boxes.add(rg.core_box(piece_labels == k + 1))
        for gap in GAPS:  # parts that belong together: a robot's head and body, a bottle above and below its label
            joined, groups = rg.components(rg.grown(family, gap))
            for k, group in enumerate(groups):
                if group[4] >= LEAST:
                    boxes.add(rg.core_box(family & (joined == k + 1)))
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


def fits_in(eye: Eye) -> list[_Fit]:
    """Every proposal's best few fits, refined."""
    fits: list[_Fit] = []
    for colour, box, whole in _proposals(eye):
        rough: dict[str, _Fit] = {}  # the best of each kind: looks of one kind must not crowd out the others
        for start in _shortlist(eye, colour, box, whole):
            fit = _refine(eye, start, steps=(0.08, 0.04), stride=2)
            if fit.score > max(ROUGH, rough[fit.look.kind].score if fit.look.kind in rough else 0):
                rough[fit.look.kind] = fit
        for fit in sorted(rough.values(), key=lambda f: -f.score)[:BEST]:
            fit = _refine(eye, fit, steps=(0.04, 0.025))
            options = [fit]
            for tilt in TILTS:
                if tilt and fit.look.kind not in (*CONTAINERS, "sign"):
                    look = template(fit.look.kind, fit.look.mirrored, fit.look.shaded, tilt)
                    options.append(_refine(eye, fit, look, steps=(0.04,)))
            best = max(options, key=lambda f: f.score)
            # A sign is read afterwards, for which its panel must lie exactly.
            fits.append(_refine(eye, best, steps=(0.02, 0.01)) if best.look.kind == "sign" else best)
    return fits


def _drawable(fit: _Fit, unit: int) -> bool:
    """Whether things are drawn in a size like this; `unit`: the short side."""
    return SIZES[0] * unit <= min(fit.rx, fit.ry) and max(fit.rx, fit.ry) <= SIZES[1] * unit


def _distinct(fits: list[_Fit]) -> list[_Fit]:
    """Keep the best of the fits of one kind at one place, in whatever colour: an outline must not win by its size."""
    kept: list[_Fit] = []
    for fit in sorted(fits, key=lambda f: -f.score):
        for other in kept:
            off = max(abs(fit.cx - other.cx) / other.rx, abs(fit.cy - other.cy) / other.ry)
            if fit.look.kind == other.look.kind and off < 0.4 and 0.7 < fit.rx / other.rx < 1.4:
                break
        else:
            kept.append(fit)
    return kept


def _explained(eye: Eye, fit: _Fit, cover: tuple[slice, slice, Bools]) -> float:
    """How many foreground pixels a fit explains, less those it gets wrong and what it puts on mere background.

    By the score alone a kind of few parts wins by what it leaves out: a cloud fits the body of a fish better than a
    fish does that has to account for the tail as well.
    """
    rows, columns, mask = cover
    return float((eye.regions.foreground[rows, columns] & mask).sum()) - (1 - fit.score) * float(mask.sum())


def find_things(picture: Image.Image) -> list[FoundThing]:
    """The things in a picture of any size, most explaining first. Words on signs are not read here."""
    eye = Eye(rg.normalised(picture))
    w, h = eye.size
    unit = min(w, h)
    candidates: list[tuple[float, _Fit, tuple[slice, slice, Bools]]] = []
    for fit in _distinct([fit for fit in fits_in(eye) if fit.score >= ACCEPT and _drawable(fit, unit)]):
        cover = _silhouette(fit, eye.size)
        if cover[2].any():
            gain = fit.score * _explained(eye, fit, cover)
            if gain > 0:  # what lies on mere background, such as an outline around two clouds, is no thing
                candidates.append((gain, fit, cover))
    used = np.zeros((h, w), bool)
    found: list[FoundThing] = []
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
        found.append(FoundThing(fit.look.kind, fit.colour, *centre, box, round(fit.score, 3), at))
    return found
