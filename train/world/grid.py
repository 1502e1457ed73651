"""Scenes on the transformer's token grid, where a small model can learn what things look like.

Coordinates as in `train.world.scenes`. Knows nothing about training.
"""

from __future__ import annotations

import random
from dataclasses import replace

from backend.errors import UsageError
from train.world.scenes import HOLES, Scene, Thing, sample_scene

__all__ = ["CONTAINER", "HALF_SIZES", "SIGN", "on_grid", "sample_on_grid", "stands_clear"]

HALF_SIZES = (2, 3, 4)  # of things on the grid, in cells: three drawings of a kind are learnt sooner than more
SIGN = 3 / 8  # half-size of a sign, in short sides: a letter of its word is then two by two of 16 cells
CONTAINER = 3 / 8  # of what a thing is inside of: of 16 cells, six around two or three
_SMALL, _MEDIUM = 0.15, 0.22  # half-sizes, in short sides, below which a thing is called so
_OVERLAP = 0.16  # of two things' summed half-sizes: what lies on top of another touches it, and cells are coarse
_TRIES = 10_000


def on_grid(scene: Scene, cells: int) -> Scene:
    """The scene with every thing upright, facing right, centred on a corner between cells and of one of HALF_SIZES.

    Signs and what holds another thing have sizes of their own. A sign stands in the middle where nothing else is drawn.
    What a thing's size is called follows what it has become. `stands_clear` tells whether everything is still seen.

    `cells`: of the transformer's token grid along the short side. A thing of one kind and size then makes the same
    tokens wherever it stands, and a small model learns its outline as a pattern instead of as a function of where the
    grid cuts it. (After 180 steps of 16 such pictures, two mushrooms had caps and stems; after 1,700 steps of 16
    others they were smears.)
    """

    def near(value: float) -> float:
        return round(value * cells) / cells

    def half(number: int, thing: Thing) -> float:
        if thing.kind == "sign":
            return near(SIGN)
        if scene.relation == "inside":
            outer = near(CONTAINER)
            room = HOLES[scene.things[1].kind] * outer * cells
            return outer if number == 1 else max((n for n in HALF_SIZES if n <= room), default=HALF_SIZES[0]) / cells
        return min(HALF_SIZES, key=lambda n: abs(n - thing.r * cells)) / cells

    def moved(number: int, thing: Thing) -> Thing:
        alone = thing.kind == "sign" and len(scene.things) == 1
        x = near(scene.width / 2 if alone else thing.x)  # where a word's letters go is then known before all else
        r = half(number, thing)
        size = "small" if r < _SMALL else "medium" if r < _MEDIUM else "large"
        return replace(thing, x=x, y=near(thing.y), r=r, size=size, mirrored=False, tilt=0.0)

    things = tuple(moved(number, thing) for number, thing in enumerate(scene.things))
    background = replace(scene.background, horizon=near(scene.background.horizon * scene.height) / scene.height)
    return replace(scene, things=things, background=background)


def stands_clear(scene: Scene) -> bool:
    """Whether no thing covers another, nor the rim of what it is inside of: a coarse grid has no room for some."""
    if scene.relation == "inside":
        inner, outer = scene.things
        return inner.r <= HOLES[outer.kind] * outer.r + 1e-9
    return all(
        max(abs(a.x - b.x), abs(a.y - b.y)) >= (1 - _OVERLAP) * (a.r + b.r)
        for i, a in enumerate(scene.things)
        for b in scene.things[:i]
    )


def sample_on_grid(
    rng: random.Random, cells: int, *, aspect: float, weights: tuple[float, ...] | None, flat_share: float
) -> Scene:
    """A scene that training may see, on a grid of `cells` along the short side; others as in `sample_scene`.

    What does not stand clear is drawn anew, its layout too: on 8 cells three things in a row never do.
    Raises UsageError where only such layouts have a weight.
    """
    for _ in range(_TRIES):
        scene = on_grid(sample_scene(rng, aspect=aspect, weights=weights, flat_share=flat_share), cells)
        if stands_clear(scene):
            return scene
    raise UsageError(f"no scene of these layouts has room on a grid of {cells} cells", hint="a larger base, or others")
