"""How a picture is decoded in a given memory: what is kept, what is computed twice, how high a strip is. No torch.

The decoder's activations are largest at full resolution: 256 channels of 1024 x 1024 in bfloat16 are 512 MiB, and the
obvious order of work holds three of those. Every group norm needs the mean and variance of the whole picture, so strips
cannot run through several layers at once; but each layer can run strip by strip, and what a strip needs can be

* kept whole, and dropped as soon as the last strip has read it, or
* computed again from what is smaller: the upsampled input of a stage from the stage before (three times instead of
  once: for the statistics, for the first convolution and for the shortcut), and the picture between the two
  convolutions of a residual block from the block's input (twice).

`plan_decode` chooses per stage the least work that fits, and states the peak that `backend.model.decode` will reach.
The floor is the first block of the last stage: its inner picture beside the smaller output of the stage before.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise, product
from math import ceil

from backend.errors import OutOfMemoryError
from backend.params import VAEParams

MiB = 1 << 20
SCORE_BYTES = 64 * MiB  # of attention scores that exist at once
NORM_ELEMENTS = 1 << 19  # normalised in place at once: stays in a core's cache
# Elements of one strip: largest first. A processor gains from strips that stay in its cache, a GPU from ones that
# fill it.
STRIP_ELEMENTS = {"cpu": (8 * MiB, 4 * MiB, 2 * MiB, MiB), "cuda": (64 * MiB, 16 * MiB, 4 * MiB, MiB)}


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """One resolution of the decoder."""

    rows: int  # of one strip, at this resolution; the stage's height: not cut at all
    keep_input: bool = True  # the stage's upsampled input lies in memory whole
    keep_inner: bool = True  # so does what is between the two convolutions of a block


@dataclass(frozen=True, kw_only=True)
class DecodePlan:
    """What to do, and what it costs."""

    stages: tuple[StagePlan, ...]
    peak_bytes: int  # of activations and the picture, above the weights and the latent
    work: float  # convolutions done, in units of those of the plainest decode

    @property
    def recomputes(self) -> bool:
        """Whether anything is computed again for want of memory."""
        return not all(stage.keep_input and stage.keep_inner for stage in self.stages)


def plan_decode(
    params: VAEParams, height: int, width: int, itemsize: int, memory: int | None = None, device: str = "cpu"
) -> DecodePlan:
    """The least work whose peak fits into `memory`.

    height, width: of the picture, pixels. itemsize: bytes of one activation (bfloat16: 2). memory: bytes for one
    picture's activations above weights and latent; None: as much as it takes. device: torch's device type.
    Raises OutOfMemoryError where even the least is more.
    """
    shapes = list(stage_shapes(params, height, width, itemsize))
    middle = middle_peak(params, height, width, itemsize, device)
    plans = [
        _with_strips(shapes, elements, middle, memory)
        for elements in STRIP_ELEMENTS.get(device, STRIP_ELEMENTS["cuda"])
    ]
    fitting = [plan for plan in plans if memory is None or plan.peak_bytes <= memory]
    if not fitting and memory is not None:
        least = min(plan.peak_bytes for plan in plans)
        raise OutOfMemoryError(
            f"decoding {width}x{height} needs {least / MiB:.0f} MiB beside the weights, it may use {memory / MiB:.0f}",
            hint="Choose a smaller --base, or decode on the CPU with --device cpu.",
        )
    return min(fitting, key=lambda plan: plan.work)  # the first of equals: the highest strips


def plan_leanest(params: VAEParams, height: int, width: int, itemsize: int, device: str = "cpu") -> DecodePlan:
    """The plan with the lowest peak, and of those the one with the least work."""
    shapes = list(stage_shapes(params, height, width, itemsize))
    middle = middle_peak(params, height, width, itemsize, device)
    elements = STRIP_ELEMENTS.get(device, STRIP_ELEMENTS["cuda"])[-1]
    floor = _with_strips(shapes, elements, middle, memory=0).peak_bytes
    return _with_strips(shapes, elements, middle, floor)


@dataclass(frozen=True, kw_only=True)
class StageShape:
    """Sizes that decide one stage's memory and work."""

    height: int
    width: int
    inside: int  # channels of its input, which the stage before has at half the side
    outside: int
    blocks: int
    upsampled: bool  # False for the first stage, whose input comes from the middle
    last: bool
    itemsize: int

    def size(self, channels: int, rows: int | None = None) -> int:
        """Bytes of `rows` (None: all) rows of `channels`."""
        rows = self.height if rows is None else min(rows, self.height)
        return rows * self.width * channels * self.itemsize


def stage_shapes(params: VAEParams, height: int, width: int, itemsize: int) -> Iterator[StageShape]:
    """In the order of decoding. Raises ValueError for a picture that is not a whole number of latent cells."""
    widths = params.block_out_channels[::-1]
    scale = 1 << (len(widths) - 1)
    if height % scale or width % scale or min(height, width) <= 0:
        raise ValueError(f"{width}x{height} is not a multiple of {scale}")
    for i, (inside, outside) in enumerate(pairwise((widths[0], *widths))):
        side = scale >> i
        yield StageShape(
            height=height // side,
            width=width // side,
            inside=inside,
            outside=outside,
            blocks=params.layers_per_block + 1,
            upsampled=i > 0,
            last=i + 1 == len(widths),
            itemsize=itemsize,
        )


def score_rows(positions: int, itemsize: int) -> int:
    """Queries whose scores against every position fit into SCORE_BYTES, as float32 and in the network's dtype."""
    return max(1, min(positions, SCORE_BYTES // (positions * (4 + itemsize))))


def middle_peak(params: VAEParams, height: int, width: int, itemsize: int, device: str) -> int:
    """Peak bytes of the middle, which always runs whole."""
    scale = 1 << (len(params.block_out_channels) - 1)
    positions = (height // scale) * (width // scale)
    whole = positions * params.block_out_channels[-1] * itemsize
    if not params.mid_block_add_attention:
        return 3 * whole  # input, its norm, the first convolution
    # The CPU's kernel holds a few blocks of scores only.
    scores = 0 if device == "cpu" else score_rows(positions, itemsize) * positions * (4 + itemsize)
    return 5 * whole + scores  # input, queries, keys, values, and first the norm, then the result


def stage_peak(shape: StageShape, plan: StagePlan) -> int:
    """Peak bytes of one stage (the last one's with the picture); follows `backend.model.decode` line by line."""
    r, one = plan.rows, plan.rows >= shape.height
    s, c, d = shape.size, shape.inside, shape.outside
    below = s(c) // 4 if shape.upsampled else 0
    before = 0 if plan.keep_input else below
    kept = s(c) if plan.keep_input else 0
    peaks = []

    if shape.upsampled and plan.keep_input:
        peaks.append(below + s(c) + (s(c, r + 4) if one else s(c, r + 4) + s(c, r + 1)))
    fetch = 0 if plan.keep_input else s(c, r + 6) + s(c, r + 3)  # a strip of the input, computed
    normed = s(c, r + 2) + (0 if plan.keep_input else s(c, r + 3))
    first = max(fetch, normed, s(c, r + 2) + (0 if one else s(d, r + 1)))
    if c != d or not plan.keep_input:
        peaks.append(before + kept + s(d) + first)
        second = s(d) if one else s(d, r + 1) + max(s(d, r + 2), fetch, s(d, r))
        peaks.append(before + kept + s(d) + second)
        rest = shape.blocks - 1
    else:
        rest = shape.blocks
    if rest and plan.keep_inner:
        peaks.append(2 * s(d) + s(d, r + 2) + (0 if one else s(d, r + 1)))
    elif rest:
        peaks.append(s(d) + s(d, r + 2) + s(d, r + 2))
    if shape.last:
        peaks.append(s(d) + s(3) + s(d, r + 2) + (0 if one else s(3, r + 1)))
    return max(peaks)


def stage_work(shape: StageShape, plan: StagePlan) -> float:
    """Multiply-adds of the stage's convolutions."""
    area = shape.height * shape.width
    c, d = shape.inside, shape.outside
    halo = min(shape.height, plan.rows + 2) / min(shape.height, plan.rows)
    up = 9 * c * c * (1 if plan.keep_input else 2 + halo) if shape.upsampled else 0
    changes = c != d or not plan.keep_input
    work = up + 9 * c * d + 9 * d * d + (c * d if c != d else 0)
    again = 1 if plan.keep_inner else 2
    if not changes:
        work += 9 * c * d * (again - 1)
    work += (shape.blocks - 1) * 9 * d * d * (1 + again)
    return area * (work + (9 * 3 * d if shape.last else 0))


def _with_strips(shapes: list[StageShape], elements: int, middle: int, memory: int | None) -> DecodePlan:
    """Strips of about `elements`; per stage the least work that fits, or where nothing fits the lowest peak."""
    stages = []
    for shape in shapes:
        rows = max(1, elements // (shape.width * max(shape.inside, shape.outside)))
        options = [
            _possible(shape, StagePlan(rows=rows, keep_input=keep_input, keep_inner=keep_inner))
            for keep_input, keep_inner in product((True, False), repeat=2)
        ]
        fitting = [o for o in options if memory is None or stage_peak(shape, o) <= memory]
        if fitting:
            stages.append(min(fitting, key=lambda o: stage_work(shape, o)))
        else:
            stages.append(min(options, key=lambda o: stage_peak(shape, o)))
    return _plan(shapes, tuple(stages), middle)


def _possible(shape: StageShape, wanted: StagePlan) -> StagePlan:
    """`wanted` with strips of equal height, and without what makes no sense for this stage."""
    rows = ceil(shape.height / ceil(shape.height / wanted.rows))
    cut = rows < shape.height
    return StagePlan(
        rows=rows,
        keep_input=wanted.keep_input or not shape.upsampled or not cut,
        keep_inner=wanted.keep_inner or not cut,
    )


def _plan(shapes: list[StageShape], stages: tuple[StagePlan, ...], middle: int) -> DecodePlan:
    pairs = list(zip(shapes, stages, strict=True))
    plain = sum(stage_work(shape, StagePlan(rows=shape.height)) for shape in shapes)
    return DecodePlan(
        stages=stages,
        peak_bytes=max(middle, *(stage_peak(shape, stage) for shape, stage in pairs)),
        work=sum(stage_work(shape, stage) for shape, stage in pairs) / plain,
    )
