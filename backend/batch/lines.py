"""A file of prompts: one a line, or JSON Lines whose keys are the fields of a wish.

    a red fish                                          {"prompt": "a red fish", "seeds": [1, 2], "steps": 8}
    # not drawn, as blank lines are not                 {"prompt": "a {red|blue} cat", "wildcard_seed": 7}

Light ring: standard library only.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast, get_origin

from backend.errors import UsageError
from backend.fields import Misfit, as_data, from_data, words_for
from backend.foreign import documents
from backend.wish import OUTPUT, ROWS, Wish
from backend.wishes.seeds import PICTURES_LIMIT

JSON_LINES = (".jsonl", ".ndjson")
KEYS = [row.name for row in ROWS.values() if row.name == "prompt" or "gen" in row.commands]


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of the file."""

    where: str  # for messages: "prompts.txt line 3"
    number: int  # of the line in the file, from 1
    wish: Wish  # what this line asks for, over what all ask for
    key: str  # the same for the same words and settings, whatever stands around them


def read_lines(text: str, name: str, base: Wish) -> list[Line]:
    """The lines that ask for pictures, each over `base`. Raises UsageError naming the line.

    `name`: of the file; its suffix says whether the lines are JSON. Without a suffix a first line that begins with `{"`
    says so.
    """
    suffix = Path(name).suffix.lower()
    as_json = suffix in JSON_LINES or (not suffix and text.lstrip().startswith('{"'))
    lines, seen = list[Line](), Counter[str]()
    for number, where, line in _numbered(text, name):
        own = _read_json(line, where) if as_json else Wish(prompt=line)
        if own.prompt is None and base.prompt is None:
            raise UsageError(f"{where} has no prompt")
        wish = base.overridden_by(own)
        if own.wildcard_seed is None:  # which a new prompt sets aside in a picture that is made again, not here
            wish = replace(wish, wildcard_seed=base.wildcard_seed)
        if own.style is None:
            wish = replace(wish, style=base.style)
        key = _key(wish)
        seen[key] += 1
        lines.append(Line(where=where, number=number, wish=wish, key=f"{key}-{seen[key]}"))
    if not lines:
        raise UsageError(f"{name} holds no prompt")
    if len(lines) > PICTURES_LIMIT:
        raise UsageError(f"{name} holds {len(lines):,} prompts; the limit is {PICTURES_LIMIT:,}")
    return lines


def _numbered(text: str, name: str) -> Iterator[tuple[int, str, str]]:
    for number, line in enumerate(text.split("\n"), 1):
        line = line.strip()
        if line and not line.startswith("#"):
            yield number, f"{name} line {number}", line


def _read_json(line: str, where: str) -> Wish:
    try:
        told = documents.parse_json(line)
    except documents.Unreadable as error:
        raise UsageError(f"{where} {error}"[:300]) from None
    if not isinstance(told, dict):
        raise UsageError(f"{where} is no JSON object", hint='write {"prompt": "a red fish", "steps": 8}')
    given = dict[str, Any]()
    for key, value in cast("dict[str, Any]", told).items():
        if key not in KEYS:
            near = difflib.get_close_matches(key, KEYS, n=1)
            raise UsageError(
                f"{where}: unknown key {key[:60]!r}",
                hint=f"did you mean {near[0]}?" if near else f"known: {', '.join(KEYS)}",
            )
        given[key] = _read_value(key, value, where)
    return Wish(**given)


def _read_value(key: str, value: Any, where: str) -> Any:
    """A value as its field has it; of a list of texts a lone one, and whole numbers, are texts."""
    kind = ROWS[key].kind
    if get_origin(kind) is tuple and value is not None:
        parts = cast("list[Any]", value) if isinstance(value, list) else [value]
        value = [str(part) if type(part) is int else part for part in parts]
    try:
        return None if value is None else from_data(value, kind)
    except (Misfit, ValueError):
        raise UsageError(
            f"{where}: {key} = {json.dumps(value)[:60]} does not fit", hint=f"it must be {words_for(kind)}"
        ) from None


def _key(wish: Wish) -> str:
    """A name for what a line asks for, but for how many, with which seeds, where and how it is computed."""
    apart = {"num", "seeds", *(row.name for row in ROWS.values() if row.panel == OUTPUT or row.verify)} - {"model"}
    told = {name: as_data(value) for name, value in wish.given().items() if name not in apart}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]
