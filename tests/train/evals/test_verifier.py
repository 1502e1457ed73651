"""The verifier is judged by drawings whose content is known: the scene that drew the picture is the answer key, so
nothing here repeats the verifier's own logic. `lens eval nano --prove-verifier` is the same proof at full size."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageFilter

from train.evals.stats import AnswerTally, wilson
from train.evals.verifier.find_things import FoundThing
from train.evals.verifier.prove import DEGRADATIONS, FALSEHOODS, falsehoods, prove
from train.evals.verifier.verify import Expectation, Wanted, expectation_of, relation_holds, see, verify
from train.world.drawing import render
from train.world.scenes import COLOURS, GROUNDS, PLAIN, SKIES, Background, Scene, Thing, sample_scene


def test_says_yes_to_the_truth_and_no_to_falsehoods() -> None:
    """A small, fixed version of the proof. A verifier that always answered the same would fail one of the two sides."""
    proof = prove(scenes=40, seed=0)
    yes, no = proof.total(proof.yes), proof.total(proof.no)
    assert yes.total == 40 and yes.rate >= 0.95, proof.mistakes
    assert no.total > 130 and no.rate >= 0.985, proof.mistakes
    assert set(proof.no) == set(FALSEHOODS), "every kind of falsehood was tried"


def test_every_falsehood_changes_the_expectation_in_one_thing() -> None:
    for i in range(200):
        rng = random.Random(i)
        scene = sample_scene(rng, held_out=None)
        truth = expectation_of(scene)
        for name, lie in falsehoods(scene, rng):
            assert lie != truth
            changed = [(a, b) for a, b in zip(truth.things, lie.things, strict=True) if a != b]
            if name == "relation":
                assert lie.relation != truth.relation or lie.things == (truth.things[1], truth.things[0])
            else:
                assert len(changed) == (2 if name == "swap" else 1) and lie.relation == truth.relation


@pytest.mark.parametrize("kind", ["heart", "cat", "butterfly", "banana"])
def test_a_models_own_tone_of_a_colour_is_that_colour(kind: str) -> None:
    """An orange 40 of 255 from the palette's, on its way to brown, and soft: a person sees the thing at once."""
    thing = Thing(kind=kind, colour="orange", size="large", x=0.5, y=0.5, r=0.25)
    scene = Scene(
        width=1, height=1, style="flat", background=Background(plain="cream"), things=(thing,), groups=((0, 1),),
        layout="single",
    )  # fmt: skip
    pixels = np.asarray(render(scene, 256, 256), np.float32)
    near = np.linalg.norm(pixels - np.array(COLOURS["orange"]), axis=-1) < 60
    moved = np.clip(pixels + near[..., None] * np.array((-33, -17, 16)), 0, 255).astype(np.uint8)
    picture = Image.fromarray(moved).filter(ImageFilter.GaussianBlur(3))
    assert verify(picture, expectation_of(scene)).reason == ""
    for lie in (replace(thing, kind="apple"), replace(thing, colour="yellow"), replace(thing, colour="red")):
        assert verify(picture, expectation_of(replace(scene, things=(lie,)))).reason


def test_the_first_scene_that_is_degraded_is_still_seen() -> None:
    scene = Scene(
        width=1,
        height=1,
        style="flat",
        background=Background(plain="cream"),
        things=(
            Thing(kind="cat", colour="red", size="medium", x=0.27, y=0.5, r=0.19),
            Thing(kind="house", colour="blue", size="medium", x=0.73, y=0.5, r=0.19),
        ),
        groups=((0, 1), (1, 1)),
        layout="pair",
        relation="left of",
    )
    truth = expectation_of(scene)
    for size in (192, 256, 384):
        assert verify(render(scene, size, size), truth).reason == ""
    for name, degrade in DEGRADATIONS.items():
        assert verify(degrade(render(scene, 256, 256), random.Random(0)), truth).reason == "", name
    verdict = verify(render(scene, 256, 256), Expectation(things=(Wanted(kind="cat", colour="green"),)))
    assert not verdict.right and "wanted one green cat, saw zero" in verdict.reason and "red cat" in verdict.reason


@pytest.mark.parametrize("word", ["HELLO", "QUIZ", "LENS", "I", "WAVE", "ZOO", "SQUAD", "OQO"])
def test_reads_signs(word: str) -> None:
    sign = Thing(kind="sign", colour="green", size="large", x=0.5, y=0.5, r=0.42, word=word)
    scene = Scene(
        width=1,
        height=1,
        style="ink",
        background=Background(sky="clear blue", ground="meadow"),
        things=(sign,),
        groups=((0, 1),),
        layout="sign",
    )
    picture = render(scene, 256, 256)
    verdict = verify(picture, Expectation(things=(Wanted(kind="sign", colour="green", word="OTHER"),)))
    assert [f.word for f in verdict.found if f.kind == "sign"] == [word], "read without being told the word"
    assert not verdict.right


@pytest.mark.parametrize("colour", [(255, 255, 255), (0, 0, 0), (120, 120, 120)])
def test_an_empty_picture_holds_nothing(colour: tuple[int, int, int]) -> None:
    for size in ((256, 256), (256, 144), (97, 211)):
        verdict = verify(Image.new("RGB", size, colour), Expectation(things=(Wanted(kind="ball"),)))
        assert not verdict.right and verdict.found == ()


@pytest.mark.parametrize("ground", GROUNDS)
def test_a_landscape_without_things_holds_nothing(ground: str) -> None:
    """Its clouds and the dashes of its road are white, as a book's pages are; soft, or a little off their place, they
    must not pass for one. The drawing has no things, so whatever is found is wrong. One seed: stars that happen to
    stand in a ring still pass for a small black sun."""
    tint = "purple" if ground == "hill" else None
    for sky in SKIES:
        background = Background(sky=sky, ground=ground, tint=tint, horizon=0.6, seed=1)
        scene = Scene(width=1, height=1, style="flat", background=background, things=(), groups=(), layout="single")
        picture = render(scene, 256, 256)
        moved = picture.transform(picture.size, Image.Transform.AFFINE, (1, 0, 0, 0, 1, 6), Image.Resampling.BILINEAR)
        assert see(moved.filter(ImageFilter.GaussianBlur(2))) == (), sky


@pytest.mark.parametrize("colour", ["blue", "red", "purple"])
def test_a_thing_that_lacks_a_part_is_still_that_thing(colour: str) -> None:
    """Half of a cactus's arm is painted over: its box is another then, from which the search must find back."""
    thing = Thing(kind="cactus", colour=colour, size="large", x=0.5, y=0.5, r=0.3)
    background = Background(plain="cream")
    scene = Scene(
        width=1, height=1, style="flat", background=background, things=(thing,), groups=((0, 1),), layout="single"
    )
    picture = render(scene, 256, 256)
    picture.paste(PLAIN["cream"], (0, 0, 102, 256))
    assert verify(picture.filter(ImageFilter.GaussianBlur(2)), expectation_of(scene)).reason == ""


def test_pictures_of_nothing_known_are_judged_all_the_same() -> None:
    """An early model makes specks and blots of every size: no picture may stop an evaluation of hours."""
    for seed in range(4):
        rng = random.Random(seed)
        picture = Image.new("RGB", (256, 256), tuple(rng.randrange(256) for _ in range(3)))
        for _ in range(60):
            x, y, w, h = rng.randrange(256), rng.randrange(256), rng.randrange(1, 60), rng.randrange(1, 60)
            picture.paste(tuple(rng.randrange(256) for _ in range(3)), (x, y, x + w, y + h))
        assert verify(picture, Expectation(things=(Wanted(kind="turtle", colour="purple", count=3),))).right is False


def _found(x: float, y: float, half: float = 0.1) -> FoundThing:
    return FoundThing("ball", "red", x, y, (x - half, y - half, x + half, y + half), 1.0, (x, y, half, half))


def test_relations() -> None:
    a, b = [_found(0.25, 0.5)], [_found(0.75, 0.52)]
    assert relation_holds(a, "left of", b) and relation_holds(b, "right of", a)
    assert not relation_holds(a, "right of", b) and not relation_holds(a, "above", b)
    top, low = [_found(0.5, 0.3)], [_found(0.5, 0.51)]
    assert relation_holds(top, "above", low) and relation_holds(top, "on top of", low)
    assert not relation_holds(low, "on top of", top) and relation_holds(low, "below", top)
    assert relation_holds([_found(0.5, 0.5)], "inside", [_found(0.5, 0.5, 0.3)])
    assert not relation_holds([_found(0.5, 0.5, 0.3)], "inside", [_found(0.5, 0.5)])
    assert not relation_holds(a, "left of", [_found(0.26, 0.5)]), "a hair's breadth is no relation"


def test_expectations_refuse_nonsense() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Expectation(things=())
    with pytest.raises(ValueError, match="relation"):
        Expectation(things=(Wanted(kind="cat"),), relation="above")


def test_wilson_against_published_values() -> None:
    """0/10, 5/10 and 81/263 (the example of Newcombe, 1998) to four places."""
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError, match="impossible"):
        wilson(3, 2)
    assert AnswerTally(3, 4) + AnswerTally(1, 1) == AnswerTally(4, 5)
