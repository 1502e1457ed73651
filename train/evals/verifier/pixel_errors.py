"""One picture prepared for comparison: for every colour and role, how wrong each pixel would be in that role.

The comparison of a look with a window of the picture is then a sum over looked-up costs, fast enough for thousands of
windows a picture. Besides the roles of `train.evals.verifier.templates` there are three uses of a cell: BAND around the
silhouette, where an outline, a paper edge or a shadow is no mistake; FAR, where only the thing's own colour is one;
and NOTHING.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from train.evals.verifier import regions as rg
from train.evals.verifier.templates import GRID, ROLES, SPAN, Template, f32, role_colours
from train.world.scenes import COLOURS

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

LEAST = 14  # pixels of the small picture: fewer of a colour propose nothing and tell no tone
FREE = 10.0  # RGB distance that costs nothing
WRONG = 70.0  # RGB distance that costs everything
BAND, FAR, NOTHING = len(ROLES), len(ROLES) + 1, len(ROLES) + 2
_USES = len(ROLES) + 3
_OUTSIDE = 0.8  # what a cell of the thing's colour outside its silhouette costs, against 1 for a wrong cell inside
_M, _PANEL = ROLES.index("m"), ROLES.index("p")
_INK = f32((30, 30, 36))
_OUTLINES = f32(((24, 24, 30), (236, 240, 232), (255, 255, 255), (150, 150, 160)))


def cost(d: Floats) -> Floats:
    """RGB distance -> 0 (right) to 1 (wrong)."""
    return np.clip((d - FREE) / (WRONG - FREE), 0, 1)


@functools.cache
def _plan(look: Template, stride: int) -> tuple[Floats, Ints, Ints, Ints, int]:
    """(steps, rows, columns, uses, cells inside) of the cells that count, `stride` apart."""
    pick = slice(stride // 2, None, stride)
    steps = ((np.arange(GRID) + 0.5) * (2 * SPAN / GRID) - SPAN).astype(np.float32)[pick]
    uses = uses_of(look)[pick, pick]
    rows, columns = np.nonzero(uses != NOTHING)
    used = uses[rows, columns]
    return steps, rows, columns, used, max(1, int((used < BAND).sum()))


def uses_of(look: Template) -> Ints:
    """(GRID, GRID): the role of each cell inside, BAND, FAR or NOTHING outside; NOTHING where two meet."""
    uses = look.role.astype(np.int64)
    uses[look.role < 0] = FAR
    uses[look.band] = BAND
    uses[~look.sure] = NOTHING
    return uses


class Eye:
    """One picture, prepared. Coordinates are pixels of the small picture (short side 128)."""

    def __init__(self, picture: Image.Image) -> None:
        self.regions = rg.regions(picture)
        h, w = self.regions.foreground.shape
        self.size = (w, h)
        self.families = {c: self.regions.family(c) for c in COLOURS}
        self._pad = max(h, w) // 2
        edge = np.min([rg.distance(self.regions.pixels, o) for o in _OUTLINES], 0) < 40
        self._plain = self.regions.foreground & ~edge
        self._fixed: dict[tuple[float, ...], Floats] = {}
        self._tables: dict[str, tuple[NDArray[np.float32], int]] = {}

    def _role(self, colour: Floats) -> Floats:
        key = tuple(colour.tolist())
        if key not in self._fixed:
            self._fixed[key] = cost(rg.distance(self.regions.pixels, colour))
        return self._fixed[key]

    def _table(self, colour: str) -> tuple[Floats, int]:
        """Costs (uses * rows * columns,) of the padded picture in each use, and its row length."""
        if colour not in self._tables:
            family, foreground = self.families[colour], self.regions.foreground
            maps = [self._role(c) for c in role_colours(colour)]
            for role, own in enumerate(self._own_tone(colour)):
                maps[role] = np.minimum(maps[role], self._role(own))
            # Where the background shows through a thing's own colour the thing is not there, however near the colours.
            maps[_M] = np.where(foreground, maps[_M], np.maximum(maps[_M], 0.8))
            maps[_PANEL] = np.minimum(maps[_PANEL], 0.1 + self._role(_INK))  # dark on the panel is a letter
            pad = ((0, 0), (self._pad, self._pad), (self._pad, self._pad))
            inside = np.pad(np.stack(maps), pad, mode="edge")
            band = np.where(self._plain, np.where(family, 1.0, 0.4), 0.0) * _OUTSIDE
            around = np.pad(np.stack([band, rg.opened(family) * _OUTSIDE, np.zeros_like(band)]), pad)
            table = np.concatenate([inside, around]).astype(np.float32)
            assert len(table) == _USES
            self._tables[colour] = (table, table.shape[2])
        return self._tables[colour]

    def _own_tone(self, colour: str) -> list[Floats]:
        """The colour and its darker and lighter shade as this picture has them; none where it has none of it.

        A model draws orange a little darker than the palette does. That costs nothing by itself: whether a tone is the
        colour at all `Regions.family` has decided.
        """
        shades = role_colours(colour)[:3]
        near = self.families[colour] & (rg.distance(self.regions.pixels, shades[0]) < rg.FAMILY)
        if near.sum() < LEAST:
            return []
        shift = np.median(self.regions.pixels[near], axis=0) - shades[0]
        return [f32(shade + shift) for shade in shades]

    def _index(self, centre: Floats, half: Floats, steps: Floats, limit: int) -> Ints:
        """(J, cells) indices along one padded axis."""
        at = centre[:, None] + half[:, None] * steps[None, :] + self._pad
        # np.clip asks for the limits of the dtype first, which took a tenth of a verdict.
        return np.minimum(np.maximum(at.astype(np.int64), 0), limit - 1)

    def scores(self, look: Template, colour: str, at: Floats, stride: int) -> Floats:
        """(J,) how well a look fits J windows (J, 4): centre x, y, half-size across, down. 1 is perfect.

        `stride` compares only every so many-th cell.
        """
        table, width = self._table(colour)
        steps, rows, columns, uses, inside = _plan(look, stride)
        xs = self._index(at[:, 0], at[:, 2], steps, width)
        ys = self._index(at[:, 1], at[:, 3], steps, table.shape[1])
        flat = (ys * width).take(rows, 1)
        flat += xs.take(columns, 1)
        flat += uses * (width * table.shape[1])
        return 1 - table.ravel().take(flat).sum(1) / inside

    def window(self, colour: str, box: tuple[float, float, float, float], steps: Floats) -> Floats:
        """(uses, cells) costs at the crossings of `steps` (-1 to 1 spans the box), for every use."""
        table, width = self._table(colour)
        x0, y0, x1, y1 = f32(box)
        xs = self._index(np.array([(x0 + x1) / 2]), np.array([(x1 - x0) / 2]), steps, width)[0]
        ys = self._index(np.array([(y0 + y1) / 2]), np.array([(y1 - y0) / 2]), steps, table.shape[1])[0]
        return table[:, ys[:, None], xs[None, :]].reshape(_USES, -1)
