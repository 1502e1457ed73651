"""Words for drawn scenes: a dense caption that says everything, and a brief one as a person would type it.

A dense caption is made of parts (`PARTS`), each of which can be left out: that is how the language model learns to
follow guideline sentences such as "Say the background." (`train.world.dialogues`). With all parts it has 40 to 110
words. Every sentence is true of the scene. Knows nothing about tokens or models.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from train.world.scenes import Background, Scene, Thing
from train.world.things import KINDS

PARTS = ("colour", "count", "size", "place", "detail", "background", "style")
NUMBERS = ("zero", "one", "two", "three", "four", "five")

_STYLE = {
    "flat": ("a flat illustration", "a simple flat drawing", "a clean flat picture"),
    "ink": ("a cartoon with bold dark outlines", "a drawing with thick ink outlines"),
    "shaded": ("a softly shaded drawing", "a picture with soft shading"),
    "paper": ("a paper cut-out picture", "a cut paper collage with white edges"),
    "chalk": ("a chalk drawing on a dark board", "a drawing with chalk outlines on a blackboard"),
}
_BARE_STYLE = ("a picture", "an image", "a drawing")
_NAMES = {"frame": "picture frame", "bubble": "round bubble"}
_DETAILS = {
    "frame": "with four straight sides and an open middle",
    "bubble": "with a thick round rim and an open middle",
    "sign": "standing on a wooden post with black letters on a white panel",
}
_RELATIONS = {
    "left of": ("to the left of", "on the left of", "left of"),
    "right of": ("to the right of", "on the right of", "right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
    "on top of": ("on top of",),
    "inside": ("inside",),
}
_INVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above", "on top of": "below"}
_SKIES = {
    "clear blue": "a clear blue sky",
    "cloudy": "a cloudy gray sky",
    "sunset": "an orange sunset sky",
    "starry night": "a starry night sky",
    "pink morning": "a pink morning sky",
}
_GROUNDS = {
    "meadow": "a green meadow with tufts of grass",
    "beach": "a sandy beach",
    "sea": "a calm blue sea with small waves",
    "snow": "a snowy field",
    "desert": "a sandy desert with dunes",
    "road": "a gray road with white dashes",
    "wooden floor": "a wooden floor",
    "table": "a brown table top",
}
_BRIEF_GROUNDS = {
    "meadow": ("in a meadow", "over a green meadow", "on the grass"),
    "beach": ("on a beach", "on the beach"),
    "sea": ("over the sea", "by the sea"),
    "snow": ("in the snow", "on a snowy field"),
    "desert": ("in the desert",),
    "road": ("on a road", "on a gray road"),
    "wooden floor": ("on a wooden floor", "in a room with a wooden floor"),
    "table": ("on a table",),
}
_BRIEF_SKIES = {
    "clear blue": ("under a blue sky", "under a clear blue sky"),
    "cloudy": ("under a cloudy sky", "on a cloudy day"),
    "sunset": ("at sunset", "under a sunset sky"),
    "starry night": ("under a starry sky", "at night", "under a starry night sky"),
    "pink morning": ("under a pink sky", "on a pink morning"),
}


_FILLERS = (
    "Nothing else is in the picture.",
    "The shapes are simple and easy to recognise.",
    "The colours are clear and even.",
    "The edges are clean and the picture is uncluttered.",
)


def style_name(style: str) -> str:
    """The first of the names that captions give to a style: "a paper cut-out picture"."""
    return _STYLE[style][0]


def article(noun: str) -> str:
    """`noun` with "a" or "an"."""
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def capital(sentence: str) -> str:
    return sentence[0].upper() + sentence[1:]


def kind_name(kind: str, n: int = 1) -> str:
    """Singular or plural of a thing's name."""
    if kind in KINDS:
        return kind if n == 1 else KINDS[kind].plural
    return _NAMES.get(kind, kind) + ("" if n == 1 else "s")


def phrase(thing: Thing, n: int, *, colour: bool, size: bool, count: bool = True) -> str:
    """ "three small red balloons", "a large blue car", 'a green sign that says "OPEN"'."""
    words = [thing.size] if size and thing.size != "medium" else []
    words += [thing.colour] if colour else []
    words.append(kind_name(thing.kind, n))
    text = " ".join(words)
    text = article(text) if n == 1 else f"{NUMBERS[n] if count else 'some'} {text}"
    return f'{text} that says "{thing.word}"' if thing.word else text


def place_of(thing: Thing, scene: Scene) -> str:
    """Where a thing's centre is, in words."""
    x, y = thing.x / scene.width, thing.y / scene.height
    column = "left" if x < 0.38 else "right" if x > 0.62 else ""
    row = "top" if y < 0.36 else "bottom" if y > 0.64 else ""
    if row and column:
        return f"in the {row} {column} corner"
    if column:
        return f"on the {column} side"
    return f"near the {row} of the picture" if row else "in the middle of the picture"


def _background(background: Background, rng: random.Random) -> str:
    if background.plain is not None:
        name = "dark gray, like a blackboard" if background.plain == "board" else background.plain
        return (
            rng.choice((f"The background is plain {name}.", f"Everything is set on a plain {name} background."))
            if (background.plain != "board")
            else f"The background is {name}."
        )
    ground = f"a round {background.tint} hill" if background.ground == "hill" else _GROUNDS[background.ground or ""]
    if background.sky in _SKIES:
        sky = _SKIES[background.sky]
        return rng.choice((
            f"The background shows {sky} over {ground}.",
            f"Behind, there is {sky} above {ground}.",
            f"Below lies {ground}, and {sky} fills the upper part.",
        ))  # fmt: skip
    return rng.choice((
        f"The background shows a {background.sky} wall and {ground}.",
        f"It is a room with a {background.sky} wall and {ground}.",
    ))  # fmt: skip


def _join(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def _size(thing: Thing) -> str:
    return "medium-sized" if thing.size == "medium" else thing.size


def _arrangement(scene: Scene) -> str:
    return {
        "row": "standing side by side in a row",
        "column": "stacked in a column",
        "two rows": "arranged in two rows",
        "scattered": "scattered about",
    }.get(scene.arrangement or "", "")


def _about(scene: Scene, group: tuple[int, int], rng: random.Random, parts: frozenset[str]) -> str:
    """One sentence about one group: its colour, size, look and place, as far as `parts` asks."""
    index, n = group
    thing = scene.things[index]
    name = kind_name(thing.kind, n)
    detail = KINDS[thing.kind].detail if thing.kind in KINDS else _DETAILS[thing.kind]
    subject = f"The {name}" if n == 1 else f"The {NUMBERS[n]} {name}" if "count" in parts else f"The {name}"
    verb = "is" if n == 1 else "are"
    facts: list[str] = []
    if "colour" in parts and "size" in parts:
        facts.append(f"{verb} {_size(thing)} and {thing.colour}")
    elif "colour" in parts:
        facts.append(f"{verb} {thing.colour}")
    elif "size" in parts:
        facts.append(f"{verb} {_size(thing)}")
    if "detail" in parts:
        facts.append(detail if n == 1 else f"each {detail}")
    if "place" in parts:
        where = place_of(thing, scene) if n == 1 else _arrangement(scene)
        if where:
            stand = rng.choice(("it is", "it sits", "placed")) if n == 1 else ""
            facts.append(f"{stand} {where}".strip() if stand != "placed" else f"placed {where}")
    if not facts:
        return ""
    if not facts[0].startswith(verb):
        facts[0] = f"{verb} drawn {facts[0]}"
    return capital(f"{subject} {_join_facts(facts)}.")


def _join_facts(facts: list[str]) -> str:
    return (
        ", ".join(facts[:-1]) + (", and " if facts[-1].startswith("it ") else ", ") + facts[-1]
        if len(facts) > 1
        else facts[0]
    )


def _opening(scene: Scene, rng: random.Random, parts: frozenset[str]) -> str:
    return rng.choice(_STYLE[scene.style] if "style" in parts else _BARE_STYLE)


def _first(opening: str, content: str, rng: random.Random) -> str:
    return capital(rng.choice((f"{opening} of {content}.", f"{opening} showing {content}.")))


def dense(scene: Scene, rng: random.Random, parts: frozenset[str] = frozenset(PARTS)) -> str:
    """A caption that says everything `parts` names; with all of them 40 to 110 words."""
    opening = _opening(scene, rng, parts)
    colour, count = "colour" in parts, "count" in parts
    heads = [phrase(scene.things[i], n, colour=colour, size="size" in parts, count=count) for i, n in scene.groups]
    if scene.relation is not None and "place" in parts:
        content = f"{heads[0]} {rng.choice(_RELATIONS[scene.relation])} {heads[1]}"
    else:
        content = _join(heads)
    first = _first(opening, content, rng)
    body = [_about(scene, group, rng, parts) for group in scene.groups]
    if scene.relation in _INVERSE and "place" in parts:
        a, b = (kind_name(scene.things[i].kind, n) for i, n in scene.groups[:2])
        verb = "is" if scene.groups[1][1] == 1 else "are"
        body.append(f"The {b} {verb} {rng.choice(_RELATIONS[_INVERSE[scene.relation]])} the {a}.")
    if count and len(scene.groups) == 1 and scene.groups[0][1] > 1:
        i, n = scene.groups[0]
        body.append(f"There are exactly {NUMBERS[n]} {kind_name(scene.things[i].kind, n)}.")
    sentences = [first, *(s for s in body if s)]
    if "background" in parts:
        sentences.insert(rng.choice((1, len(sentences))), _background(scene.background, rng))
    if parts == frozenset(PARTS):
        fillers = list(_FILLERS)
        rng.shuffle(fillers)
        while sum(len(s.split()) for s in sentences) < 40:
            sentences.append(fillers.pop())
    return " ".join(sentences)


def around(content: str, scene: Scene, rng: random.Random, parts: frozenset[str]) -> str:
    """`content` as it is, in the style and before the background of `scene` where `parts` asks for them."""
    opening = _opening(scene, rng, parts)
    first = _first(opening, content, rng)
    return f"{first} {_background(scene.background, rng)}" if "background" in parts else first


@dataclass(frozen=True)
class Stating:
    """How often a brief caption states what it might leave open."""

    colour: float = 0.82
    place: float = 0.8  # of two things to each other; of one inside another always
    # Of two things, and of several of one kind, what is not `usual` is always stated (of three things, and of a group
    # beside another thing, it is not); two things whose places are not stated are named from left to right. A small
    # model that must choose between arrangements mixes them: asked for "a cat and a moon", one that had seen them on
    # every side of each other drew two things that were half of each.
    orderly: bool = False


USUALLY = Stating()


def usual(scene: Scene) -> bool:
    """Whether things stand as one expects who reads of them: two side by side, several of a kind in a row, or in two
    rows where one would make them specks.
    """
    return scene.relation in (None, "left of", "right of") and scene.arrangement in (None, "row", "two rows")


def brief(scene: Scene, rng: random.Random) -> str:
    """What a person would type: a few words, often without colour, size or background."""
    return brief_stating(scene, rng)[0]


def brief_stating(scene: Scene, rng: random.Random, often: Stating = USUALLY) -> tuple[str, frozenset[str]]:
    """A brief caption and the parts it states, which a rewrite must keep."""
    stated = {"count"}
    if rng.random() < often.colour:
        stated.add("colour")
    if rng.random() < 0.2:
        stated.add("size")
    heads = [phrase(scene.things[i], n, colour="colour" in stated, size="size" in stated) for i, n in scene.groups]
    named = scene.relation == "inside" or (often.orderly and not usual(scene))
    if scene.relation is not None and (named or rng.random() < often.place):
        text = f"{heads[0]} {rng.choice(_RELATIONS[scene.relation])} {heads[1]}"
        stated.add("place")
    else:
        text = _join(heads[::-1] if often.orderly and scene.relation == "right of" else heads)
    if named and scene.arrangement is not None and len(scene.groups) == 1:
        text += " " + _arrangement(scene)
        stated.add("place")
    if rng.random() < 0.45:
        text += " " + _brief_background(scene.background, rng)
        stated.add("background")
    if rng.random() < 0.12:
        text = f"{rng.choice(_STYLE[scene.style])} of {text}"
        stated.add("style")
    return text, frozenset(stated)


def _brief_background(background: Background, rng: random.Random) -> str:
    if background.plain == "board":
        return "on a blackboard"
    if background.plain is not None:
        return f"on a {background.plain} background"
    if background.ground == "hill":
        ground = rng.choice((f"over a {background.tint} hill", f"on a {background.tint} hill"))
    else:
        ground = rng.choice(_BRIEF_GROUNDS[background.ground or ""])
    if background.sky not in _SKIES:
        return ground
    sky = rng.choice(_BRIEF_SKIES[background.sky])
    return rng.choices((ground, sky, f"{ground} {sky}"), (6, 3, 2))[0]
