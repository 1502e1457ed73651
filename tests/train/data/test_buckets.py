"""Buckets: every picture has one outcome, none is enlarged, and the shape is the nearest of the paper's 27.

Why it can be trusted: the 27 sizes stand here as the paper prints them, and the choice is checked against a search over
all of them that shares no code with the module.
"""

from __future__ import annotations

import math
import random

import pyarrow as pa
import pytest

from backend.errors import UsageError
from train.data.buckets import (
    TOO_LONG,
    TOO_SMALL,
    BucketConfig,
    Placement,
    bucket_rows,
    cover_box,
    nearest_ratio,
    place,
)

# Width x height, section 2.3 of the paper; the ratio of a place in the row is the same in all three rows.
PAPER = {
    512: "352x704 384x672 416x640 448x608 512x512 608x448 640x416 672x384 704x352",
    768: "544x1088 576x1024 640x960 672x896 768x768 896x672 960x640 1024x576 1088x544",
    1024: "736x1472 768x1376 832x1248 864x1152 1024x1024 1152x864 1248x832 1376x768 1472x736",
}
SHAPES = {
    base: [(int(text.split("x")[0]), int(text.split("x")[1])) for text in line.split()] for base, line in PAPER.items()
}
RATIOS = (1 / 2, 9 / 16, 2 / 3, 3 / 4, 1.0, 4 / 3, 3 / 2, 16 / 9, 2.0)
PLAIN = BucketConfig(least_kept=0.0)


def searched(width: int, height: int) -> tuple[int, int, int] | None:
    """The rule in other words: the row's nearest place, then the largest of three that lies inside the picture."""
    index = min(range(9), key=lambda i: abs(math.log(RATIOS[i]) - math.log(width / height)))
    inside = [base for base in SHAPES if SHAPES[base][index][0] <= width and SHAPES[base][index][1] <= height]
    return (max(inside), *SHAPES[max(inside)][index]) if inside else None


def test_against_a_search_over_the_papers_27() -> None:
    rng = random.Random(5)
    counts: dict[object, int] = {}
    for _ in range(3000):
        width, height = rng.randrange(100, 2600), rng.randrange(100, 2600)
        placed = place(width, height, PLAIN)
        wished = searched(width, height)
        assert (placed == TOO_SMALL) if wished is None else isinstance(placed, Placement)
        if isinstance(placed, Placement):
            assert (placed.base, placed.width, placed.height) == wished
            assert placed.width * placed.height <= width * height and placed.width <= width and placed.height <= height
        counts[wished] = counts.get(wished, 0) + 1
    assert len(counts) == 28  # all 27 and "none" were met


def test_the_crop_is_central_covers_and_has_the_buckets_shape() -> None:
    rng = random.Random(6)
    for _ in range(500):
        width, height = rng.randrange(720, 4000), rng.randrange(720, 4000)
        placed = place(width, height, PLAIN)
        assert isinstance(placed, Placement)
        left, top, right, bottom = placed.box
        assert 0 <= left < right <= width and 0 <= top < bottom <= height
        assert left == 0 or top == 0  # one side is whole: nothing more could be kept
        assert abs(left - (width - right)) <= 1 and abs(top - (height - bottom)) <= 1
        assert abs((right - left) - (bottom - top) * placed.width / placed.height) <= 1.5
    assert cover_box(1000, 500, 512, 512) == (250, 0, 750, 500)
    assert cover_box(512, 512, 512, 512) == (0, 0, 512, 512)


def test_edges() -> None:
    assert place(1024, 1024, PLAIN) == Placement(1024, 1024, 1024, (0, 0, 1024, 1024))
    below = place(1024, 1023, PLAIN)
    assert isinstance(below, Placement) and below.base == 768  # one row short of the bucket: never enlarged
    assert place(1, 1, PLAIN) == place(0, 5, PLAIN) == place(511, 512, PLAIN) == TOO_SMALL
    assert place(60_000, 400, BucketConfig()) == TOO_LONG
    assert nearest_ratio(10, 1) == "2:1" and nearest_ratio(1, 10) == "1:2"
    # Just between 1:1 and 4:3 the squarer one.
    assert nearest_ratio(10_000, 10_000) == "1:1" == nearest_ratio(1154, 1000) and nearest_ratio(1156, 1000) == "4:3"


def test_enlarging_only_where_asked() -> None:
    """384x384 is the paper's least picture; its least bucket is 512x512."""
    assert place(384, 384, PLAIN) == TOO_SMALL
    placed = place(384, 384, BucketConfig(upscale=1.34))
    assert isinstance(placed, Placement) and (placed.width, placed.box) == (512, (0, 0, 384, 384))
    assert place(382, 382, BucketConfig(upscale=1.34)) == TOO_SMALL
    for side, base in ((512, 512), (767, 512), (768, 768), (1000, 768)):  # what fills a base stays there
        placed = place(side, side, BucketConfig(upscale=1.34))
        assert isinstance(placed, Placement) and placed.base == base
    assert place(600, 600, BucketConfig(upscale=1.34, weights=(0, 1, 1))) == place(600, 600, BucketConfig(
        bases=(768, 1024), upscale=1.34))  # fmt: skip


def test_weights_draw_bases_by_the_key() -> None:
    config = BucketConfig(weights=(1.0, 0.0, 3.0))
    bases = [placed.base for k in range(2000) if isinstance(placed := place(2000, 2000, config, f"k{k}"), Placement)]
    assert set(bases) == {512, 1024}
    assert abs(bases.count(1024) / 2000 - 0.75) < 0.04  # four standard deviations
    assert place(2000, 2000, config, "k7") == place(2000, 2000, config, "k7")
    small = place(800, 800, config, "k7")
    assert isinstance(small, Placement) and small.base == 512  # what does not fit takes no share
    assert place(800, 800, BucketConfig(weights=(0.0, 0.0, 1.0))) == TOO_SMALL


def test_the_first_stage_has_one_shape() -> None:
    config = BucketConfig(bases=(512,), ratios=("1:1",), least_kept=0.0)
    placed = place(3000, 700, config)
    assert isinstance(placed, Placement) and (placed.width, placed.height) == (512, 512)


def test_a_table_keeps_its_order_and_says_why() -> None:
    table = pa.table({"key": ["a", "b", "c"], "width": [1500, 100, 9000], "height": [1000, 100, 600]})
    rows = bucket_rows(table, BucketConfig()).to_pylist()
    assert [row["key"] for row in rows] == ["a", "b", "c"]
    assert (rows[0]["base"], rows[0]["width"], rows[0]["height"], rows[0]["error"]) == (1024, 1248, 832, None)
    assert [row["error"] for row in rows[1:]] == [TOO_SMALL, TOO_LONG] and rows[1]["base"] is None
    assert bucket_rows(table.slice(0, 0), BucketConfig()).num_rows == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"bases": ()}, {"bases": (768, 512)}, {"ratios": ("5:4",)}, {"ratios": ()}, {"upscale": 0.5}, {"upscale": 99.0},
        {"least_kept": 1.5}, {"weights": (1.0,)}, {"weights": (0.0, 0.0, 0.0)},
    ],
)  # fmt: skip
def test_settings_that_cannot_be_meant(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        BucketConfig(**wrong)  # type: ignore[arg-type]
