"""The prompts of `lens eval nano`: the six kinds of GenEval and words on signs, 50 of each, frozen.

Made by code from a fixed seed, and kept in `nano_prompts.jsonl`, since making them takes a core 2.3 seconds; a test
pins the hash of all of them, and another that the file is what the code makes. No prompt is a training caption, word
for word:

* A brief wording opens with "a picture with", as does the dense wording of a single thing. `scene_text` opens a
  caption with a style and then "of" or "showing", or with the things themselves; the one style that begins so goes on
  with "soft shading".
* What holds two things or more comes from scenes for which `scenes.is_held_out` is true, which training never draws,
  and their dense wording is that scene's dense caption.

How new that is differs. What is held out is a combination with its colours, so only color_attr asks for what was never
drawn; half of the words are not among the trained ones. Two things, positions and counts name no colours: training has
drawn those kinds together in other colours, and names single things and colours alike after its own openings.

As in GenEval, single_object, two_object, counting and position name kinds and check kinds; colours and color_attr
name colours and check them. The dense wording always names colours, and what is checked stays the same.
"""

from __future__ import annotations

import functools
import hashlib
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from train.evals.verifier.verify import Expectation, Wanted
from train.world import scene_text
from train.world.scenes import COLOURS, WORDS, Background, Scene, sample_scene
from train.world.things import KINDS

PROMPT_KINDS = ("single_object", "two_object", "counting", "colors", "position", "color_attr", "text")
PER_KIND = 50
OPENING = "a picture with"
# No word of WORDS among them; each fits a sign (up to five letters are drawn in training).
OTHER_WORDS = (
    "BLUE TREE KITE LION BEAR FROG SHIP GOLD WIND SNOW FIRE LAKE ROAD ROSE WOLF CRAB "
    "QUIZ JAZZ VOTE MENU BANK TOUR WASH HERO OPERA"
).split()
# Of 13, 11, 18 and 12 kinds in twos, threes, fours and fives training leaves out a colour or two. Each is asked once.
_COUNTS = (2,) * 12 + (3,) * 11 + (4,) * 15 + (5,) * 12
_SEED = "lens eval nano 1"
_FILE = Path(__file__).with_name("nano_prompts.jsonl")
_RELATIONS = {"left of": "to the left of", "right of": "to the right of", "above": "above", "below": "below"}


@dataclass(frozen=True, kw_only=True)
class NanoPrompt:
    """One prompt in two wordings, and what a picture of it must hold."""

    id: str  # "counting-07"
    kind: str  # a name in PROMPT_KINDS
    number: int  # position among all prompts, from 0
    brief: str
    dense: str  # 40 to 110 words
    expectation: Expectation

    def wording(self, name: str) -> str:
        """`brief` or `dense`. Raises ValueError for another name."""
        if name not in ("brief", "dense"):
            raise ValueError(f"a prompt has a brief and a dense wording, not {name!r}")
        return self.brief if name == "brief" else self.dense


@dataclass(frozen=True, kw_only=True)
class Made:
    """A prompt and the scene it was made from."""

    prompt: NanoPrompt
    scene: Scene


def pale(scene: Scene) -> bool:
    """Whether something white stands before something nearly white, where nobody could tell."""
    b: Background = scene.background
    bright = b.plain not in (None, "board") or b.sky == "cloudy" or b.ground == "snow" or b.tint == "white"
    return bright and any(t.colour == "white" for t in scene.things)


def _scene(rng: random.Random, layout: str, fits: Callable[[Scene], bool]) -> Scene:
    """The first drawn scene of a layout that fits; held out where it has more than one thing."""
    single = layout in ("single", "sign")
    while True:
        scene = sample_scene(rng, layouts=(layout,), weights=(1.0,), held_out=False if single else True)
        if not pale(scene) and fits(scene):
            return scene


def _own_opening(scene: Scene, caption: str, rng: random.Random) -> str:
    """A dense caption with its first sentence said in words that no training caption uses."""
    style = rng.choice(("flat and simple", "with clean flat shapes")) if scene.style == "flat" else _STYLES[scene.style]
    head = scene_text.phrase(scene.things[0], 1, colour=True, size=True)
    return f"{scene_text.capital(OPENING)} {head} in it, {style}. " + caption.split(". ", 1)[1]


_STYLES = {
    "ink": "drawn with bold dark outlines",
    "shaded": "drawn with soft shading",
    "paper": "made of cut paper with white edges",
    "chalk": "drawn in chalk on a dark board",
}


def _named(scene: Scene, group: int) -> str:
    index, n = scene.groups[group]
    return scene_text.phrase(replace(scene.things[index], colour="", word=None), n, colour=False, size=False)


def _coloured(scene: Scene, group: int) -> str:
    index, n = scene.groups[group]
    return scene_text.phrase(scene.things[index], n, colour=True, size=False)


def _single_object(rng: random.Random, i: int) -> tuple[Scene, str, Expectation]:
    kind = list(KINDS)[i % len(KINDS)]
    scene = _scene(rng, "single", lambda s: s.things[0].kind == kind)
    return scene, _named(scene, 0), Expectation(things=(Wanted(kind=kind),))


def _colors(rng: random.Random, i: int) -> tuple[Scene, str, Expectation]:
    colour = list(COLOURS)[i % len(COLOURS)]
    scene = _scene(rng, "single", lambda s: s.things[0].colour == colour)
    return scene, _coloured(scene, 0), Expectation(things=(Wanted(kind=scene.things[0].kind, colour=colour),))


def _two_object(rng: random.Random, i: int) -> tuple[Scene, str, Expectation]:
    scene = replace(_scene(rng, "pair", lambda s: True), relation=None)  # the caption joins them with "and"
    things = tuple(Wanted(kind=t.kind) for t in scene.things)
    return scene, f"{_named(scene, 0)} and {_named(scene, 1)}", Expectation(things=things)


def _counting(rng: random.Random, i: int) -> tuple[Scene, str, Expectation]:
    n = _COUNTS[i]
    scene = _scene(rng, "count", lambda s: len(s.things) == n)
    return scene, _named(scene, 0), Expectation(things=(Wanted(kind=scene.things[0].kind, count=n),))


def _position(rng: random.Random, i: int) -> tuple[Scene, str, Expectation]:
    relation = list(_RELATIONS)[i % len(_RELATIONS)]
    scene = _scene(rng, "pair", lambda s: s.relation == relation)
    things = tuple(Wanted(kind=t.kind) for t in scene.things)
    content = f"{_named(scene, 0)} {_RELATIONS[relation]} {_named(scene, 1)}"
    return scene, content, Expectation(things=things, relation=relation)


def _color_attr(rng: random.Random, i: int) -> tuple[Scene, str, Expectation]:
    scene = replace(_scene(rng, "pair", lambda s: s.things[0].colour != s.things[1].colour), relation=None)
    things = tuple(Wanted(kind=t.kind, colour=t.colour) for t in scene.things)
    return scene, f"{_coloured(scene, 0)} and {_coloured(scene, 1)}", Expectation(things=things)


def _text(rng: random.Random, i: int) -> tuple[Scene, str, Expectation]:
    word = (WORDS[(i // 2) * 7 % len(WORDS)], OTHER_WORDS[i // 2])[i % 2]  # 7 and 48 share no factor: no word twice
    scene = _scene(rng, "sign", lambda s: len(s.things) == 1)
    scene = replace(scene, things=(replace(scene.things[0], word=word),))
    return scene, f'a sign that says "{word}"', Expectation(things=(Wanted(kind="sign", word=word),))


_MAKERS: dict[str, Callable[[random.Random, int], tuple[Scene, str, Expectation]]] = {
    "single_object": _single_object,
    "two_object": _two_object,
    "counting": _counting,
    "colors": _colors,
    "position": _position,
    "color_attr": _color_attr,
    "text": _text,
}


def _make() -> Iterator[Made]:
    number = 0
    for kind in PROMPT_KINDS:
        seen: set[str] = set()
        attempt = 0
        made = 0
        while made < PER_KIND:
            rng = random.Random(f"{_SEED} {kind} {made} {attempt}")
            scene, content, expectation = _MAKERS[kind](rng, made)
            dense = scene_text.dense(scene, rng)
            if len(scene.things) == 1:
                dense = _own_opening(scene, dense, rng)
            attempt += 1
            if content in seen or not 40 <= len(dense.split()) <= 110:
                continue
            seen.add(content)
            prompt = NanoPrompt(
                id=f"{kind}-{made:02d}",
                kind=kind,
                number=number,
                brief=f"{OPENING} {content}",
                dense=dense,
                expectation=expectation,
            )
            yield Made(prompt=prompt, scene=scene)
            made, attempt, number = made + 1, 0, number + 1


@functools.cache
def made_prompts() -> tuple[Made, ...]:
    """All prompts with the scenes they were made from, in order. Takes seconds: `prompts` reads the file."""
    return tuple(_make())


@functools.cache
def _read() -> tuple[NanoPrompt, ...]:
    return tuple(_prompt(json.loads(line)) for line in _FILE.read_text("utf-8").splitlines())


def _prompt(said: dict[str, Any]) -> NanoPrompt:
    things, relation = said["expectation"]["things"], said["expectation"]["relation"]
    expectation = Expectation(things=tuple(Wanted(**thing) for thing in things), relation=relation)
    return NanoPrompt(**{**said, "expectation": expectation})


def prompts(kinds: tuple[str, ...] = (), limit: int | None = None) -> tuple[NanoPrompt, ...]:
    """The prompts of `kinds` (empty: all); with `limit`, that many, taken from the kinds in turn.

    Raises ValueError for an unknown kind.
    """
    return chosen(_read(), PROMPT_KINDS, kinds, limit)


def chosen(
    prompts: tuple[NanoPrompt, ...], known: tuple[str, ...], kinds: tuple[str, ...], limit: int | None
) -> tuple[NanoPrompt, ...]:
    """Those of `kinds` (empty: all `known` ones), in order; with `limit`, that many, taken from the kinds in turn.

    Raises ValueError for an unknown kind.
    """
    unknown = [kind for kind in kinds if kind not in known]
    if unknown:
        raise ValueError(f"no kind of prompt is called {', '.join(unknown)}; there are {', '.join(known)}")
    found = [prompt for prompt in prompts if not kinds or prompt.kind in kinds]
    if limit is None:
        return tuple(found)
    # In turn, so that a short run still says something about every kind.
    found.sort(key=lambda prompt: (int(prompt.id.rsplit("-", 1)[1]), prompt.number))
    return tuple(sorted(found[:limit], key=lambda prompt: prompt.number))


def fingerprint() -> str:
    """SHA-256 over all prompts and expectations: two results are comparable only where this agrees."""
    text = json.dumps([asdict(prompt) for prompt in prompts()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


if __name__ == "__main__":
    _FILE.write_text("".join(json.dumps(asdict(made.prompt)) + "\n" for made in made_prompts()), "utf-8")
