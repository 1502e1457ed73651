"""Requests and their rewrites: what a guideline undoes is undone, in the words of the transformer's own captions.

Why it can be trusted: the words of those captions are gathered from `scene_text` itself, and for a handful of requests
the rewrite is written down by hand.
"""

from __future__ import annotations

import random
import re
from dataclasses import replace

import pytest

import prompts
from prompts.guidelines import load_guidelines
from train.world import decisions
from train.world.lexicon import ENTRIES, LANGUAGES, TONES, foreign_phrase
from train.world.outside import STRANGERS
from train.world.requests import ADDING, UNDONE_BY, Request, Said, rewritten, sample_request, text
from train.world.scene_text import brief, kind_name
from train.world.scenes import sample_scene
from train.world.things import KINDS

IDS = frozenset(guideline.id for guideline in load_guidelines())
UNDOING = frozenset(UNDONE_BY.values())
KITTEN = Said(kind="cat", n=1, colour="gray", size="", name=("kitten", "kittens"), young=True, shade="ashen")
MOONS = Said(kind="moon", n=3, colour=None, size="", number="one and two", summed=True)


@pytest.mark.parametrize(
    ("request_", "ids", "wanted"),
    [
        (Request(groups=(KITTEN, MOONS)), "", "an ashen kitten and one and two moons"),
        (Request(groups=(KITTEN, MOONS)), "usual", "a small ashen cat and one and two moons"),
        (Request(groups=(KITTEN, MOONS)), "tone sum", "a gray kitten and three moons"),
        (Request(groups=(KITTEN, MOONS)), "tone sum usual side", "a small gray cat to the left of three moons"),
        (Request(groups=(KITTEN, MOONS)), "colour", "an ashen kitten and one and two yellow moons"),
        (
            Request(
                groups=(replace(KITTEN, name=None), replace(MOONS, n=1, number=None)), relation="below", way="with"
            ),
            "side style weather",
            "A flat illustration of an ashen cat below a moon. The weather is calm and mild.",
        ),
        (
            Request(
                groups=(replace(KITTEN, name=None), replace(MOONS, n=1, number=None)), relation="below", way="with"
            ),
            "",
            "an ashen cat with a moon above it",
        ),
        (Request(groups=(MOONS,), misspelt=("moons", "mooons"), talk="{}, 8k"), "spelling", "one and two moons, 8k"),
        (Request(groups=(MOONS,), misspelt=("moons", "mooons"), talk="{}, 8k"), "visible", "one and two mooons"),
        (Request(groups=(replace(MOONS, colour="red"),), language="fr"), "colour", "trois lunes rouges"),
        (Request(groups=(replace(MOONS, colour="red"),), language="fr"), "english sum", "three red moons"),
    ],
)
def test_rewrites_written_down_by_hand(request_: Request, ids: str, wanted: str) -> None:
    assert rewritten(request_, frozenset(ids.split())) == wanted


def test_every_sentence_has_its_effect_and_only_known_ones_are_used() -> None:
    assert UNDOING | set(ADDING) | {"short", "quote"} == IDS


def test_without_guidelines_a_request_stays_as_it_is_and_with_all_of_them_its_words_are_the_captions_own() -> None:
    rng = random.Random(0)
    known = {word for _ in range(4000) for word in re.findall(r"[\w-]+", brief(sample_scene(rng), rng).lower())}
    seen = set[str]()
    for _ in range(1500):
        request = sample_request(rng)
        assert rewritten(request, frozenset()) == text(request)
        plain = rewritten(request, UNDOING)
        words = re.findall(r"[\w-]+", re.sub(r'"[A-Z]+"', "", plain).lower())
        assert not set(words) - known, plain
        assert (plain == text(request)) <= (not request.twists - {"way"})
        seen |= request.twists
    assert seen == set(UNDONE_BY)


def test_use_very_few_words_takes_back_what_others_add() -> None:
    rng = random.Random(1)
    for _ in range(200):
        request = sample_request(rng)
        assert rewritten(request, UNDOING | set(ADDING) | {"short"}) == rewritten(request, UNDOING | {"short"})


def test_words_name_one_thing_each() -> None:
    names = [kind_name(kind, n) for kind in KINDS for n in (1, 2)]
    for entry in ENTRIES.values():
        pairs = [*entry.other, *([entry.young] if entry.young else [])]
        names += [name for pair in pairs for name in dict.fromkeys(pair)]
    own = [name for name in names if name != "fish"]  # the only one that is its own plural
    assert len(set(own)) == len(own) and not set(own) & set(STRANGERS)
    assert len({shade for shades in TONES.values() for shade in shades}) == sum(map(len, TONES.values()))
    for language in LANGUAGES:
        assert len({entry.foreign[language].many for entry in ENTRIES.values()}) == len(ENTRIES)


def test_other_languages_inflect() -> None:
    assert foreign_phrase("apple", 1, "red", "de") == "ein roter Apfel"
    assert foreign_phrase("apple", 1, "red", "de", dative=True) == "einem roten Apfel"
    assert foreign_phrase("house", 3, "purple", "de") == "drei lila Häuser"
    assert foreign_phrase("flower", 2, "green", "fr") == "deux fleurs vertes"
    assert foreign_phrase("house", 1, "white", "es") == "una casa blanca"
    assert foreign_phrase("cat", 2, None, "es") == "dos gatos"


def test_no_probe_is_a_training_request_and_every_rule_comes_up() -> None:
    rng = random.Random(2)
    probes = {probe.request.lower() for probe in prompts.probes()}
    allowed = {decisions.allowed(rng).lower() for _ in range(8000)}
    refused = [decisions.refused(rng) for _ in range(4000)]
    assert not probes & (allowed | {request.lower() for _, request in refused})
    assert {rule for rule, _ in refused} == set(prompts.rule_names())
    assert len(allowed) > 4000 and not allowed & {request.lower() for _, request in refused}
