"""Which seeds a run draws: those that were typed, a range, or new ones.

Light ring: standard library only.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence

from backend.errors import UsageError
from backend.wish import Wish

PICTURES_LIMIT = 10_000  # of one run
SEED_END = 2**63  # torch.Generator takes more, but JSON readers and SQLite do not


def draw_seeds(seeds: Sequence[str], num: int | None) -> tuple[int, ...]:
    """Seeds of a run, one per picture. Raises UsageError.

    One seed and a count: `-s 5 -n 3` is 5, 6, 7. No seed: the first is drawn, the rest follow it, so that a run is
    written as one range. Several seeds: one picture each, and a count must agree.
    """
    if num is not None and not 1 <= num <= PICTURES_LIMIT:
        raise UsageError(f"--num {num} is outside 1..{PICTURES_LIMIT:,}")
    wanted = [seed for text in (seeds or ["-1"]) for seed in _parse_seed(text)]
    if num is not None and len(wanted) == 1:
        if wanted[0] + num > SEED_END:
            raise UsageError(f"seeds {wanted[0]}..{wanted[0] + num - 1} pass the largest seed, {SEED_END - 1}")
        wanted = list(range(wanted[0], wanted[0] + num))
    if num is not None and num != len(wanted):
        raise UsageError(f"--num {num} and {len(wanted)} seeds differ", hint="drop --num: each seed makes one picture")
    if len(wanted) > PICTURES_LIMIT:
        raise UsageError(f"{len(wanted):,} seeds are too many for one run; the limit is {PICTURES_LIMIT:,}")
    return tuple(wanted)


def draw_run(wish: Wish) -> tuple[int | None, tuple[int, ...]]:
    """(seed that is varied, or None; a seed a picture). Raises UsageError.

    `--variations 4 -s 5` varies 5 in four directions that are drawn, `--around 5 -s 7 -s 9` in those of 7 and 9, and
    `--around 5 --variations 4` in four more.
    """
    around, count = wish.around, wish.variations
    if around is not None and not 0 <= around < SEED_END:
        raise UsageError(f"--around {around} is outside 0..{SEED_END - 1}")
    if count is None:
        return around, draw_seeds(wish.seeds or (), wish.num)
    if not 1 <= count <= PICTURES_LIMIT:
        raise UsageError(f"--variations {count} is outside 1..{PICTURES_LIMIT:,}")
    if around is None:
        around, *others = draw_seeds(wish.seeds or (), None)
        if others:
            raise UsageError(f"--variations vary one seed, not {len(others) + 1}", hint="give one --seed")
    return around, draw_seeds((), count)


def _parse_seed(text: str) -> Sequence[int]:
    """One `--seed`: a number, -1, or an inclusive range."""
    hint = "a seed is a number from 0, -1 for a drawn one, or a range such as 100..120"
    found = re.fullmatch(r"(-?[0-9]{1,19})(?:\.\.([0-9]{1,19}))?", text.strip())
    if not found:
        if (meant := re.fullmatch(r"([0-9]{1,19})(?:-|:|\.\.\.|…)([0-9]{1,19})", text.strip())) is not None:
            hint = f"a range: {meant[1]}..{meant[2]}"
        raise UsageError(f"{text!r} is no seed", hint=hint)
    first = int(found.group(1))
    if first == -1 and found.group(2) is None:
        return (secrets.randbelow(2**32),)  # what every other tool can read back
    last = int(found.group(2)) if found.group(2) is not None else first
    if not 0 <= first < SEED_END or not last < SEED_END:
        raise UsageError(f"the seed {text} is outside 0..{SEED_END - 1}", hint=hint)
    if last < first:
        raise UsageError(f"the seed range {text} runs backwards", hint=f"write {last}..{first}")
    if last - first >= PICTURES_LIMIT:
        raise UsageError(
            f"the seed range {text} asks for {last - first + 1:,} pictures; the limit is {PICTURES_LIMIT:,}"
        )
    return range(first, last + 1)
