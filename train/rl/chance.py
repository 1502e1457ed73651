"""Draws that are functions of what they are for: the same names give the same draw on every machine and Python version.

Light ring: standard library only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import TypeVar

Thing = TypeVar("Thing")


def unit(*names: object) -> float:
    """A number in [0, 1), evenly spread over different names."""
    text = "\x1f".join(str(name) for name in names)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7]) / 2**56


def pick(things: Sequence[Thing], *names: object) -> Thing:
    """One of them; `things` must not be empty."""
    return things[int(unit(*names) * len(things))]


def shuffled(things: Iterable[Thing], *names: object) -> list[Thing]:
    """In an order of their own: it depends on what each thing is (its str), never on where it stood."""
    return sorted(things, key=lambda thing: (unit(*names, thing), str(thing)))
