"""Aspect ratio and base resolution -> width and height in pixels. Pure functions over tables.

Sizes are (W, H) everywhere here; the published tables have (H, W). A *base* names an area: base 1024 means about
1024 x 1024 pixels, whatever the ratio. Sources: the published resolution tables (bases 1024 and 1440), the paper's
training buckets (bases 512 and 768).

**The rule for what no table holds** (other ratios, other bases). Among all sizes whose sides are multiples of 16 and
whose own ratio lies within 1:2..2:1, take the one with the least

    cost(w, h) = (ln(w/h) - ln r)^2 + (ln sqrt(w*h) - ln base)^2

that is: relative error of the ratio and relative error of the scale (the side of the square of equal area) count the
same. Of two sizes with equal cost the one with more pixels is taken (base 192 at 1:2: 144x288, not
128x256). A wide picture and its tall twin always get transposed sizes.

Light ring: standard library only.
"""

from __future__ import annotations

import math
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from functools import lru_cache

from backend.errors import UsageError

GRID = 16  # pixels: 8x in the autoencoder, 2x2 packing
RATIO_MIN, RATIO_MAX = Fraction(1, 2), Fraction(2)
AREA_SLACK = 1.25  # an explicit size may be this much smaller than the smallest base or larger than the largest

TRAINED_RATIOS = ("1:2", "9:16", "2:3", "3:4", "1:1", "4:3", "3:2", "16:9", "2:1")
NAMED_RATIOS = {"square": "1:1", "portrait": "3:4", "landscape": "4:3", "tall": "9:16", "wide": "16:9"}

# base -> (short, long) side for 1:2, 9:16, 2:3, 3:4, 1:1. Landscape is the same, transposed.
# fmt: off
_TABLES: dict[int, tuple[tuple[int, int], ...]] = {
     512: ((352,  704), ( 384,  672), ( 416,  640), ( 448,  608), ( 512,  512)),
     768: ((544, 1088), ( 576, 1024), ( 640,  960), ( 672,  896), ( 768,  768)),
    1024: ((736, 1472), ( 768, 1376), ( 832, 1248), ( 864, 1152), (1024, 1024)),
    1440: ((1040, 2080), (1088, 1936), (1168, 1760), (1216, 1616), (1440, 1440)),
}
# fmt: on


def parse_ratio(text: str) -> Fraction:
    """`16:9`, `16x9`, `16/9`, `1.85:1`, `1.5` or a name of `NAMED_RATIOS` -> W/H, exactly.

    Raises UsageError for what is no ratio and for one outside 1:2..2:1, naming the nearest allowed one.
    """
    name = text.strip().lower()
    parts = NAMED_RATIOS.get(name, name).replace("/", ":").replace("x", ":").split(":")
    try:
        width, height = (Decimal(part.strip()) for part in (parts if len(parts) == 2 else [*parts, "1"]))
    except (InvalidOperation, ValueError):
        known = ", ".join([*TRAINED_RATIOS, *NAMED_RATIOS])
        raise UsageError(f"{text!r} is no aspect ratio", hint=f"write W:H between 1:2 and 2:1, or: {known}") from None
    # The bound also keeps Fraction from expanding 1e999999999 into a billion digits.
    if not all(side.is_finite() and Decimal("0.001") <= side <= 1_000_000 for side in (width, height)):
        raise UsageError(f"the aspect ratio {text!r} needs two numbers greater than 0", hint="for example --ar 16:9")
    ratio = Fraction(width) / Fraction(height)
    if not RATIO_MIN <= ratio <= RATIO_MAX:
        nearest = "1:2" if ratio < RATIO_MIN else "2:1"
        raise UsageError(
            f"the aspect ratio {text} is outside 1:2..2:1", hint=f"the nearest allowed ratio is --ar {nearest}"
        )
    return ratio


def size_for(ratio: Fraction, base: int) -> tuple[int, int]:
    """(W, H) of an aspect ratio at a base: from the table where there is one, else by the rule of the module."""
    if ratio > 1:
        height, width = size_for(1 / ratio, base)
        return width, height
    table = _TABLES.get(base)
    trained = {Fraction(*map(int, text.split(":"))): index for index, text in enumerate(TRAINED_RATIOS[:5])}
    if table is not None and ratio in trained:
        return table[trained[ratio]]
    return closest(float(ratio), base)


@lru_cache(maxsize=1024)  # it weighs every size there is: 3 ms, and whoever draws scenes asks nine times for each
def closest(ratio: float, scale: float, *, area: tuple[float, float] = (0.0, math.inf)) -> tuple[int, int]:
    """The (W, H) of least cost (module docstring) whose pixel count lies within `area`. `ratio` in [1/2, 2].

    `scale` is the wished sqrt(W*H) in pixels.
    """
    reach = int(scale * 2 / GRID) + 2  # sides further out cost more than some size near the wished one
    best = (math.inf, 0, 0, 0)
    for columns in range(1, reach):
        for rows in range((columns + 1) // 2, 2 * columns + 1):
            width, height = columns * GRID, rows * GRID
            if area[0] <= width * height <= area[1]:
                ratio_error = math.log(width / height / ratio)
                scale_error = math.log(math.sqrt(width * height) / scale)
                cost = round(ratio_error**2 + scale_error**2, 9)  # rounded: a tie is a tie on every machine
                best = min(best, (cost, -width * height, width, height))
    assert best[1], f"no size with {area} pixels"
    return best[2], best[3]


def buckets(base: int) -> list[tuple[int, int]]:
    """The nine trained (W, H) of a base, in the order of `TRAINED_RATIOS`."""
    return [size_for(parse_ratio(text), base) for text in TRAINED_RATIOS]


def area_limits(bases: tuple[int, ...]) -> tuple[int, int]:
    """Fewest and most pixels an explicit size may have for a model trained at `bases`."""
    return math.ceil(min(bases) ** 2 / AREA_SLACK), math.floor(max(bases) ** 2 * AREA_SLACK)


@lru_cache(maxsize=256)  # ten thousand lines of a file ask for the same
def resolve_size(
    *,
    ar: str | None = None,
    base: int | None = None,
    size: str | None = None,
    width: int | None = None,
    height: int | None = None,
    bases: tuple[int, ...],
    default_base: int,
) -> tuple[int, int]:
    """What a person asked for -> (W, H). None: not asked for.

    Three ways to say it, of which one may be used: `ar` and/or `base`; `size` ("WxH"); `width` and `height`.
    `bases` are the model's; `default_base` holds where no base is given, 1:1 where no ratio is.

    Raises UsageError, whose hint names the nearest allowed choice.
    """
    _refuse_conflicts(ar=ar, base=base, size=size, width=width, height=height)
    if size is not None:
        width, height = _parse_size(size)
    if width is not None and height is not None:
        return _check_size(width, height, bases)
    if base is not None and base not in bases:
        nearest = min(bases, key=lambda known: abs(known - base))
        raise UsageError(
            f"base {base} is none of this model's: {', '.join(map(str, bases))}",
            hint=f"the nearest is --base {nearest}",
        )
    return size_for(parse_ratio(ar if ar is not None else "1:1"), base if base is not None else default_base)


def ratio_and_base(width: int, height: int, bases: tuple[int, ...]) -> tuple[str, int]:
    """What to ask for to get this size: a trained ratio at one of `bases`; where none gives it, the size's own ratio
    and the base of the nearest area."""
    for base in bases:
        for text, size in zip(TRAINED_RATIOS, buckets(base), strict=True):
            if size == (width, height):
                return text, base
    scale = math.sqrt(width * height)
    return f"{width}:{height}", min(bases, key=lambda base: abs(math.log(base / scale)))


def usual_ratio(width: int, height: int) -> Fraction:
    """The trained aspect ratio that is nearest to a size's."""
    wanted = math.log(width / height)
    ratios = [Fraction(*map(int, text.split(":"))) for text in TRAINED_RATIOS]
    return min(ratios, key=lambda ratio: abs(math.log(ratio) - wanted))


def enlarged(width: int, height: int, factor: float) -> tuple[int, int]:
    """(W, H) so many times as large, in multiples of 16."""
    return round(width * factor / GRID) * GRID, round(height * factor / GRID) * GRID


def _refuse_conflicts(
    *, ar: str | None, base: int | None, size: str | None, width: int | None, height: int | None
) -> None:
    by_ratio = [flag for flag, value in (("--ar", ar), ("--base", base)) if value is not None]
    by_size = ["--size"] if size is not None else []
    by_sides = [flag for flag, value in (("--width", width), ("--height", height)) if value is not None]
    used = [group for group in (by_ratio, by_size, by_sides) if group]
    if len(used) > 1:
        raise UsageError(
            f"{used[0][0]} and {used[1][0]} both set the size", hint="use --ar with --base, or --size, or -W with -H"
        )
    if len(by_sides) == 1:
        missing = "--height" if by_sides == ["--width"] else "--width"
        raise UsageError(f"{by_sides[0]} needs {missing}", hint="give both sides, or a shape with --ar")


def _parse_size(text: str) -> tuple[int, int]:
    parts = text.strip().lower().replace("×", "x").split("x")
    try:
        width, height = (int(part) for part in parts)
    except ValueError:
        one = parts[0] if len(parts) == 1 and parts[0].isascii() and parts[0].isdigit() else None
        hint = f"--size {one}x{one}, or --base {one} with --ar" if one else "for example --size 1024x768"
        raise UsageError(f"{text!r} is no size", hint=f"write WxH in pixels: {hint}") from None
    return width, height


def _check_size(width: int, height: int, bases: tuple[int, ...]) -> tuple[int, int]:
    """An explicit size, or UsageError saying which of the three limits it breaks and what is nearest."""
    fewest, most = area_limits(bases)
    if width <= 0 or height <= 0:
        near = buckets(min(bases, key=lambda base: abs(base - max(width, height, 0))))[4]
        problem = "both sides must be greater than 0"
    elif width % GRID or height % GRID:
        near = nearest_size(width, height, bases)
        problem = f"both sides must be multiples of {GRID}"
    elif not RATIO_MIN <= Fraction(width, height) <= RATIO_MAX:
        near = nearest_size(width, height, bases)
        problem = "the aspect ratio must lie within 1:2..2:1"
    elif not fewest <= width * height <= most:
        near = nearest_size(width, height, bases)
        problem = f"this model makes {fewest:,} to {most:,} pixels, this is {width * height:,}"
    else:
        return width, height
    raise UsageError(
        f"cannot make {width}x{height}: {problem}", hint=f"the nearest allowed size is {near[0]}x{near[1]}"
    )


def nearest_size(width: int, height: int, bases: tuple[int, ...]) -> tuple[int, int]:
    """The allowed (W, H) closest to a forbidden one, by the cost of the module. Sides greater than 0."""
    fewest, most = area_limits(bases)
    ratio = min(max(Fraction(width, height), RATIO_MIN), RATIO_MAX)
    scale = math.sqrt(min(max(width * height, fewest), most))
    if ratio > 1:
        rows, columns = closest(float(1 / ratio), scale, area=(fewest, most))
        return columns, rows
    return closest(float(ratio), scale, area=(fewest, most))
