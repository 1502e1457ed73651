"""Axes and cells of a grid, each held against the wish that is written out."""

from __future__ import annotations

import pytest

from backend.batch.grid import NO_AXIS, cells, read_axis
from backend.errors import UsageError
from backend.types import Sampler
from backend.wish import Wish


def test_axes() -> None:
    guidance = read_axis("guidance=1,2.5", "--x")
    assert guidance.values == (Wish(guidance=1.0), Wish(guidance=2.5)) and guidance.labels == (
        "guidance 1",
        "guidance 2.5",
    )
    assert read_axis("cfg=3", "--x").values == (Wish(guidance=3.0),)
    assert read_axis("seed=1..3,9", "--x").values == tuple(Wish(seeds=(seed,)) for seed in ("1", "2", "3", "9"))
    assert read_axis("guidance=1..3", "--x").values == tuple(Wish(guidance=g) for g in (1.0, 2.0, 3.0))
    assert read_axis("steps=4..6", "--x").values == (Wish(steps=4), Wish(steps=5), Wish(steps=6))
    assert read_axis("prompt=a, b;c", "--x").values == (Wish(prompt="a, b"), Wish(prompt="c"))
    assert read_axis("sampler=euler,dpmpp_2m", "--y").values[1] == Wish(sampler=Sampler.dpmpp_2m)
    assert read_axis("lora=sky=0.5,none", "--y").values == (Wish(loras=("sky=0.5",)), Wish(loras=("none",)))


@pytest.mark.parametrize(
    ("text", "said", "hint"),
    [
        ("guidanse=1", "'guidanse' is nothing", "did you mean guidance?"),
        ("output=a,b", "'output' is nothing", ""),
        ("num=1,2", "'num' is nothing", ""),
        ("steps", "is no axis", "write --x guidance"),
        ("steps=", "is no axis", ""),
        ("steps=1,,2", "is no axis", ""),
        ("steps=a", "steps = 'a' does not fit", "a whole number"),
        ("guidance=nan", "does not fit", "a number"),
        ("seed=4..1", "the range 4..1 is empty", ""),
        ("seed=1..999999999", "longer than the 400 cells", ""),
    ],
)
def test_what_is_no_axis(text: str, said: str, hint: str) -> None:
    with pytest.raises(UsageError) as raised:
        read_axis(text, "--x")
    assert said in str(raised.value) and hint in (raised.value.hint or "")


def test_cells_differ_in_what_the_axes_say_and_in_nothing_else() -> None:
    x, y = read_axis("guidance=1,3", "--x"), read_axis("steps=2,4", "--y")
    made = cells(Wish(prompt="a fish", negative_prompt="fog"), x, y)
    assert [(cell.column, cell.row) for cell in made] == [(0, 0), (1, 0), (0, 1), (1, 1)]
    assert [(cell.wish.guidance, cell.wish.steps) for cell in made] == [(1, 2), (3, 2), (1, 4), (3, 4)]
    assert made[3].label == "guidance 3, steps 4"
    assert len({(cell.wish.seeds, cell.wish.wildcard_seed, cell.wish.prompt) for cell in made}) == 1
    assert made[0].wish.seeds != ("-1",)
    by_model = cells(Wish(prompt="a"), read_axis("model=nano,lens", "--x"), read_axis("seed=1..2", "--y"))
    assert [cell.wish.model for cell in by_model] == ["nano", "nano", "lens", "lens"]
    assert len(cells(Wish(prompt="a"), x, NO_AXIS)) == 2
    words = cells(Wish(wildcard_seed=4), read_axis("prompt=a;b", "--x"), NO_AXIS)
    assert [(cell.wish.prompt, cell.wish.wildcard_seed) for cell in words] == [("a", 4), ("b", 4)]


@pytest.mark.parametrize(
    ("base", "x", "y", "said"),
    [
        (Wish(), "cfg=1,2", "guidance=3", "both axes change guidance"),
        (Wish(), "seed=1..30", "steps=1..30", "a grid of 900 cells"),
        (Wish(num=2), "cfg=1", "steps=1", "one picture"),
        (Wish(seeds=("1", "2")), "cfg=1", "steps=1", "one picture"),
    ],
)
def test_what_is_no_grid(base: Wish, x: str, y: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        cells(base, read_axis(x, "--x"), read_axis(y, "--y"))
