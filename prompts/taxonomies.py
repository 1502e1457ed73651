"""The taxonomy of pictures: ten categories down to their items, five dimensions of description down to ways of asking.

The categories and dimensions are those of the paper's section 2.4; everything below them is our own writing. It lies
in `taxonomy/` as TOML and is useful without any model: `train/rl/prompts` makes prompts and rubrics of it.

Light ring: standard library only.
"""

from __future__ import annotations

import itertools
import string
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from prompts import FOLDER, PromptError

KINDS = ("person", "creature", "thing", "plant", "food", "scene", "words", "layout")  # of items, for grammar and ways
_ITEM_SLOTS = ("the", "plural", "group", "words")  # what a way's sentence may say of the item itself


@dataclass(frozen=True, kw_only=True)
class Subcategory:
    """Items of one sort: `human / crafts`."""

    name: str
    title: str  # "Crafts and trades"
    kind: str  # a name in KINDS
    sensitive: bool  # its share of a training epoch is held even: medicine, faith, protest, …
    items: tuple[str, ...]  # countable, in the singular, without an article: "fox in snow"; a scene or a layout too


@dataclass(frozen=True, kw_only=True)
class Category:
    """One of the ten sorts of picture of the paper's section 2.4."""

    name: str
    title: str  # as the paper writes it
    share: int  # of a hundred prompts
    subcategories: tuple[Subcategory, ...]


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way of asking for a dimension. The texts hold slots in braces: see taxonomy/dimensions.toml."""

    ask: str  # what a writer model is told
    fits: tuple[str, ...]  # names in KINDS
    settles: tuple[str, ...]  # two ways that settle the same are never in one prompt
    subject: str  # in place of the item, where the way says how many there are; empty: the item itself
    say: str  # the sentence of the offline grammar; may be empty where `subject` says all
    checks: tuple[str, ...]  # questions about the picture


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """One of the five dimensions of a description (paper section 2.4)."""

    name: str
    title: str
    meaning: str
    ways: tuple[Way, ...]


@dataclass(frozen=True, kw_only=True)
class Taxonomy:
    """What pictures are asked for: ten categories down to their items, five dimensions down to their ways."""

    categories: tuple[Category, ...]
    dimensions: tuple[Dimension, ...]
    slots: Mapping[str, Mapping[str, tuple[str, ...]]]  # slot -> kind -> what may stand there
    share_source: str  # where the shares come from
    shares_read_from_the_paper: bool
    prompts: int  # in Lens-RL-8K

    def leaves(self) -> Iterator[tuple[Category, Subcategory]]:
        """Every sub-category with its category, in the order of the files."""
        for category in self.categories:
            for subcategory in category.subcategories:
                yield category, subcategory


def load_taxonomy(folder: Path = FOLDER / "taxonomy") -> Taxonomy:
    """The taxonomy in `folder`: shares.toml, dimensions.toml, and a file for each category that has a share.

    Raises PromptError, which names the file and the entry: a file that is missing or no TOML, an unknown key, kind or
    slot, a text that is empty, an item that is there twice, shares that do not make a hundred.
    """
    shares = _toml(folder / "shares.toml")
    table: dict[str, int] = _field(shares, "shares", dict, "shares.toml")
    if sum(table.values()) != 100:
        raise PromptError(f"shares.toml: the shares make {sum(table.values())}", hint="they are parts of a hundred")
    categories = tuple(_category(folder / f"{name}.toml", share) for name, share in table.items())
    _refuse_repeats(categories)
    dimensions = _toml(folder / "dimensions.toml")
    groups: dict[str, list[str]] = _field(dimensions, "groups", dict, "dimensions.toml")
    slots = {name: _slot(name, value) for name, value in _field(dimensions, "slots", dict, "dimensions.toml").items()}
    return Taxonomy(
        categories=categories,
        dimensions=tuple(
            _dimension(name, table, groups, slots)
            for name, table in dimensions.items()
            if name not in ("groups", "slots")
        ),
        slots=slots,
        share_source=_field(shares, "source", str, "shares.toml"),
        shares_read_from_the_paper=_field(shares, "read_from_the_paper", bool, "shares.toml"),
        prompts=_field(shares, "prompts", int, "shares.toml"),
    )


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise PromptError(f"cannot read {path}: {reason}", hint="a taxonomy is a folder of TOML files") from error
    except ValueError as error:  # TOMLDecodeError and UnicodeDecodeError are both one
        raise PromptError(f"{path} is no TOML: {error}", hint="mend the line that it names") from error


def _field(table: dict[str, Any], key: str, kind: type, where: str, default: Any = None) -> Any:
    """`table[key]`, which must be a `kind` and, where it is a text or a list, not empty."""
    value = table.get(key, default)
    if type(value) is not kind or (value in ("", [], {}) and value != default):
        raise PromptError(f"{where}: {key} is {value!r}", hint=f"it has to be a {kind.__name__} and not empty")
    return value


def _texts(table: dict[str, Any], key: str, where: str, default: Any = None) -> tuple[str, ...]:
    found = cast("list[Any]", _field(table, key, list, where, default))
    if bad := [text for text in found if not isinstance(text, str) or text != " ".join(text.split()) or not text]:
        raise PromptError(f"{where}: {key} holds {bad[0]!r}", hint="texts with single blanks between their words")
    return tuple(found)


def _only(table: dict[str, Any], known: str, where: str) -> None:
    if unknown := sorted(set(table) - set(known.split())):
        raise PromptError(f"{where}: unknown key {unknown[0]!r}", hint=f"known: {', '.join(known.split())}")


def _category(path: Path, share: int) -> Category:
    table = _toml(path)
    _only(table, "title kind subcategories", path.name)
    found: list[Subcategory] = []
    for name, sub in _field(table, "subcategories", dict, path.name).items():
        where = f"{path.name}, {name}"
        _only(sub, "title kind sensitive items", where)
        kind = _field(sub, "kind", str, where, table.get("kind"))
        if kind not in KINDS:
            raise PromptError(f"{where}: unknown kind {kind!r}", hint=f"known: {', '.join(KINDS)}")
        found.append(
            Subcategory(
                name=name,
                title=_field(sub, "title", str, where),
                kind=kind,
                sensitive=_field(sub, "sensitive", bool, where, False),
                items=_texts(sub, "items", where),
            )
        )
    title = _field(table, "title", str, path.name)
    return Category(name=path.stem, title=title, share=share, subcategories=tuple(found))


def _refuse_repeats(categories: tuple[Category, ...]) -> None:
    seen: dict[str, str] = {}
    for category in categories:
        for subcategory in category.subcategories:
            for item in subcategory.items:
                here = f"{category.name}.toml, {subcategory.name}"
                if there := seen.get(item.casefold()):
                    raise PromptError(f"{here}: {item!r} is in {there} as well", hint="an item stands in one place")
                seen[item.casefold()] = here


def _slot(name: str, value: Any) -> dict[str, tuple[str, ...]]:
    """Kind -> entries. A plain list is for every kind."""
    table = cast("dict[str, Any]", value if isinstance(value, dict) else dict.fromkeys(KINDS, value))
    return {kind: _texts(table, kind, f"dimensions.toml, slots.{name}") for kind in table}


def _dimension(name: str, table: dict[str, Any], groups: dict[str, list[str]], slots: Mapping[str, Any]) -> Dimension:
    where = f"dimensions.toml, {name}"
    _only(table, "title meaning ways", where)
    ways: list[Way] = []
    for number, way in enumerate(cast("list[dict[str, Any]]", _field(table, "ways", list, where)), start=1):
        here = f"{where}, way {number}"
        _only(way, "ask fits settles subject say checks", here)
        fits = tuple(itertools.chain(*(groups.get(kind, [kind]) for kind in _texts(way, "fits", here))))
        found = Way(
            ask=_field(way, "ask", str, here),
            fits=fits,
            settles=_texts(way, "settles", here, []),
            subject=_field(way, "subject", str, here, ""),
            say=_field(way, "say", str, here, ""),
            checks=_texts(way, "checks", here),
        )
        if unknown := [kind for kind in fits if kind not in KINDS]:
            raise PromptError(f"{here}: unknown kind {unknown[0]!r}", hint=f"known: {', '.join(KINDS)}")
        for text, kind in itertools.product((found.subject, found.say, *found.checks), fits):
            for _, slot, _, _ in string.Formatter().parse(text):
                if slot is not None and slot not in _ITEM_SLOTS and kind not in slots.get(slot.rstrip("2"), ()):
                    raise PromptError(f"{here}: there is no slot {slot!r} for a {kind}", hint=f"in {text!r}")
        ways.append(found)
    title, meaning = _field(table, "title", str, where), _field(table, "meaning", str, where)
    return Dimension(name=name, title=title, meaning=meaning, ways=tuple(ways))
