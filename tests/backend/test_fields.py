"""Texts and data -> typed fields: each kind both ways, what does not fit, and ranges.

Why it can be trusted: a value is written by hand beside what it must become; the round trip goes through real JSON.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

import pytest

from backend.errors import UsageError
from backend.fields import Misfit, as_data, check_ranges, from_data, from_text, types_of, within, words_for


class Colour(StrEnum):
    red = "red"
    blue = "blue"


FITS: list[tuple[str, Any, Any]] = [
    ("3", int, 3), ("100_000", int, 100_000), ("-1", int, -1), ("2", float, 2.0), ("1e-3", float, 0.001),
    ("Yes", bool, True), ("0", bool, False), ("none", int | None, None), ("None", str, "None"), ("a b", str, "a b"),
    ("red", Colour, Colour.red), ("eu", Literal["eu", "us"], "eu"), ("x/y", Path, Path("x/y")),
    ("1, 2,", tuple[int, ...], (1, 2)), ("", tuple[str, ...], ()), ("1,2.5", tuple[int, float], (1, 2.5)),
    ("blue,red", tuple[Colour, ...] | None, (Colour.blue, Colour.red)), ("none", tuple[int, ...] | None, None),
]  # fmt: skip


@pytest.mark.parametrize(("text", "kind", "value"), FITS)
def test_a_text_and_its_json_become_the_same_value(text: str, kind: Any, value: Any) -> None:
    found = from_text(text, kind)
    assert found == value and type(found) is type(value)
    back = from_data(json.loads(json.dumps(as_data(value))), kind)
    assert back == value and type(back) is type(value)


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [("3.5", int, "a whole number"), ("x", float, "a number"), ("nan", float, "a number"), ("inf", float, "a number"),
     ("maybe", bool, "true or false"), ("none", int, "a whole number"), ("green", Colour, "one of red, blue"),
     ("x", Literal["eu", "us"], "one of eu, us"), ("1,x", tuple[int, ...], "a list of a whole number"),
     ("1", tuple[int, int], "a list of a whole number")],
)  # fmt: skip
def test_texts_that_do_not_fit(text: str, kind: Any, words: str) -> None:
    with pytest.raises(Misfit):
        from_text(text, kind)
    assert words_for(kind) == words


@pytest.mark.parametrize(
    ("value", "kind"),
    [("3", int), (True, int), (1, bool), (None, int), (float("nan"), float), (3, str), ("a", tuple[str, ...]),
     (["a", 3], tuple[str, ...]), ([1], tuple[int, int]), ("green", Colour), (3, Path), ({}, str), ("x", Literal["y"])],
)  # fmt: skip
def test_data_that_does_not_fit(value: Any, kind: Any) -> None:
    with pytest.raises(Misfit):
        from_data(value, kind)


@dataclass(frozen=True)
class Limits:
    words: int = within(40, 1, 10_000)
    cosine: float = within(0.985, 0, 1, ends=False)
    quality: int | None = within(None, 1, 100, hint="95 is usual")
    probes: int = within(4, 1)

    def __post_init__(self) -> None:
        check_ranges(self)


@pytest.mark.parametrize(
    ("given", "message"),
    [({"words": 0}, "words = 0 is outside 1..10000"), ({"cosine": 1.0}, "cosine = 1 is outside 0..1"),
     ({"cosine": float("nan")}, "cosine = nan is outside 0..1"), ({"quality": 101}, "quality = 101 is outside 1..100"),
     ({"probes": 0}, "probes = 0 is less than 1")],
)  # fmt: skip
def test_numbers_outside_their_range(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        Limits(**given)
    assert str(caught.value) == message and caught.value.hint == ("95 is usual" if "quality" in given else None)


def test_the_ends_are_inside() -> None:
    Limits(words=1, quality=100, probes=10**9, cosine=1e-9)
    Limits(words=10_000, quality=1)
    assert list(types_of(Limits)) == ["words", "cosine", "quality", "probes"] and types_of(Limits)["words"] is int
