"""Every row of the published tables, and the rule for what no table holds against a plain search written anew."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest

from backend.errors import UsageError
from backend.sizes import TRAINED_RATIOS, area_limits, buckets, parse_ratio, resolve_size, size_for

LENS = (512, 768, 1024, 1440)
NANO = (128, 192, 256, 384)

# As published, (H, W), rows in the order of TRAINED_RATIOS.
PUBLISHED_HW = {
    1024: "1472,736 1376,768 1248,832 1152,864 1024,1024 864,1152 832,1248 768,1376 736,1472",
    1440: "2080,1040 1936,1088 1760,1168 1616,1216 1440,1440 1216,1616 1168,1760 1088,1936 1040,2080",
}
# As in the paper, short x long.
PAPER = {
    512: "352x704 384x672 416x640 448x608 512x512",
    768: "544x1088 576x1024 640x960 672x896 768x768",
    1024: "736x1472 768x1376 832x1248 864x1152 1024x1024",
}
ROWS = [
    (base, ratio, tuple(map(int, row.split(","))))
    for base, table in PUBLISHED_HW.items()
    for ratio, row in zip(TRAINED_RATIOS, table.split(), strict=True)
]


@pytest.mark.parametrize(("base", "ratio", "hw"), ROWS)
def test_published_rows(base: int, ratio: str, hw: tuple[int, int]) -> None:
    assert resolve_size(ar=ratio, base=base, bases=LENS, default_base=1024) == (hw[1], hw[0])


@pytest.mark.parametrize("base", PAPER)
def test_training_buckets(base: int) -> None:
    tall = [tuple(map(int, row.split("x"))) for row in PAPER[base].split()]
    wide = [(long, short) for short, long in reversed(tall[:-1])]
    assert buckets(base) == tall + wide


@pytest.mark.parametrize("base", PAPER)
def test_each_bucket_has_the_ratio_it_stands_for(base: int) -> None:
    """No row has slipped: its own ratio is nearer to its name than to any other."""
    for name, (width, height) in zip(TRAINED_RATIOS, buckets(base), strict=True):
        nearest = min(TRAINED_RATIOS, key=lambda text: abs(math.log(width / height / float(parse_ratio(text)))))
        assert nearest == name


def test_nano_tables() -> None:
    assert buckets(128)[:5] == [(96, 192), (96, 176), (112, 160), (112, 144), (128, 128)]
    assert buckets(192)[:5] == [(144, 288), (144, 256), (160, 240), (160, 224), (192, 192)]
    assert buckets(256)[:5] == [(176, 352), (192, 336), (208, 320), (224, 304), (256, 256)]
    assert buckets(384)[:5] == [(272, 544), (288, 512), (320, 480), (336, 448), (384, 384)]


@pytest.mark.parametrize("ratio", ["5:4", "6:7", "21:11", "1.85:1", "7:13", "99:100", "1:2", "2:1"])
@pytest.mark.parametrize("base", [*NANO, 640])
def test_rule_against_plain_search(ratio: str, base: int) -> None:
    wish = parse_ratio(ratio)

    def cost(width: int, height: int) -> float:
        return math.log(width / height / wish) ** 2 + math.log(math.sqrt(width * height) / base) ** 2

    sides = range(16, 4 * base, 16)
    allowed = [(w, h) for w in sides for h in sides if Fraction(1, 2) <= Fraction(w, h) <= 2]
    assert cost(*size_for(wish, base)) == pytest.approx(min(cost(*size) for size in allowed), abs=1e-8)


@pytest.mark.parametrize("base", [128, 192, 256, 384, 512, 768, 1024, 1440])
@pytest.mark.parametrize("ratio", ["5:4", "6:7", "21:11", "16:9", "2:1", "1:2", "9:16"])
def test_every_size_is_legal_and_transposes(ratio: str, base: int) -> None:
    wish = parse_ratio(ratio)
    width, height = size_for(wish, base)
    assert width % 16 == height % 16 == 0
    assert Fraction(1, 2) <= Fraction(width, height) <= 2
    assert size_for(1 / wish, base) == (height, width)
    assert abs(math.log(width * height / base**2)) < 0.13  # 12 % of area at worst, on the coarsest grid
    assert abs(math.log(width / height / wish)) < 0.12


@pytest.mark.parametrize(
    ("text", "ratio"),
    [("16:9", "16/9"), ("16x9", "16/9"), (" 32/18 ", "16/9"), ("1.5", "3/2"), ("Portrait", "3/4"), ("square", "1")],
)
def test_ratio_forms(text: str, ratio: str) -> None:
    assert parse_ratio(text) == Fraction(ratio)


@pytest.mark.parametrize(
    "text", ["", "a", "16:0", "0:9", "16:9:1", "-16:9", "nan", "inf:1", "1e999999999:1", ":", "1:1e-99"]
)
def test_no_ratio(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_ratio(text)
    assert caught.value.hint


@pytest.mark.parametrize(("text", "nearest"), [("3:1", "2:1"), ("1:3", "1:2"), ("2001:1000", "2:1"), ("100", "2:1")])
def test_ratio_outside_names_the_nearest(text: str, nearest: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_ratio(text)
    assert f"--ar {nearest}" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("wish", "hint"),
    [
        ({"size": "0x0"}, "128x128"),
        ({"size": "-1x256"}, "256x256"),
        ({"size": "17x17"}, "128x128"),
        ({"width": 300, "height": 200}, "304x208"),
        ({"size": "1000000000x1000000000"}, "416x416"),
        ({"size": "1024x256"}, "592x304"),
        ({"size": "1024x1024"}, "416x416"),
        ({"size": "16x16"}, "128x128"),
        ({"base": 1024}, "--base 384"),
        ({"base": 0}, "--base 128"),
        ({"width": 256}, "both sides"),
        ({"ar": "1:1", "size": "256x256"}, "--ar with --base"),
        ({"size": "256x256", "width": 256, "height": 256}, "--size"),
        ({"base": 256, "width": 256, "height": 256}, "--size"),
        ({"size": "256"}, "WxH"),
        ({"size": "256x256x3"}, "WxH"),
        ({"size": "axb"}, "WxH"),
    ],
)
def test_impossible_sizes(wish: dict[str, object], hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        resolve_size(**wish, bases=NANO, default_base=256)  # pyright: ignore[reportArgumentType]
    assert hint in str(caught.value.hint)
    assert caught.value.exit_code == 2


def test_the_nearest_size_named_is_allowed() -> None:
    for size in ("17x17", "1000000000x16", "16x1000000000", "300x200", "0x0", "385x385", "5000x4000"):
        with pytest.raises(UsageError) as caught:
            resolve_size(size=size, bases=NANO, default_base=256)
        nearest = str(caught.value.hint).rsplit(" ", 1)[1]
        assert resolve_size(size=nearest, bases=NANO, default_base=256) == tuple(map(int, nearest.split("x")))


def test_every_bucket_may_be_given_as_a_size() -> None:
    for bases in (NANO, LENS):
        fewest, most = area_limits(bases)
        for base in bases:
            for width, height in buckets(base):
                assert fewest <= width * height <= most
                assert resolve_size(size=f"{width}x{height}", bases=bases, default_base=base) == (width, height)


def test_defaults() -> None:
    assert resolve_size(bases=NANO, default_base=256) == (256, 256)
    assert resolve_size(ar="16:9", bases=NANO, default_base=256) == (336, 192)
    assert resolve_size(base=384, bases=NANO, default_base=256) == (384, 384)
