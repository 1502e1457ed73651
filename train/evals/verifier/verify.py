"""Does a picture show what was asked for? A rule-based answer, item by item, with the reason where it does not.

An `Expectation` says what a picture must hold: things with exact counts, colours where the prompt names them, the
relation of the first to the second, the word on a sign. As in GenEval, things nobody asked for are tolerated, unless
they are of a kind and colour that was counted. `verify` finds what is there (`train.evals.verifier.find_things`), reads
signs (`train.evals.verifier.signs`) and compares. No network; trusted because `train.evals.verifier.prove` measures it
on drawn scenes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from PIL import Image

from train.evals.verifier import signs
from train.evals.verifier.find_things import FoundThing, find_things
from train.evals.verifier.regions import SIDE, normalised
from train.world.scene_text import NUMBERS, kind_name
from train.world.scenes import RELATIONS, Scene

VERSION = 4  # one more whenever an answer may change: results of different ones do not mix
MARGIN = 0.1  # of the summed sizes: a centre must be off by more than this to be left, right, above or below (GenEval)


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """`count` things of a kind. `colour` None: any colour. `word` None: no word is asked for."""

    kind: str
    colour: str | None = None
    count: int = 1
    word: str | None = None

    def __str__(self) -> str:
        words = [NUMBERS[self.count], *([self.colour] if self.colour else []), kind_name(self.kind, self.count)]
        return " ".join(words) + (f' that says "{self.word}"' if self.word else "")


@dataclass(frozen=True, kw_only=True)
class Expectation:
    """All of `things`, and the first of them in `relation` (a name in RELATIONS, or None) to the second."""

    things: tuple[Wanted, ...]
    relation: str | None = None

    def __post_init__(self) -> None:
        if not self.things:
            raise ValueError("an expectation needs at least one thing")
        if self.relation is not None and (self.relation not in RELATIONS or len(self.things) < 2):
            raise ValueError(f"relation {self.relation!r} of {len(self.things)} things is none of {RELATIONS}")


@dataclass(frozen=True, kw_only=True)
class Item:
    """One thing that was checked; `reason` is empty where it holds."""

    what: str
    holds: bool
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What was checked, and what was seen."""

    items: tuple[Item, ...]
    found: tuple[FoundThing, ...]

    @property
    def right(self) -> bool:
        return all(item.holds for item in self.items)

    @property
    def reason(self) -> str:
        """The failed items' reasons, or an empty text."""
        return "; ".join(item.reason for item in self.items if not item.holds)


def expectation_of(scene: Scene) -> Expectation:
    """Everything a dense caption of `scene` claims about its things."""
    things = tuple(
        Wanted(kind=t.kind, colour=t.colour, count=n, word=t.word)
        for t, n in ((scene.things[i], n) for i, n in scene.groups)
    )
    return Expectation(things=things, relation=scene.relation)


# ---------------------------------------------------------------------------------------------------------- checking


def _bounds(things: Sequence[FoundThing]) -> tuple[float, float, float, float]:
    """(centre x, centre y, width, height) of the box around all of `things`."""
    x0, y0 = min(t.box[0] for t in things), min(t.box[1] for t in things)
    x1, y1 = max(t.box[2] for t in things), max(t.box[3] for t in things)
    return (x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0


def relation_holds(first: Sequence[FoundThing], relation: str, second: Sequence[FoundThing]) -> bool:
    """Whether the box around `first` is in `relation` to the box around `second`.

    Left, right, above, below: as GenEval, the centres' offset less MARGIN of the summed sizes must point that way more
    than half. On top of: above, and touching or nearly. Inside: the centre and most of the box within the other's.
    """
    ax, ay, aw, ah = _bounds(first)
    bx, by, bw, bh = _bounds(second)
    if relation == "inside":
        return abs(ax - bx) < 0.25 * bw and abs(ay - by) < 0.25 * bh and aw < 0.85 * bw and ah < 0.85 * bh
    dx, dy = ax - bx, ay - by
    if relation == "on top of":
        gap = (by - bh / 2) - (ay + ah / 2)
        return dy < 0 and abs(gap) < 0.5 * (ah + bh) and abs(dx) < (aw + bw) / 2
    dx = max(0.0, abs(dx) - MARGIN * (aw + bw)) * (1 if dx > 0 else -1)
    dy = max(0.0, abs(dy) - MARGIN * (ah + bh)) * (1 if dy > 0 else -1)
    length = (dx * dx + dy * dy) ** 0.5
    if length == 0:
        return False
    return {"left of": -dx, "right of": dx, "above": -dy, "below": dy}[relation] / length > 0.5


def _matching(wanted: Wanted, found: Sequence[FoundThing]) -> list[FoundThing]:
    return [f for f in found if f.kind == wanted.kind and wanted.colour in (None, f.colour)]


def _check(wanted: Wanted, found: Sequence[FoundThing]) -> list[Item]:
    match = _matching(wanted, found)
    if len(match) != wanted.count:
        number = NUMBERS[len(match)] if len(match) < len(NUMBERS) else str(len(match))
        seen = f"{number} among [{', '.join(f'{f.colour} {f.kind}' for f in found)}]" if found else "nothing"
        what = str(replace(wanted, word=None))
        items = [Item(what=what, holds=False, reason=f"wanted {what}, saw {seen}")]
    else:
        items = [Item(what=str(replace(wanted, word=None)), holds=True)]
    if wanted.word is not None:
        words = [f.word for f in match]
        holds = wanted.word in words
        seen = ", ".join(w or "nothing" for w in words) or "no such sign"
        items.append(
            Item(
                what=f'the word "{wanted.word}"',
                holds=holds,
                reason="" if holds else f"the sign says {seen}, not {wanted.word}",
            )
        )
    return items


def check(expectation: Expectation, found: Sequence[FoundThing]) -> tuple[Item, ...]:
    """Compare what was asked for with what was found."""
    items = [item for wanted in expectation.things for item in _check(wanted, found)]
    if expectation.relation is not None:
        first, second = expectation.things[:2]
        a, b = _matching(first, found), _matching(second, found)
        what = f"{kind_name(first.kind, first.count)} {expectation.relation} {kind_name(second.kind, second.count)}"
        holds = bool(a) and bool(b) and relation_holds(a, expectation.relation, b)
        reason = "" if holds else f"not {what}" if a and b else f"cannot be {what}: one of them is missing"
        items.append(Item(what=what, holds=holds, reason=reason))
    return tuple(items)


def see(picture: Image.Image, asked_words: Sequence[str] = ()) -> tuple[FoundThing, ...]:
    """The things in a picture of any size, and what their signs say. Find once, check as often as you like."""
    picture = normalised(picture)
    out: list[FoundThing] = []
    for thing in find_things(picture):
        if thing.kind == "sign":
            cx, cy, rx, ry = (v * SIDE for v in thing.at)
            panel = picture.crop(signs.panel_box(picture, (cx, cy, rx, ry)))
            thing = replace(thing, word=signs.read(panel, asked_words))
        out.append(thing)
    return tuple(out)


def verify(picture: Image.Image, expectation: Expectation) -> Verdict:
    """Judge one picture (PIL, any size and mode)."""
    found = see(picture, [w.word for w in expectation.things if w.word is not None])
    return Verdict(items=check(expectation, found), found=found)
