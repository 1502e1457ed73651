"""Draws from the taxonomy, and a grammar that makes a plain prompt and its rubrics of one without any model.

Both are functions of (taxonomy, seed, k). Of every hundred draws each category gets its share exactly; within a
category every item comes once before any comes twice. One to four dimensions are drawn an item (paper section 2.4).

Light ring: standard library only.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache, lru_cache

from prompts import rubric_text
from prompts.taxonomies import Category, Dimension, Subcategory, Taxonomy, Way
from train.rl.chance import pick, shuffled, unit
from train.rl.prompts.prompt_set import Prompt, Rubric
from train.rl.prompts.wording import QUOTED, article, head, plural

WRITER = "grammar 1"  # raised with every change of what it writes
MOST_DIMENSIONS = 4
MOST_RUBRICS = 10  # the global one left out (paper section 2.4)
# The subject's number first: it says how all other sentences name it. Attribute last: it has the most ways to give way.
_ORDER = ("count", "spatial", "interaction", "color", "attribute")


@dataclass(frozen=True)
class Draw:
    """What prompt number `k` is about."""

    k: int
    category: Category
    subcategory: Subcategory
    item: str
    dimensions: tuple[Dimension, ...]  # in the taxonomy's order
    ways: tuple[Way, ...]  # one for each dimension

    @property
    def several(self) -> bool:
        """Whether a way makes more than one of the item."""
        return any(way.subject for way in self.ways)

    @property
    def id(self) -> str:
        slug = re.sub(r"\W+", "-", self.item.casefold()).strip("-")
        return f"{self.category.name}.{self.subcategory.name}.{slug}.{self.k}"


class Draws:
    """Draws of one taxonomy and seed, in any order."""

    def __init__(self, taxonomy: Taxonomy, seed: int) -> None:
        self._taxonomy = taxonomy
        self._seed = seed
        self._items = {
            category.name: {item: sub for sub in category.subcategories for item in sub.items}
            for category in taxonomy.categories
        }
        self._hundred = [category for category in taxonomy.categories for _ in range(category.share)]
        self._order = lru_cache(maxsize=64)(self._ordered)  # draws are mostly asked for one after the other
        self._block = lru_cache(maxsize=8)(self._shuffled)

    def draw(self, k: int) -> Draw:
        """Draw number `k`, from 0."""
        block, place = divmod(k, len(self._hundred))
        categories = self._block(block)
        category = categories[place]
        before = sum(other is category for other in categories[:place])
        items = self._items[category.name]
        turn, number = divmod(block * category.share + before, len(items))
        item = self._order(category.name, turn)[number]
        subcategory = items[item]
        dimensions, ways = self._ways(k, subcategory.kind)
        return Draw(k, category, subcategory, item, dimensions, ways)

    def _shuffled(self, block: int) -> list[Category]:
        return [self._hundred[slot] for slot in shuffled(range(len(self._hundred)), "category", self._seed, block)]

    def _ordered(self, category: str, turn: int) -> list[str]:
        return shuffled(self._items[category], "item", self._seed, category, turn)

    def _ways(self, k: int, kind: str) -> tuple[tuple[Dimension, ...], tuple[Way, ...]]:
        dimensions = self._taxonomy.dimensions
        many = 1 + int(unit("how many", self._seed, k) * MOST_DIMENSIONS)
        names = shuffled((dimension.name for dimension in dimensions), "dimensions", self._seed, k)[:many]
        chosen: dict[str, Way] = {}
        settled: set[str] = set()
        for dimension in sorted(dimensions, key=lambda dimension: _ORDER.index(dimension.name)):
            if dimension.name in names:
                ways = [way for way in dimension.ways if kind in way.fits and settled.isdisjoint(way.settles)]
                chosen[dimension.name] = pick(ways, "way", self._seed, k, dimension.name)
                settled.update(chosen[dimension.name].settles)
        drawn = tuple(dimension for dimension in dimensions if dimension.name in chosen)
        return drawn, tuple(chosen[dimension.name] for dimension in drawn)


def compose(draw: Draw, taxonomy: Taxonomy, seed: int) -> Prompt:
    """A plain prompt of the draw, and a rubric for each thing that was drawn: as many as there are, never padded."""
    drawn = sorted(zip(draw.dimensions, draw.ways, strict=True), key=lambda pair: _ORDER.index(pair[0].name))
    sentences = [article(draw.item)]
    rubrics: list[Rubric] = []
    for dimension, way in drawn:
        words = _words(draw) | _slots(draw, dimension, way, taxonomy, seed)
        if way.subject:
            sentences[0] = way.subject.format(**words)
        sentences.append(way.say.format(**words))
        rubrics += [Rubric(kind=dimension.name, text=check.format(**words)) for check in way.checks]
    rubrics = _at_most(_about_item(draw) + rubrics, MOST_RUBRICS)
    return Prompt(
        id=draw.id,
        prompt=" ".join(_sentence(text) for text in sentences if text),
        category=draw.category.name,
        subcategory=draw.subcategory.name,
        item=draw.item,
        dimensions=tuple(dimension.name for dimension in draw.dimensions),
        rubrics=(*rubrics, global_rubric()),
        sensitive=draw.subcategory.sensitive,
        writer=WRITER,
    )


def _about_item(draw: Draw) -> list[Rubric]:
    """Questions about the item alone, the coarse one first: a man with a hat may be drawn as a man without one."""
    item, short = draw.item, head(draw.item)
    if draw.several:
        return [Rubric(kind="item", text=f"Is each of the {plural(short)} clearly {article(item)}?")]
    rubrics = [Rubric(kind="item", text=f"Does the picture show {article(short)}?")]
    if quoted := QUOTED.findall(item):
        return rubrics + [Rubric(kind="text", text=f"Is {text} written letter by letter?") for text in quoted]
    return rubrics + [Rubric(kind="item", text=f"Is the {short} shown as {article(item)}?")] * (short != item)


def _at_most(rubrics: list[Rubric], most: int) -> list[Rubric]:
    """The first `most`; a second question about the item goes first."""
    items = [rubric for rubric in rubrics if rubric.kind == "item"]
    left = rubrics if len(rubrics) <= most else [rubric for rubric in rubrics if rubric not in items[1:]]
    return left[:most]


@cache
def global_rubric() -> Rubric:
    """The one question that is asked of every picture (paper section 2.4)."""
    return Rubric(kind="global", text=rubric_text("global").body)


def _words(draw: Draw) -> dict[str, str]:
    """What sentences may say of the item itself."""
    named = {"scene": "the scene", "layout": "the design"}.get(draw.subcategory.kind, f"the {head(draw.item)}")
    return {
        "the": f"one of the {plural(head(draw.item))}" if draw.several else named,
        "plural": plural(draw.item),
        "group": plural(head(draw.item)),
        "words": next(iter(QUOTED.findall(draw.item)), ""),
    }


def _slots(draw: Draw, dimension: Dimension, way: Way, taxonomy: Taxonomy, seed: int) -> dict[str, str]:
    """An entry for every slot of the way; `color` and `color2` are never the same."""
    text = "".join((way.say, way.subject, *way.checks))
    found: dict[str, str] = {}
    for name, table in taxonomy.slots.items():
        if draw.subcategory.kind in table and f"{{{name}" in text:
            entries = shuffled(table[draw.subcategory.kind], "slot", seed, draw.k, dimension.name, name)
            found |= zip((name, f"{name}2"), entries, strict=False)
    return found


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")
