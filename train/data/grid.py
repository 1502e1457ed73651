"""A scene moved onto the transformer's token grid, where a small model can learn what things look like.

Coordinates as in `train.data.scenes`. Knows nothing about training.
"""

from __future__ import annotations

from dataclasses import replace

from train.data.scenes import Scene, Thing

__all__ = ["HALF_SIZES", "SIGN", "on_grid"]

HALF_SIZES = (2, 3, 4)  # of things on the grid, in cells: three drawings of a kind are learnt sooner than more
SIGN = 3 / 8  # half-size of a sign, in short sides: a letter of its word is then two by two of 16 cells


def on_grid(scene: Scene, cells: int) -> Scene:
    """The scene with every thing upright, facing right, centred on a corner between cells and of one of HALF_SIZES.

    A sign has a size of its own, and where nothing else is drawn it stands in the middle.

    `cells`: of the transformer's token grid along the short side. A thing of one kind and size then makes the same
    tokens wherever it stands, and a small model learns its outline as a pattern instead of as a function of where the
    grid cuts it. (After 180 steps of 16 such pictures, two mushrooms had caps and stems; after 1,700 steps of 16
    others they were smears.)
    """

    def near(value: float) -> float:
        return round(value * cells) / cells

    def size(thing: Thing) -> float:
        if thing.kind == "sign":
            return near(SIGN)
        return min(HALF_SIZES, key=lambda half: abs(half - thing.r * cells)) / cells

    def across(thing: Thing) -> float:
        alone = thing.kind == "sign" and len(scene.things) == 1
        return near(scene.width / 2 if alone else thing.x)  # where a word's letters go is then known before all else

    things = tuple(
        replace(thing, x=across(thing), y=near(thing.y), r=size(thing), mirrored=False, tilt=0.0)
        for thing in scene.things
    )
    background = replace(scene.background, horizon=near(scene.background.horizon * scene.height) / scene.height)
    return replace(scene, things=things, background=background)
