"""A text, TOML or JSON value -> a typed field of a frozen dataclass, and the range that a field may have.

Whoever reads a value knows where it came from, and words the error: here a value that does not fit is a `Misfit`.

Light ring: standard library only.
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, cast, get_args, get_origin, get_type_hints

from backend.errors import UsageError

_TRUTH = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


class Misfit(ValueError):
    """A value that its field cannot hold. Of a list: the part that does not fit, or all where there are too many."""

    def __init__(self, value: object, kind: Any) -> None:
        super().__init__(f"{value!r} is not {words_for(kind)}")
        self.value, self.kind = value, kind


# ---------------------------------------------------------------------------------------------------------------- types


def types_of(owner: type) -> Mapping[str, Any]:
    """The annotation of every field of a dataclass, by name."""
    hints = get_type_hints(owner)
    return {field.name: hints[field.name] for field in dataclasses.fields(cast("Any", owner))}


def plain(kind: Any) -> Any:
    """`int | None` -> int: the type that a written value must have."""
    if isinstance(kind, types.UnionType):
        return next(part for part in get_args(kind) if part is not types.NoneType)
    return kind


def from_text(text: str, kind: Any, *, separator: str = ",", finite: bool = True) -> Any:
    """`text` as the annotation `kind`: bool, int, float, str, Path, an enum, Literal, a tuple, or one of them | None.

    "none" stands for None where that is allowed; the parts of a tuple are split at `separator`. `finite` False: inf
    and nan are numbers too, for a config that says itself why it does not want them. Raises Misfit.
    """
    if isinstance(kind, types.UnionType) and text.lower() == "none":
        return None
    kind = plain(kind)
    if get_origin(kind) is tuple:
        parts = [part.strip() for part in text.split(separator) if part.strip()]
        return tuple(from_text(part, one, finite=finite) for part, one in _pairs(parts, kind))
    if get_origin(kind) is Literal:
        return _member(text, kind)
    try:
        if kind is bool:
            return _TRUTH[text.lower()]
        value = kind(text.replace("_", "") if kind is int else text)
    except (KeyError, ValueError):
        raise Misfit(text, kind) from None
    if kind is float and finite and not math.isfinite(value):
        raise Misfit(text, kind)
    return value


def from_data(value: Any, kind: Any) -> Any:
    """A TOML or JSON value, which anybody may have edited, as the annotation `kind`. Raises Misfit."""
    one = plain(kind)
    if value is None and one is not kind:
        return None
    if get_origin(one) is tuple and isinstance(value, list):
        return tuple(from_data(part, inner) for part, inner in _pairs(cast("list[Any]", value), one))
    if isinstance(value, str) and (one is Path or (isinstance(one, type) and issubclass(one, StrEnum))):
        return from_text(value, one)
    if get_origin(one) is Literal:
        return _member(value, one)
    # bool is an int to Python, and a whole number a float to people
    if one is float and type(value) in (int, float) and math.isfinite(cast("float", value)):
        return float(cast("float", value))
    if one is not float and type(value) is one:
        return cast("Any", value)
    raise Misfit(value, one)


def object_from(data: object, owner: type[Any]) -> Any:
    """A JSON object as a dataclass, whose own fields may be dataclasses, tuples of them and objects. A field that is
    left out has its default, and what else the object holds is left aside. Raises Misfit, TypeError for a field that
    is missing."""
    if not isinstance(data, Mapping):
        raise Misfit(data, owner)
    told, kinds = cast("Mapping[str, Any]", data), types_of(owner)
    return owner(**{name: _object_field(told[name], kind) for name, kind in kinds.items() if name in told})


def _object_field(value: Any, kind: Any) -> Any:
    one = plain(kind)
    if value is None and one is not kind:
        return None
    if get_origin(one) is Mapping:
        if not isinstance(value, dict):
            raise Misfit(value, one)
        return cast("Any", value)
    inner = get_args(one)[0] if get_origin(one) is tuple else None
    if dataclasses.is_dataclass(inner):
        if not isinstance(value, list):
            raise Misfit(value, one)
        return tuple(object_from(part, cast("type[Any]", inner)) for part in cast("list[Any]", value))
    return object_from(value, cast("type[Any]", one)) if dataclasses.is_dataclass(one) else from_data(value, kind)


def _pairs(parts: list[Any], kind: Any) -> list[tuple[Any, Any]]:
    """Each part with the type that it must have."""
    inner = get_args(kind)
    if inner[-1] is Ellipsis:
        inner = (inner[0],) * len(parts)
    if len(inner) != len(parts):
        raise Misfit(parts, kind)
    return list(zip(parts, inner, strict=True))


def _member(value: Any, kind: Any) -> Any:
    if value not in get_args(kind):
        raise Misfit(value, kind)
    return value


def as_data(value: Any) -> Any:
    """A field's value as TOML or JSON holds it: what `from_data` reads back."""
    if isinstance(value, tuple):
        return [as_data(part) for part in cast("tuple[Any, ...]", value)]
    return str(value) if isinstance(value, (Path, StrEnum)) else value


def words_for(kind: Any) -> str:
    """What fits the annotation `kind`, in words: "a whole number"."""
    kind = plain(kind)
    if get_origin(kind) is tuple:
        return f"a list of {words_for(get_args(kind)[0])}"
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, get_args(kind)))
    if dataclasses.is_dataclass(kind) or get_origin(kind) is Mapping:
        return "an object"
    if issubclass(kind, StrEnum):
        return "one of " + ", ".join(kind)
    return {bool: "true or false", int: "a whole number", float: "a number", Path: "a path"}.get(kind, "a text")


# --------------------------------------------------------------------------------------------------------------- ranges


@dataclass(frozen=True)
class Range:
    """Numbers that a field may hold. None in the field itself passes; `most` None: no upper end."""

    least: float
    most: float | None
    open: bool = False  # the ends themselves are outside
    hint: str | None = None  # of the error

    def holds(self, value: float) -> bool:
        """Whether it is inside; NaN is not."""
        most = math.inf if self.most is None else self.most
        return self.least < value < most if self.open else self.least <= value <= most


def within(default: Any, least: float, most: float | None = None, *, ends: bool = True, hint: str | None = None) -> Any:
    """A dataclass field with a range for `check_ranges`. `ends` False: the two ends themselves are outside."""
    return dataclasses.field(default=default, metadata={"range": Range(least, most, not ends, hint)})


def check_ranges(config: Any) -> None:
    """Call it from `__post_init__`. Raises UsageError for the first number outside the range of its field."""
    for field in dataclasses.fields(config):
        value, limits = getattr(config, field.name), field.metadata.get("range")
        if limits is not None and value is not None:
            check_range(field.name, value, limits)


def check_range(name: str, value: float, limits: Range) -> None:
    """Raises UsageError where `value` is outside."""
    if not limits.holds(value):
        least, most = _shown(limits.least), None if limits.most is None else _shown(limits.most)
        where = f"less than {least}" if most is None else f"outside {least}..{most}"
        raise UsageError(f"{name} = {_shown(value)} is {where}", hint=limits.hint)


def _shown(number: float) -> str:
    return f"{number:g}" if isinstance(number, float) else str(number)
