"""Scenes on the token grid, judged by the pixels that are drawn: the reason for the grid is that they repeat."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from train.data.drawing import render
from train.data.grid import HALF_SIZES, SIGN, on_grid
from train.data.scenes import LAYOUTS, STYLES, Background, Scene, Thing, sample_scene

CELL = 16  # pixels of a token


def scene(style: str, kind: str, x: float, y: float, r: float) -> Scene:
    thing = Thing(kind=kind, colour="red", size="medium", x=x, y=y, r=r, tilt=4.0)
    plain = Background(plain="board" if style == "chalk" else "cream")
    return Scene(width=1, height=1, style=style, background=plain, things=(thing,), groups=((0, 1),), layout="single")


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("kind", ["cat", "key", "star"])
def test_a_thing_makes_the_same_pixels_wherever_it_stands(style: str, kind: str) -> None:
    def drawn(x: float, y: float) -> np.ndarray:
        return np.asarray(render(on_grid(scene(style, kind, x, y, 0.19), 16), 256, 256))

    here, there = drawn(0.36, 0.42), drawn(0.52, 0.61)  # 6 and 7, 8 and 10 cells
    assert not np.array_equal(here, there)
    assert np.array_equal(np.roll(here, (3 * CELL, 2 * CELL), (0, 1)), there)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_little_moves_and_nothing_else_changes(layout: str) -> None:
    rng = random.Random(1)
    for _ in range(40):
        before = sample_scene(rng, layouts=(layout,))
        after = on_grid(before, 16)
        for old, new in zip(before.things, after.things, strict=True):
            assert (new.x * 16) % 1 == (new.y * 16) % 1 == new.tilt == 0
            if new.kind == "sign":
                assert new.r == SIGN
                assert new.x == 0.5 or len(after.things) > 1  # alone it stands in the middle
            else:
                assert new.r * 16 in HALF_SIZES
                assert abs(old.x - new.x) <= 0.5 / 16 + 1e-9
            assert abs(old.y - new.y) <= 0.5 / 16 + 1e-9
            assert replace(new, x=old.x, y=old.y, r=old.r, tilt=old.tilt, mirrored=old.mirrored) == old
        assert on_grid(after, 16) == after


def test_the_horizon_is_an_edge_of_tokens() -> None:
    rng = random.Random(3)
    for _ in range(40):
        tall = on_grid(sample_scene(rng, aspect=0.5), 11)
        assert tall.background.horizon * tall.height * 11 == pytest.approx(round(tall.background.horizon * 22))


def test_a_share_of_the_other_styles_is_drawn_flat() -> None:
    rng = random.Random(5)
    styles = [sample_scene(rng, flat_share=0.8).style for _ in range(400)]
    # A third is flat anyway; four fifths of the other two thirds join them: 0.868. Five standard errors are 0.085.
    assert abs(styles.count("flat") / 400 - 0.868) < 0.085
    assert set(styles) - {"flat"}, "the others are seldom, not gone"
    for _ in range(100):
        scene = sample_scene(rng, flat_share=1.0)
        assert scene.style == "flat"
        assert scene.background.plain != "board", "the board belongs to chalk"
