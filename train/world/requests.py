"""Requests that need a reasoner, and what a rewrite of each must be under any choice of guideline sentences.

A request says a scene in words that the transformer never read: other names ("a kitten"), shades, other languages,
sums, digits, misspelt words, talk. Each of these is a twist, and one sentence of `prompts/guidelines.toml` undoes it
(`UNDONE_BY`); others add to the prompt what a request leaves open. `rewritten` is exact: it is what a reasoner is
trained towards, and what its answers are compared with. All that is undone ends in the words of the transformer's own
brief captions.
"""

from __future__ import annotations

import random
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace

from train.world.lexicon import ENTRIES, FOREIGN_AND, FOREIGN_SIDES, LANGUAGES, TONES, foreign_phrase
from train.world.scene_text import NUMBERS, article, capital, kind_name
from train.world.scenes import COLOURS, WORDS, Background, Scene, sample_scene
from train.world.things import KINDS

# What a request may be said in -> the guideline that undoes it.
UNDONE_BY = {
    "name": "usual",
    "language": "english",
    "misspelt": "spelling",
    "digit": "count",
    "sum": "sum",
    "shade": "tone",
    "way": "side",
    "talk": "visible",
    "letters": "letters",
}
# Guidelines that add to a prompt. `short` suppresses them all.
ADDING = ("colour", "side", "place", "size", "detail", "background", "weather", "style", "praise", "extra")
SIDES = {"left of": "to the left of", "right of": "to the right of", "above": "above", "below": "below"}
_OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
WAYS = {
    "left of": ("west of", "on the left-hand side of", "standing left from"),
    "right of": ("east of", "on the right-hand side of", "standing right from"),
    "above": ("hovering over", "north of", "higher than", "up above"),
    "below": ("beneath", "underneath", "south of", "lower than"),
}
_WITH = {  # of the second thing, whose side it is
    "left of": "to its left",
    "right of": "to its right",
    "above": "above it",
    "below": "below it",
}
_TALK = (
    "{}, masterpiece, best quality", "{}, 8k, highly detailed", "{}, award-winning", "{}, trending",
    "{} for my daughter", "{} as I dreamt it", "{}, my favourite thing", "my grandmother's wish: {}", "{}, very nice",
    "{}, ultra HD",
    "lovely and cosy, {}", "{} which I saw last week", "{}, no idea why", "for my birthday {}",
)  # fmt: skip
WRITTEN = ("saying {}", "reading {}", "with the word {}", "that reads {}", "with {} on it", "labelled {}")
_WRAPPERS = (
    "{}", "{}", "{}", "{}", "{}", "{}", "{}.", "draw {}", "please draw {}", "make a picture of {}", "I want {}",
    "show me {}", "a picture of {}", "can you draw {}?", "a photo of {}", "an image of {}", "paint {}", "{} please",
    "a picture that shows {}", "a drawing with {}", "an image with {}", "I would like to see {}", "create {}",
    "a picture showing {}", "picture of {}",
)  # fmt: skip
_CLASH = {  # a second thing whose usual colour the first one has
    "red": "blue", "yellow": "purple", "green": "orange", "blue": "red", "gray": "red", "orange": "blue",
    "purple": "yellow", "pink": "green", "brown": "blue", "turquoise": "red", "black": "yellow", "white": "blue",
}  # fmt: skip
_GROUNDS = {  # phrases that brief captions use
    "meadow": "in a meadow", "beach": "on a beach", "sea": "over the sea", "snow": "in the snow",
    "desert": "in the desert", "road": "on a road", "wooden floor": "on a wooden floor", "table": "on a table",
}  # fmt: skip
STYLE = "a flat illustration"


@dataclass(frozen=True, kw_only=True)
class Said:
    """Equal things as a request says them."""

    kind: str
    n: int
    colour: str | None  # None: unsaid
    size: str  # "" where unsaid: small or large
    word: str | None = None  # on a sign
    name: tuple[str, str] | None = None  # twist: another name, singular and plural
    young: bool = False  # that name means a small one
    shade: str | None = None  # twist
    number: str | None = None  # twist: "3", "a pair of", or the parts of a sum, "two and one"
    summed: bool = False  # `number` is a sum
    written: str | None = None  # twist: how a sign's word is said, "saying {}"


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a request is about, and the ways in which it is said."""

    groups: tuple[Said, ...]
    relation: str | None = None  # of the first group to the second, a name in SIDES; None: unsaid
    way: str | None = None  # twist: how the relation is said
    background: str = ""  # as brief captions say it; "": unsaid
    language: str = "en"
    misspelt: tuple[str, str] | None = None  # twist: a word and what was typed for it
    talk: str = "{}"  # twist

    @property
    def twists(self) -> frozenset[str]:
        """Names in UNDONE_BY."""
        found = {
            "language": self.language != "en",
            "misspelt": self.misspelt is not None,
            "way": self.way is not None,
            "talk": self.talk != "{}",
        }
        for group in self.groups:
            for name, there in (
                ("name", group.name), ("shade", group.shade), ("digit", group.number and not group.summed),
                ("sum", group.summed), ("letters", group.written),
            ):  # fmt: skip
                found[name] = found.get(name, False) or bool(there)
        return frozenset(name for name, there in found.items() if there)


# ------------------------------------------------------------------------------------------------------------ wording


def text(request: Request) -> str:
    """The request in words, with all of its twists."""
    return request.talk.format(_foreign(request) if request.language != "en" else _spelt(_english(request), request))


def rewritten(request: Request, guidelines: AbstractSet[str]) -> str:
    """The prompt that a rewrite under these guidelines (ids) is: undone is what they undo, added what they add.

    A request in another language is only translated (`english`), and kept as it is without that sentence.
    """
    if request.language != "en" and "english" not in guidelines:
        return text(request)
    plain = replace(request, language="en")
    if "visible" in guidelines:
        plain = replace(plain, talk="{}")
    if "spelling" in guidelines:
        plain = replace(plain, misspelt=None)
    if "side" in guidelines:
        plain = replace(plain, way=None)
    plain = replace(plain, groups=tuple(_undone(group, guidelines) for group in plain.groups))
    if "short" not in guidelines:
        plain = _completed(plain, guidelines)
    prompt = _spelt(_english(plain), plain)
    if "short" in guidelines:
        return plain.talk.format(prompt)
    if "style" in guidelines:
        prompt = f"{STYLE} of {prompt}"
    prompt = plain.talk.format(prompt)
    sentences = _sentences(plain, guidelines)
    return " ".join([f"{capital(prompt)}.", *sentences]) if sentences else prompt


def _undone(group: Said, guidelines: AbstractSet[str]) -> Said:
    if "usual" in guidelines and group.name is not None:
        group = replace(group, name=None, size=group.size or ("small" if group.young else ""), young=False)
    if "tone" in guidelines:
        group = replace(group, shade=None)
    if ("sum" if group.summed else "count") in guidelines:
        group = replace(group, number=None, summed=False)
    return replace(group, written=None) if "letters" in guidelines else group


def _completed(request: Request, guidelines: AbstractSet[str]) -> Request:
    """What was left open and belongs in the sentence itself."""
    groups = list(request.groups)
    if "colour" in guidelines:
        taken = {group.colour for group in groups}
        for i, group in enumerate(groups):
            if group.colour is None:
                colour = usual_colour(group.kind)
                colour = _CLASH[colour] if colour in taken else colour
                groups[i] = replace(group, colour=colour)
                taken.add(colour)
    if "size" in guidelines:
        groups = [replace(g, size=g.size or ("small" if i else "large")) for i, g in enumerate(groups)]
    relation = request.relation
    if "side" in guidelines and len(groups) == 2:
        relation = relation or "left of"
    background = request.background
    if "background" in guidelines and not background:
        pale = {"white", "yellow", "orange"} & {group.colour for group in groups}
        background = "on a pale blue background" if pale else "on a cream background"
    return replace(request, groups=tuple(groups), relation=relation, background=background)


def usual_colour(kind: str) -> str:
    return ENTRIES[kind].colour if kind in ENTRIES else "green"


def _sentences(request: Request, guidelines: AbstractSet[str]) -> list[str]:
    names = [_name(group) for group in request.groups]
    found: list[str] = []
    if "place" in guidelines:
        if len(names) == 2:
            relation = request.relation or "left of"
            for name, group, side in zip(names, request.groups, (relation, _OPPOSITE[relation]), strict=True):
                found.append(f"The {name} {'is' if group.n == 1 else 'are'} {_PLACES[side]}.")
        elif len(names) == 1 and request.groups[0].n == 1:
            found.append(f"The {names[0]} is in the middle of the picture.")
        else:
            found.append("They are standing side by side in a row.")
    if "detail" in guidelines:
        for name, group in zip(names, request.groups, strict=True):
            detail = KINDS[group.kind].detail if group.kind in KINDS else "standing on a wooden post"
            found.append(f"The {name} is drawn {detail}." if group.n == 1 else f"The {name} are drawn each {detail}.")
    if "weather" in guidelines:
        found.append("The weather is calm and mild.")
    if "praise" in guidelines:
        found.append("It is a beautiful picture.")
    if "extra" in guidelines:
        star = any(group.kind == "star" for group in request.groups)
        found.append(f"Beside it there is a {'red ball' if star else 'yellow star'}.")
    return found


_PLACES = {
    "left of": "on the left side", "right of": "on the right side", "above": "near the top of the picture",
    "below": "near the bottom of the picture",
}  # fmt: skip


def _name(group: Said) -> str:
    one, many = group.name or (kind_name(group.kind), kind_name(group.kind, 2))
    return one if group.n == 1 else many


def _phrase(group: Said) -> str:
    words = [group.size] if group.size else []
    if group.shade or group.colour:
        words.append(group.shade or group.colour or "")
    words.append(_name(group))
    said = " ".join(words)
    said = article(said) if group.n == 1 else f"{group.number or NUMBERS[group.n]} {said}"
    if group.word is None:
        return said
    return f"{said} " + (group.written.format(group.word) if group.written else f'that says "{group.word}"')


def _english(request: Request) -> str:
    heads = [_phrase(group) for group in request.groups]
    if request.relation is not None and request.way == "with":
        said = f"{heads[0]} with {heads[1]} {_WITH[_OPPOSITE[request.relation]]}"
    elif request.relation is not None:
        said = f"{heads[0]} {request.way or SIDES[request.relation]} {heads[1]}"
    else:
        said = heads[0] if len(heads) == 1 else ", ".join(heads[:-1]) + " and " + heads[-1]
    return f"{said} {request.background}".strip()


def _spelt(said: str, request: Request) -> str:
    return said.replace(*request.misspelt, 1) if request.misspelt is not None else said


def _foreign(request: Request) -> str:
    language = request.language
    dative = language == "de" and request.relation is not None
    heads = [
        foreign_phrase(group.kind, group.n, group.colour, language, dative=dative and i == 1)
        for i, group in enumerate(request.groups)
    ]
    if request.relation is None:
        return heads[0] if len(heads) == 1 else ", ".join(heads[:-1]) + f" {FOREIGN_AND[language]} {heads[-1]}"
    side = FOREIGN_SIDES[language][request.relation]
    if language == "fr" and not heads[1].startswith("un"):
        side = side.removesuffix("'") + "e "
    return f"{heads[0]} {side}{'' if side.endswith((' ', chr(39))) else ' '}{heads[1]}"


def wrap(said: str, rng: random.Random) -> str:
    """`said` as people phrase requests: "draw …", "please", a capital, a full stop."""
    out = rng.choice(_WRAPPERS).format(said)
    return capital(out) if rng.random() < 0.25 else out


# ----------------------------------------------------------------------------------------------------------- sampling


def sample_request(rng: random.Random, *, held_out: bool | None = False) -> Request:
    """A request about one of the drawn scenes, with up to three twists."""
    while True:
        scene = sample_scene(rng, layouts=LAYOUTS, weights=WEIGHTS, held_out=held_out)
        if scene.relation in (None, *SIDES):
            return twisted(plain_request(scene, rng), rng)


LAYOUTS = ("single", "pair", "trio", "count", "count_and_one", "sign")
WEIGHTS = (0.24, 0.34, 0.06, 0.2, 0.08, 0.08)


def plain_request(scene: Scene, rng: random.Random) -> Request:
    """A scene as a request in the transformer's own words, some of it left open."""
    coloured, sized = rng.random() < 0.6, rng.random() < 0.15
    groups = []
    for index, n in scene.groups:
        thing = scene.things[index]
        groups.append(
            Said(
                kind=thing.kind,
                n=n,
                colour=thing.colour if coloured else None,
                size=thing.size if sized and thing.size != "medium" and thing.word is None else "",
                word=thing.word,
            )
        )
    related = scene.relation in SIDES and len(groups) == 2 and rng.random() < 0.6
    background = _background(scene.background, rng) if rng.random() < 0.15 else ""
    return Request(groups=tuple(groups), relation=scene.relation if related else None, background=background)


def _background(background: Background, rng: random.Random) -> str:
    if background.plain is not None:
        return "on a blackboard" if background.plain == "board" else f"on a {background.plain} background"
    return _GROUNDS.get(background.ground or "", f"on a {background.tint} hill")


def twisted(request: Request, rng: random.Random, chance: float = 0.8) -> Request:
    """The request in words that need a reasoner, with probability `chance`."""
    if rng.random() > chance:
        return request
    sign = any(group.word for group in request.groups)
    if not sign and rng.random() < 0.3:
        groups = tuple(replace(group, size="") for group in request.groups)
        return replace(request, groups=groups, background="", language=rng.choice(LANGUAGES))
    if rng.random() < 0.12:
        return misspell(request, rng)
    groups = tuple(_said_otherwise(group, rng) for group in request.groups)
    request = replace(request, groups=groups)
    if request.relation is not None and rng.random() < 0.5:
        request = replace(request, way=rng.choice(("with", *WAYS[request.relation])))
    return replace(request, talk=talk_of(rng)) if rng.random() < 0.12 else request


def talk_of(rng: random.Random) -> str:
    """What people write around a request though nobody can draw it, with {} for the request."""
    return rng.choice(_TALK)


def _said_otherwise(group: Said, rng: random.Random) -> Said:
    if group.word is not None:
        written = rng.choice(WRITTEN) if rng.random() < 0.6 else None
        return replace(group, written=written)
    if rng.random() < 0.6:
        group = other_name(group, rng)
    if group.colour is not None and rng.random() < 0.4:
        group = replace(group, shade=rng.choice(TONES[group.colour]))
    if group.n > 1 and rng.random() < 0.6:
        group = other_number(group, rng)
    return group


def other_name(group: Said, rng: random.Random) -> Said:
    """One of the kind's other names; the name of a small one only where no size is said."""
    entry = ENTRIES[group.kind]
    if entry.young is not None and not group.size and (rng.random() < 0.4 or not entry.other):
        return replace(group, name=entry.young, young=True)
    return replace(group, name=rng.choice(entry.other)) if entry.other else group


def other_number(group: Said, rng: random.Random, *, summed: bool | None = None) -> Said:
    """Two to five of a kind in digits, as a pair, or as a sum; `summed` None: either."""
    n = group.n
    if rng.random() < 0.45 if summed is None else summed:
        a = rng.randint(1, n - 1)
        plus = rng.choice(("{} and {}", "{} plus {}", "{} + {}"))
        words = (str(a), str(n - a)) if "+" in plus else (NUMBERS[a], NUMBERS[n - a])
        return replace(group, number=plus.format(*words), summed=True)
    pairs = {2: ("a pair of", "a couple of"), 3: ("a trio of",), 4: ("a quartet of",), 5: ("a handful of",)}
    return replace(group, number=str(n) if rng.random() < 0.55 else rng.choice(pairs[n]))


def misspell(request: Request, rng: random.Random) -> Request:
    """One word of a plain request with a letter lost, doubled or swapped."""
    words = [word for word in _english(request).split() if len(word) >= 5 and word.isalpha() and word.islower()]
    words = [word for word in words if word in _SPELT]
    if not words:
        return request
    word = rng.choice(words)
    at = rng.randrange(1, len(word) - 1)
    typed = rng.choice((word[:at] + word[at + 1 :], word[:at] + word[at] + word[at:],
                        word[:at] + word[at + 1] + word[at] + word[at + 2 :]))  # fmt: skip
    return request if typed == word else replace(request, misspelt=(word, typed))


_SPELT = {
    word
    for kind in KINDS
    for n in (1, 2)
    for word in kind_name(kind, n).split()
} | set(COLOURS) | set(NUMBERS)  # fmt: skip
SIGN_WORDS = WORDS
