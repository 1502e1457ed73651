"""Near-duplicates among texts, exactly: pairs whose sets of three-word shingles have a Jaccard similarity of a bound.

Every text is compared only with those that share one of its rarest shingles, and a pair above the bound must: texts of
n shingles that are that alike have more than all but `n - ceil(bound n) + 1` of them in common. 8,406 prompts of the
grammar take seconds, although their sentences come from the same few dozens.

Light ring: standard library only.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict

WORDS = 3  # in a shingle


def normal_form(text: str) -> str:
    """Words alone, in small letters: what two texts have in common that differ in marks and blanks."""
    return " ".join(re.findall(r"\w+", text.casefold()))


def shingles(text: str) -> frozenset[str]:
    """Every run of three words; of a shorter text the whole of it."""
    words = normal_form(text).split()
    return frozenset(" ".join(words[i : i + WORDS]) for i in range(max(1, len(words) - WORDS + 1)))


class Texts:
    """Texts that were added, to be asked for one that is nearly a new one."""

    def __init__(self, bound: float) -> None:
        self._bound = bound  # in (0, 1]
        self._sets: list[frozenset[str]] = []
        self._holders: dict[str, list[int]] = defaultdict(list)  # shingle -> numbers of the texts that hold it

    def add(self, text: str) -> None:
        """Keep it, numbered from 0 in the order of adding."""
        found = shingles(text)
        for shingle in found:
            self._holders[shingle].append(len(self._sets))
        self._sets.append(found)

    def nearest(self, text: str) -> tuple[int, float] | None:
        """(number, similarity) of the most similar one at or above the bound, the first of equals; or None."""
        mine = shingles(text)
        rarest = sorted(mine, key=lambda shingle: (len(self._holders.get(shingle, ())), shingle))
        wanted = rarest[: len(mine) - math.ceil(self._bound * len(mine)) + 1]
        near: tuple[int, float] | None = None
        for other in sorted({number for shingle in wanted for number in self._holders.get(shingle, ())}):
            common = len(mine & self._sets[other])
            alike = common / (len(mine) + len(self._sets[other]) - common)
            if alike >= self._bound and (near is None or alike > near[1]):
                near = other, alike
        return near
