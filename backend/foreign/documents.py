"""A document that somebody else wrote: read with a bound, parsed with a bound, refused in one sentence.

The parsers below know what they look for and raise their own errors; here everything that is no document at all ends
as `Unreadable`: too large, no regular file, not UTF-8, too deep, a number that is none.

Light ring: standard library only.
"""

from __future__ import annotations

import json
import math
import os
import stat
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn, cast

from backend.errors import human_bytes, os_reason

DEPTH = 64  # tables and lists within each other: ten times what any of the formats has
VALUES = 4_000_000  # in one document, at about 64 bytes of memory each; a tokenizer's merges are 1.5 million
LARGEST = 64_000_000  # bytes of a document where its reader does not say less: tokenizers have 20 MB


class Unreadable(ValueError):
    """What is wrong with a document, as the end of a sentence: "is no JSON: ..."."""


def read_bytes(path: Path, limit: int = LARGEST) -> bytes:
    """All of a regular file of at most `limit` bytes. Raises Unreadable, and OSError where it cannot be opened.

    A FIFO, a socket or a device is refused instead of waited for.
    """
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    with os.fdopen(handle, "rb") as file:
        kind = os.fstat(handle).st_mode
        if stat.S_ISDIR(kind):
            raise IsADirectoryError(21, "is a directory", str(path))
        if not stat.S_ISREG(kind):
            raise Unreadable("is no regular file")
        data = file.read(limit + 1)
    if len(data) > limit:
        raise Unreadable(f"is larger than {human_bytes(limit)}")
    return data


def read_text(path: Path, limit: int = LARGEST) -> str:
    """The same as text. Raises Unreadable and OSError."""
    return as_text(read_bytes(path, limit))


def as_text(data: bytes) -> str:
    """UTF-8, with or without a mark at its start. Raises Unreadable."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Unreadable(f"is not UTF-8 text: byte {error.start}") from None


def parse_json(text: str | bytes, *, depth: int = DEPTH) -> Any:
    """JSON as Python has it, but for numbers that are none. Raises Unreadable.

    Refused: NaN and the infinities, also as 1e999; integers of thousands of digits; more than `depth` levels; more
    than VALUES values.
    """
    check_values(text)
    try:
        found = json.loads(text, parse_constant=_no_number, parse_float=_finite)
    except RecursionError:
        raise Unreadable("is nested too deeply") from None
    except UnicodeDecodeError as error:
        raise Unreadable(f"is not UTF-8 text: byte {error.start}") from None
    except ValueError as error:
        raise error if isinstance(error, Unreadable) else Unreadable(f"is no JSON: {error}") from None
    return _shallow(found, depth)


def check_values(text: str | bytes) -> None:
    """Before it is parsed: 64 MB of "[]," would take 1.4 GB. Raises Unreadable for more than VALUES values."""
    signs = (",", "[", "{") if isinstance(text, str) else (b",", b"[", b"{")
    if sum(text.count(sign) for sign in signs) > VALUES:  # pyright: ignore[reportArgumentType]  each of its own kind
        raise Unreadable(f"holds more than {VALUES:,} values")


def parse_toml(text: str, *, depth: int = DEPTH) -> dict[str, Any]:
    """TOML as Python has it. Raises Unreadable, also for more than `depth` levels."""
    try:
        found = tomllib.loads(text)
    except RecursionError:
        raise Unreadable("is nested too deeply") from None
    except ValueError as error:  # a date or a number that Python cannot hold among them
        raise Unreadable(f"is not valid TOML: {error}") from None
    return cast("dict[str, Any]", _shallow(found, depth))


def reason(error: Unreadable | OSError) -> str:
    """Either error as the end of a sentence about its file."""
    return f"cannot be read: {os_reason(error)}" if isinstance(error, OSError) else str(error)


def _no_number(text: str) -> NoReturn:
    raise Unreadable(f"holds {text}, which is no number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise Unreadable("holds a number that is too large")
    return value


def _shallow(found: Any, depth: int) -> Any:
    """`found` as it is. Raises Unreadable where it is deeper than `depth`: others walk it by recursion."""
    level: list[Any] = [found]
    for _ in range(depth):
        level = [inner for value in level for inner in _inside(value)]
        if not level:
            return found
    raise Unreadable("is nested too deeply")


def _inside(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from (inner for inner in cast("dict[str, Any]", value).values() if isinstance(inner, dict | list))
    elif isinstance(value, list):
        yield from (inner for inner in cast("list[Any]", value) if isinstance(inner, dict | list))
