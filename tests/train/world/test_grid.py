"""Scenes on the token grid, judged by the pixels that are drawn: the reason for the grid is that they repeat."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from backend.errors import UsageError
from train.evals.verifier.verify import expectation_of, verify
from train.world.drawing import render
from train.world.grid import CONTAINER, HALF_SIZES, SIGN, on_grid, sample_on_grid, stands_clear
from train.world.scenes import CONTAINERS, LAYOUTS, STYLES, Background, Scene, Thing, sample_scene

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
            elif layout == "inside" and new is after.things[1]:
                assert new.r == CONTAINER and new.kind in CONTAINERS
            else:
                assert new.r * 16 in HALF_SIZES
                assert abs(old.x - new.x) <= 0.5 / 16 + 1e-9
            assert abs(old.y - new.y) <= 0.5 / 16 + 1e-9
            assert new.size == ("small" if new.r == 2 / 16 else "medium" if new.r == 3 / 16 else "large")
            there = {"x": old.x, "y": old.y, "r": old.r, "size": old.size, "tilt": old.tilt, "mirrored": old.mirrored}
            assert replace(new, **there) == old
        assert on_grid(after, 16) == after


def only(layout: str) -> tuple[float, ...]:
    return tuple(float(one == layout) for one in LAYOUTS)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_caption_is_true_of_what_is_drawn_on_the_grid(layout: str) -> None:
    """By the verifier, which knows of no grid and accepts 0.99 of the scenes that were never moved."""
    rng = random.Random(2)
    for _ in range(6):
        there = sample_on_grid(rng, 16, aspect=1.0, weights=only(layout), flat_share=0.5)
        verdict = verify(render(there, 256, 256), expectation_of(there))
        assert verdict.right, verdict.reason


def test_what_is_hidden_is_not_drawn() -> None:
    """Three things of four cells in a row of eight, by hand; a square has no room for them, whatever the seed."""
    things = tuple(
        Thing(kind=kind, colour="red", size="medium", x=x, y=0.5, r=0.25)
        for kind, x in (("cat", 0.25), ("key", 0.5), ("star", 0.75))
    )
    scene = Scene(width=1, height=1, style="flat", background=Background(plain="cream"), things=things,
                  groups=((0, 1), (1, 1), (2, 1)), layout="trio")  # fmt: skip
    assert not stands_clear(scene)
    assert stands_clear(replace(scene, things=(things[0], things[2]), groups=((0, 1), (1, 1))))
    rng = random.Random(7)
    mixed = tuple(float(layout in ("trio", "inside", "single")) for layout in LAYOUTS)
    drawn = {sample_on_grid(rng, 8, aspect=1.0, weights=mixed, flat_share=0.0).layout for _ in range(40)}
    assert drawn == {"single"}
    for layout in ("trio", "inside"):
        with pytest.raises(UsageError, match="no scene of these layouts has room on a grid of 8 cells"):
            sample_on_grid(rng, 8, aspect=1.0, weights=only(layout), flat_share=0.0)


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
