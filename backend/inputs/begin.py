"""What a picture begins from, decided: the picture and its mask as exact files, how they meet the size, how much of the
schedule runs.

Light ring: standard library only; Pillow opens a header where there is a picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from backend.errors import UsageError
from backend.inputs.files import Shape, look_at, see_mask
from backend.paths import expanded
from backend.sizes import area_limits, enlarged, nearest_size, size_for, usual_ratio
from backend.types import Fit, GenerationRequest, InputPicture
from backend.wish import Wish

STRENGTH = 0.6  # without a mask; what is drawn inside one is drawn from noise
HIRES_STRENGTH = 0.3
HIRES_MOST = 4.0
AMOUNT = 0.3
HIRES_AREA = 4  # times the largest area that the model was trained at
Warn = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Beginning:
    """The fields of a request about the picture it begins from."""

    init: InputPicture | None = None
    mask: InputPicture | None = None
    strength: float | None = None
    fit: Fit | None = None
    width: int  # pixels
    height: int


def decide_beginning(
    wish: Wish, sized: tuple[int, int] | None, bases: tuple[int, ...], default_base: int, warn: Warn
) -> Beginning:
    """What a wish with an `init` begins from. `sized`: the size that was asked for; None: that of the picture, or
    where the model cannot make it the nearest that it can.

    Raises UsageError: a strength out of range, a mask of another size or black all over, a size that the fit cannot
    meet; FileError for a file that cannot be read.
    """
    assert wish.init is not None
    init = find_input(wish.init, "--init")
    shape = look_at(Path(init.path))
    if shape.frames > 1:
        warn(f"{Path(init.path).name} has {shape.frames} frames: the first is taken")
    width, height = sized or size_like(shape, bases, default_base)
    fit = _fit(wish.fit, shape, (width, height), given=sized is not None)
    mask = None if wish.mask is None else _find_mask(wish.mask, shape)
    usual = STRENGTH if mask is None and fit is Fit.scale else 1.0
    strength = _share("--strength", wish.strength, usual)
    if fit is Fit.scale and sized is None and _cut(shape, width, height):
        warn(f"{Path(init.path).name} is {shape.width}x{shape.height}: scaled to {width}x{height}, its edges cut")
    return Beginning(init=init, mask=mask, strength=strength, fit=fit, width=width, height=height)


def warn_without_init(wish: Wish, warn: Warn) -> None:
    """Name what means nothing without a picture to begin from.

    Raises UsageError for a mask: the picture was forgotten.
    """
    if wish.mask is not None:
        raise UsageError(
            "--mask says what of a picture is drawn anew, and there is no --init", hint="add --init PICTURE"
        )
    for name, value in (("--strength", wish.strength), ("--fit", wish.fit)):
        if value is not None:
            warn(f"{name} is ignored: there is no --init")


def size_like(shape: Shape, bases: tuple[int, ...], default_base: int) -> tuple[int, int]:
    """The size of a picture where the model can make it; else the nearest of its area, or of the model's usual one."""
    size, (fewest, most) = (shape.width, shape.height), area_limits(bases)
    if nearest_size(*size, bases) == size:
        return size
    if fewest <= shape.width * shape.height <= most:
        return nearest_size(*size, bases)
    return size_for(usual_ratio(shape.width, shape.height), default_base)


def _fit(wished: Fit | None, shape: Shape, size: tuple[int, int], *, given: bool) -> Fit:
    larger = shape.width <= size[0] and shape.height <= size[1] and size != (shape.width, shape.height)
    if wished is Fit.extend and not larger:
        raise UsageError(
            f"--fit extend needs a size larger than the picture's {shape.width}x{shape.height}, not "
            f"{size[0]}x{size[1]}",
            hint="say one: --size WxH",
        )
    return wished or (Fit.extend if larger and given else Fit.scale)


def _cut(shape: Shape, width: int, height: int) -> bool:
    """Whether scaling to the size loses more of the picture than rounding does."""
    return abs(math.log(shape.width / shape.height * height / width)) > 0.01


def _find_mask(named: str | InputPicture, init: Shape) -> InputPicture:
    mask = find_input(named, "--mask")
    shape, name = look_at(Path(mask.path)), Path(mask.path).name
    if (shape.width, shape.height) != (init.width, init.height):
        raise UsageError(
            f"the mask {name} is {shape.width}x{shape.height}, the picture {init.width}x{init.height}",
            hint="a mask has the size of the picture that it is for",
        )
    if see_mask(Path(mask.path)).getextrema()[1] == 0:
        raise UsageError(f"the mask {name} is black all over: nothing would be drawn", hint="white is drawn anew")
    return mask


def find_input(named: str | InputPicture, flag: str) -> InputPicture:
    """A file as typed, or one that a picture recorded, with its hash. Raises FileError and UsageError."""
    from backend.checkpoints.identity import known_sha256

    if isinstance(named, str):
        path = expanded(named)
        look_at(path)  # says what is wrong with it
        return InputPicture(path=str(path.absolute()), sha256=known_sha256(path))
    for path in _places(named.path):
        if path.is_file() and known_sha256(path) == named.sha256:
            return InputPicture(path=str(path.absolute()), sha256=named.sha256)
    raise UsageError(
        f"the picture was made from {named.path} (SHA-256 {named.sha256[:16]}…), which was not found",
        hint=f"say where it lies: {flag} PATH",
    )


def _places(name: str) -> Iterator[Path]:
    """Where a file of that name may be: as it is called, and wherever one was used before."""
    from backend.cache.notes import paths_with_notes

    yield Path(name)
    yield from (path for path in paths_with_notes("sha256") if path.name == Path(name).name)


def last_pass(request: GenerationRequest) -> GenerationRequest:
    """The request of the pass that makes the finished picture: the request itself, or its second, larger pass."""
    if request.hires is None:
        return request
    width, height = enlarged(request.width, request.height, request.hires)
    return replace(
        request, width=width, height=height, hires=None, hires_strength=None, strength=request.hires_strength,
        init=None, mask=None, fit=None,
    )  # fmt: skip


# The second pass, and what varies a seed ------------------------------------------------------------------------------


def decide_hires(
    wish: Wish, beginning: Beginning, bases: tuple[int, ...], warn: Warn
) -> tuple[float | None, float | None]:
    """(factor, strength) of a second pass, None where there is none. Raises UsageError."""
    factor = wish.hires
    if factor is None:
        if wish.hires_strength is not None:
            warn("--hires-strength is ignored: there is no --hires")
        return None, None
    if not (math.isfinite(factor) and 1.0 < factor <= HIRES_MOST):
        raise UsageError(f"--hires {factor:g} is outside 1..{HIRES_MOST:g}", hint="2x is twice as wide and as high")
    if beginning.mask is not None or beginning.fit is Fit.extend:
        raise UsageError(
            "--hires draws all of a picture anew, and a mask or --fit extend keeps a part of it",
            hint="drop one of them",
        )
    width, height = enlarged(beginning.width, beginning.height, factor)
    most = max(bases) ** 2 * HIRES_AREA
    if width * height > most:
        raise UsageError(
            f"--hires {factor:g} makes {width}x{height}; this model goes up to {most:,} pixels",
            hint="a smaller factor, or a smaller --base",
        )
    if (width, height) == (beginning.width, beginning.height):
        raise UsageError(f"--hires {factor:g} makes no larger picture", hint="2x is twice as wide and as high")
    return factor, _share("--hires-strength", wish.hires_strength, HIRES_STRENGTH)


def decide_amount(wish: Wish, around: int | None, warn: Warn) -> float | None:
    """How far seeds vary the one they are `around`; None: there is none. Raises UsageError."""
    if around is None:
        if wish.amount is not None:
            warn("--amount is ignored: there is no --variations and no --around")
        return None
    return _share("--amount", wish.amount, AMOUNT)


def _share(flag: str, value: float | None, usual: float) -> float:
    if value is None:
        return usual
    if not 0.0 <= value <= 1.0:  # nan is not, either
        raise UsageError(f"{flag} {value:g} is outside 0..1", hint=f"left out it is {usual:g}")
    return float(value)
