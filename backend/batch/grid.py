"""A grid of wishes: one field of a wish changes along its columns, another along its rows.

Light ring: standard library only.
"""

from __future__ import annotations

import difflib
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, get_origin

from backend.errors import UsageError
from backend.fields import Misfit, from_text, words_for
from backend.wish import OUTPUT, ROWS, Row, Wish

CELLS = 400  # of one grid
# A change of one of these loads networks anew.
LOADS = "model quant loras lora_mode dtype device encoder compiled".split()


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One side of a grid."""

    name: str  # field of the wish
    values: tuple[Wish, ...]
    labels: tuple[str, ...]  # "guidance 3"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One picture of a grid."""

    column: int
    row: int
    label: str
    wish: Wish


NO_AXIS = Axis(name="", values=(Wish(),), labels=("",))


def read_axis(text: str, flag: str) -> Axis:
    """`guidance=1,3,5`, `seed=1..4`, `prompt=a red fish;a blue fish`: a field of the wish, and its values.

    They stand between semicolons where there are some, else between commas; A..B are the whole numbers of a range. The
    field may be called by its flag. Raises UsageError.
    """
    name, sign, said = text.partition("=")
    row = _row(name.strip(), flag)
    parts = [part.strip() for part in re.split(";" if ";" in said else ",", said)]
    if not sign or not all(parts):
        raise UsageError(f"{flag} {text!r} is no axis", hint=f"write {flag} guidance=1,3,5 or {flag} seed=1..4")
    words = [
        word
        for part in parts
        for word in (_range(part, flag) if row.kind in (int, float) or row.name == "seeds" else [part])
    ]
    shown = name.strip()
    return Axis(
        name=row.name,
        values=tuple(Wish(**{row.name: _value(row, word, flag)}) for word in words),
        labels=tuple(f"{shown} {word}" for word in words),
    )


def _row(name: str, flag: str) -> Row:
    fields = {row.name: row for row in ROWS.values() if _may_change(row)}
    called = {word.lstrip("-"): row for row in fields.values() for word in row.flags if word.startswith("--")} | fields
    if name not in called:
        near = difflib.get_close_matches(name, called, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(fields)}"
        raise UsageError(f"{flag}: {name[:60]!r} is nothing that a grid can change", hint=hint)
    return called[name]


def _may_change(row: Row) -> bool:
    if row.name in ("num", "wildcards", "variations"):
        return False
    return row.name == "prompt" or ("gen" in row.commands and row.panel != OUTPUT)


def _range(word: str, flag: str) -> list[str]:
    found = re.fullmatch(r"([0-9]{1,18})\.\.([0-9]{1,18})", word)
    if found is None:
        return [word]
    first, last = int(found[1]), int(found[2])
    if not first <= last < first + CELLS:
        raise UsageError(f"{flag}: the range {word} is empty, or longer than the {CELLS} cells of a grid")
    return [str(number) for number in range(first, last + 1)]


def _value(row: Row, word: str, flag: str) -> Any:
    if get_origin(row.kind) is tuple:
        return (word,)
    try:
        return from_text(word, row.kind)
    except (Misfit, ValueError):
        raise UsageError(
            f"{flag}: {row.name} = {word[:60]!r} does not fit", hint=f"it must be {words_for(row.kind)}"
        ) from None


def cells(base: Wish, x: Axis, y: Axis) -> list[Cell]:
    """Every cell, in the order that changes what has to be loaded as seldom as possible.

    What no axis says is the same in all of them: a seed that is left out is drawn once. Raises UsageError.
    """
    if x.name == y.name:
        raise UsageError(f"both axes change {x.name}")
    if len(x.values) * len(y.values) > CELLS:
        raise UsageError(f"a grid of {len(x.values) * len(y.values):,} cells; the limit is {CELLS}")
    if base.num not in (None, 1) or len(base.seeds or ()) > 1 or base.variations is not None:
        raise UsageError("a cell of a grid is one picture", hint="several seeds are an axis: --y seed=1..4")
    base = replace(
        base,
        num=None,
        seeds=base.seeds if base.seeds and base.seeds != ("-1",) else (str(secrets.randbelow(2**32)),),
        wildcard_seed=secrets.randbelow(2**32) if base.wildcard_seed is None else base.wildcard_seed,
    )
    return [_cell(base, x, y, column, row) for column, row in _order(x, y)]


def _order(x: Axis, y: Axis) -> Iterator[tuple[int, int]]:
    if x.name in LOADS and y.name not in LOADS:
        yield from ((column, row) for column in range(len(x.values)) for row in range(len(y.values)))
    else:
        yield from ((column, row) for row in range(len(y.values)) for column in range(len(x.values)))


def _cell(base: Wish, x: Axis, y: Axis, column: int, row: int) -> Cell:
    wish = base.overridden_by(x.values[column]).overridden_by(y.values[row])
    if wish.wildcard_seed is None:  # a prompt of an axis sets it aside
        wish = replace(wish, wildcard_seed=base.wildcard_seed)
    if wish.style is None:
        wish = replace(wish, style=base.style)
    label = ", ".join(filter(None, (x.labels[column], y.labels[row])))
    return Cell(column=column, row=row, label=label, wish=wish)
