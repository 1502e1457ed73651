"""Which of the paper's 27 shapes a picture is trained in, and which part of it is seen (paper section 2.3).

A *base* names an area (512 stands for 512 x 512 pixels), a *ratio* the shape; together they are a bucket. A picture
takes the ratio nearest to its own in log space, then the largest base that it fills; it is scaled to cover the bucket
and cropped from the centre, and the crop is written down in the picture's own pixels, so that packing is all that
touches pixels. Pure functions; knows nothing of files.

Heavy ring only in `bucket_rows` (pyarrow): the rest is the standard library.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from backend.errors import UsageError
from backend.fields import check_ranges, within
from backend.sizes import TRAINED_RATIOS, parse_ratio, size_for

if TYPE_CHECKING:
    import pyarrow as pa

VERSION = 2  # raised when results change
TOO_SMALL, TOO_LONG = "too small for every base", "too long for every ratio"


@dataclass(frozen=True, kw_only=True)
class BucketConfig:
    """What the stage `bucket` is told. The paper gives the 27 shapes and nothing of the rest."""

    bases: tuple[int, ...] = (512, 768, 1024)  # ascending
    ratios: tuple[str, ...] = TRAINED_RATIOS  # ("1:1",) with bases (512,): the paper's first stage
    # How many times longer a side may become, for a picture that fills no base: it takes the smallest. 1: never. The
    # paper keeps pictures from 384x384 pixels on, though its smallest bucket has 512x512: to use those too, 1.34.
    upscale: float = within(1.0, 1, 8, hint="1: pictures are never enlarged")
    # Share of the picture that the crop must leave. A caption tells of the whole picture; half a panorama is no longer
    # what it says.
    least_kept: float = within(0.5, 0, 1)
    # Relative chance of each base among those that a picture fills; None: always the largest. Drawn from the key.
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        known = f"known: {', '.join(TRAINED_RATIOS)}"
        if not self.bases or list(self.bases) != sorted(set(self.bases)) or self.bases[0] < 32:
            raise UsageError(f"bases {self.bases} must be numbers of at least 32, rising", hint="such as 512,768,1024")
        if unknown := [ratio for ratio in self.ratios if ratio not in TRAINED_RATIOS]:
            raise UsageError(f"{unknown[0]!r} is none of the trained ratios", hint=known)
        if not self.ratios:
            raise UsageError("ratios is empty", hint=known)
        check_ranges(self)
        if self.weights is not None:
            numbers = all(0 <= weight < math.inf for weight in self.weights) and any(self.weights)
            if len(self.weights) != len(self.bases) or not numbers:
                raise UsageError(f"weights {self.weights} must be one number of at least 0 for each of {self.bases}")


@dataclass(frozen=True)
class Placement:
    """A picture in its bucket."""

    base: int
    width: int  # of the bucket, pixels
    height: int
    box: tuple[int, int, int, int]  # left, top, right, bottom: the crop, in pixels of the upright picture


def nearest_ratio(width: int, height: int, ratios: Iterable[str] = TRAINED_RATIOS) -> str:
    """The ratio W:H nearest to the picture's own by |ln - ln|; of two equally near the squarer one."""
    own = math.log(width / height)
    # Rounded: a tie is a tie on every machine.
    return min(ratios, key=lambda ratio: (round(abs(_log(ratio) - own), 12), abs(_log(ratio))))


def place(width: int, height: int, config: BucketConfig, key: str = "") -> Placement | str:
    """Where an upright picture of `width` x `height` pixels goes, or why nowhere (`TOO_SMALL`, `TOO_LONG`).

    A base fits where covering its bucket enlarges no side. That is a little stricter than comparing areas: a 1.2:1
    picture of just 1024 x 1024 pixels would have to be widened for 1152 x 864. Where none fits, the smallest base takes
    it if no side grows more than `config.upscale` times; what fills a base is never enlarged for a larger one.
    """
    if width < 1 or height < 1:
        return TOO_SMALL
    shapes = _shapes(nearest_ratio(width, height, config.ratios), config.bases)
    if config.weights is not None:  # a base of weight 0 is out, so that "only 512 and 768" can be said
        shapes = tuple(shape for shape in shapes if config.weights[config.bases.index(shape[0])])
    growth = [max(wide / width, high / height) for _, wide, high in shapes]  # ascending, as the bases are
    fitting = [shape for shape, times in zip(shapes, growth, strict=True) if times <= 1]
    if not fitting and growth[0] <= config.upscale:
        fitting = [shapes[0]]
    if not fitting:
        return TOO_SMALL
    base, wide, high = fitting[-1] if config.weights is None else _drawn(fitting, config, key)
    box = cover_box(width, height, wide, high)
    kept = (box[2] - box[0]) * (box[3] - box[1]) / (width * height)
    return Placement(base, wide, high, box) if kept >= config.least_kept else TOO_LONG


def cover_box(width: int, height: int, wide: int, high: int) -> tuple[int, int, int, int]:
    """The largest centred box of the picture with the shape of the bucket, to the nearest whole pixel.

    Rounding bends the picture by less than half a pixel of its own, which nobody sees.
    """
    across, down = width, height
    if width * high > height * wide:  # the picture is wider than its bucket
        across = min(width, max(1, round(height * wide / high)))
    else:
        down = min(height, max(1, round(width * high / wide)))
    left, top = (width - across) // 2, (height - down) // 2
    return left, top, left + across, top + down


def bucket_rows(rows: pa.Table, config: BucketConfig) -> pa.Table:
    """The stage's body. `rows`: key, width, height (upright) of the pictures that are kept; any order.

    Returns one row a picture in the same order: key, base, width, height (of the bucket), left, top, right, bottom,
    error (None, or why it has no bucket; then all the numbers are None).
    """
    import pyarrow as pa

    found: list[dict[str, Any]] = []
    columns = (rows["key"].to_pylist(), rows["width"].to_pylist(), rows["height"].to_pylist())
    for key, width, height in zip(*columns, strict=True):
        placed = place(width or 0, height or 0, config, key)
        if isinstance(placed, str):
            found.append({"key": key, "error": placed})
            continue
        left, top, right, bottom = placed.box
        shape = {"base": placed.base, "width": placed.width, "height": placed.height}
        found.append({"key": key, **shape, "left": left, "top": top, "right": right, "bottom": bottom, "error": None})
    numbers = ("base", "width", "height", "left", "top", "right", "bottom")
    return pa.Table.from_pylist(
        found,
        schema=pa.schema([("key", pa.string()), *((name, pa.int32()) for name in numbers), ("error", pa.string())]),
    )


@functools.cache
def _log(ratio: str) -> float:
    return math.log(parse_ratio(ratio))


@functools.cache  # 0.14 ms a picture without, against 0.02 for all of `place`
def _shapes(ratio: str, bases: tuple[int, ...]) -> tuple[tuple[int, int, int], ...]:
    """(base, width, height) of the ratio's bucket at each base."""
    return tuple((base, *size_for(parse_ratio(ratio), base)) for base in bases)


def _drawn(fitting: list[tuple[int, int, int]], config: BucketConfig, key: str) -> tuple[int, int, int]:
    """One of the shapes by the weights of their bases. From the key's hash: the same on every machine and run."""
    assert config.weights is not None
    weights = [config.weights[config.bases.index(base)] for base, _, _ in fitting]
    point = int.from_bytes(hashlib.sha256(b"base " + key.encode()).digest()[:8], "big") / 2**64 * sum(weights)
    for shape, weight in zip(fitting, weights, strict=True):
        point -= weight
        if point < 0:
            return shape
    return fitting[-1]  # the sum was rounded
