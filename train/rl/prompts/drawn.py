"""Prompts about Lens-Nano's world with what their pictures must hold, from scenes that its training may draw.

None is a prompt of `lens eval nano`: those open with words of their own, and what holds two things or more is there
made of scenes that are held out, here of the others.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

from PIL import Image

from backend.errors import UsageError
from train.evals.verifier.verify import Expectation, Wanted
from train.rl.prompts.prompt_set import Prompt, PromptSet, Rubric
from train.world.drawing import render
from train.world.scene_text import dense, kind_name, phrase
from train.world.scenes import Scene, sample_scene

Drawn = tuple[str, str, Expectation]  # the words, the item by which a split goes, what is checked

# Shares of each kind: what Lens-Nano's base does worst is asked most.
SHARES = {"two things": 0.25, "counts": 0.25, "positions": 0.25, "words": 0.15, "two colours": 0.10}
_RELATIONS = {"left of": "to the left of", "right of": "to the right of", "above": "above", "below": "below"}
_TRIES = 2000  # scenes in a row that give no new prompt: then there are no more


def make(count: int, seed: int) -> tuple[PromptSet, dict[str, Expectation]]:
    """`count` different prompts, and by id what each asks for; a function of the arguments.

    Raises UsageError where the world has not that many.
    """
    prompts: list[Prompt] = []
    expectations: dict[str, Expectation] = {}
    seen: set[str] = set()
    last = list(SHARES)[-1]
    for kind, share in SHARES.items():
        wanted = count - len(prompts) if kind == last else round(count * share)
        rng, made, vain = random.Random(f"rl prompts {seed} {kind}"), 0, 0
        while made < wanted and vain < _TRIES:
            words, item, expectation = _MAKERS[kind](rng)
            vain += 1
            if words in seen:
                continue
            vain = 0
            seen.add(words)
            name = f"{kind.replace(' ', '-')}-{made:04d}"
            rubrics = rubrics_of(expectation)
            prompts.append(Prompt(id=name, prompt=words, category=kind, item=item, rubrics=rubrics, writer="drawn 1"))
            expectations[name] = expectation
            made += 1
        if made < wanted:
            raise UsageError(f"there are not {wanted:,} different prompts about {kind}", hint="a smaller prompts.count")
    return PromptSet(tuple(prompts)), expectations


def rubrics_of(expectation: Expectation) -> tuple[Rubric, ...]:
    """One question for each item that the verifier checks, in its order."""
    out: list[Rubric] = []
    for wanted in expectation.things:
        kind = "count" if wanted.count > 1 else "color" if wanted.colour else "item"
        verb = "is there" if wanted.count == 1 else "are there"
        out.append(Rubric(kind=kind, text=f"{verb.capitalize()} exactly {replace(wanted, word=None)}?"))
        if wanted.word is not None:
            out.append(Rubric(kind="text", text=f'Does a sign say "{wanted.word}"?'))
    if expectation.relation is not None:
        first, second = (kind_name(wanted.kind, wanted.count) for wanted in expectation.things[:2])
        out.append(Rubric(kind="spatial", text=f"Is the {first} {expectation.relation} the {second}?"))
    return tuple(out)


def captioned(count: int, side: int, seed: int) -> list[tuple[str, Image.Image]]:
    """(dense caption, picture of side x side pixels) of drawn scenes; a function of the arguments."""
    out: list[tuple[str, Image.Image]] = []
    for number in range(count):
        rng = random.Random(f"rl validation {seed} {number}")
        scene = sample_scene(rng)
        out.append((dense(scene, rng), render(scene, side, side)))
    return out


def _scene(rng: random.Random, layout: str) -> Scene:
    return sample_scene(rng, layouts=(layout,), weights=(1.0,))


def _named(scene: Scene, group: int, *, colour: bool) -> str:
    index, count = scene.groups[group]
    return phrase(scene.things[index], count, colour=colour, size=False)


def _pair(scene: Scene, *, colour: bool) -> tuple[Wanted, ...]:
    return tuple(Wanted(kind=t.kind, colour=t.colour if colour else None) for t in scene.things)


def _item(scene: Scene) -> str:
    return " and ".join(sorted(thing.kind for thing in scene.things))


def _two_things(rng: random.Random) -> Drawn:
    scene = _scene(rng, "pair")
    words = f"{_named(scene, 0, colour=False)} and {_named(scene, 1, colour=False)}"
    return words, _item(scene), Expectation(things=_pair(scene, colour=False))


def _two_colours(rng: random.Random) -> Drawn:
    while True:
        scene = _scene(rng, "pair")
        if scene.things[0].colour != scene.things[1].colour:
            break
    words = f"{_named(scene, 0, colour=True)} and {_named(scene, 1, colour=True)}"
    return words, _item(scene), Expectation(things=_pair(scene, colour=True))


def _position(rng: random.Random) -> Drawn:
    while True:
        scene = _scene(rng, "pair")
        if scene.relation in _RELATIONS:
            break
    words = f"{_named(scene, 0, colour=False)} {_RELATIONS[scene.relation]} {_named(scene, 1, colour=False)}"
    return words, _item(scene), Expectation(things=_pair(scene, colour=False), relation=scene.relation)


def _count(rng: random.Random) -> Drawn:
    scene, coloured = _scene(rng, "count"), rng.random() < 0.5
    thing = scene.things[0]
    wanted = Wanted(kind=thing.kind, colour=thing.colour if coloured else None, count=len(scene.things))
    return _named(scene, 0, colour=coloured), thing.kind, Expectation(things=(wanted,))


def _word(rng: random.Random) -> Drawn:
    scene, coloured = _scene(rng, "sign"), rng.random() < 0.7
    sign = next(thing for thing in scene.things if thing.kind == "sign")
    wanted = Wanted(kind="sign", colour=sign.colour if coloured else None, word=sign.word)
    return phrase(sign, 1, colour=coloured, size=False), str(sign.word), Expectation(things=(wanted,))


_MAKERS: dict[str, Callable[[random.Random], Drawn]] = {
    "two things": _two_things,
    "counts": _count,
    "positions": _position,
    "words": _word,
    "two colours": _two_colours,
}
