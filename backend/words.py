"""Numbers and lists in the words of a message. Light ring: standard library only."""

from __future__ import annotations

from collections.abc import Iterable


def human_bytes(number: float) -> str:
    """1536 -> "1.5 kB". Decimal units, as disks and download pages count."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(number) < 1000:
            return f"{number:.0f} {unit}" if unit == "B" or number >= 100 else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"


def joined(words: Iterable[str], last: str = "or") -> str:
    """ "a, b or c". Raises ValueError for no words."""
    *first, end = words
    return f"{', '.join(first)} {last} {end}" if first else end
