"""A scene moved onto the transformer's token grid, where a small model can learn what things look like.

Coordinates as in `train.data.scenes`. Knows nothing about training.
"""

from __future__ import annotations

from dataclasses import replace

from train.data.scenes import Scene

__all__ = ["HALF_SIZES", "on_grid"]

HALF_SIZES = (2, 3, 4)  # of things on the grid, in cells: three drawings of a kind are learnt sooner than more


def on_grid(scene: Scene, cells: int) -> Scene:
    """The scene with every thing upright, facing right, centred on a corner between cells and of one of HALF_SIZES.

    `cells`: of the transformer's token grid along the short side. A thing of one kind and size then makes the same
    tokens wherever it stands, and a small model learns its outline as a pattern instead of as a function of where the
    grid cuts it. (After 180 steps of 16 such pictures, two mushrooms had caps and stems; after 1,700 steps of 16
    others they were smears.)
    """

    def near(value: float) -> float:
        return round(value * cells) / cells

    def size(r: float) -> float:
        return min(HALF_SIZES, key=lambda half: abs(half - r * cells)) / cells

    things = tuple(
        replace(thing, x=near(thing.x), y=near(thing.y), r=size(thing.r), mirrored=False, tilt=0.0)
        for thing in scene.things
    )
    background = replace(scene.background, horizon=near(scene.background.horizon * scene.height) / scene.height)
    return replace(scene, things=things, background=background)
