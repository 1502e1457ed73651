"""The prompts are data frozen by a hash; that none is a training caption is argued from the captions' own templates."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from train.evals.nano_prompts import OPENING, OTHER_WORDS, PER_KIND, PROMPT_KINDS, fingerprint, made_prompts, prompts
from train.world import scene_text
from train.world.scenes import WORDS, is_held_out, sample_scene

FROZEN = "8e8f4bdcb568814196b21bf8ca98ea42c60ae0652e22f8da63058082ddd0bbdb"


def test_the_prompts_are_frozen() -> None:
    """A change here makes old scores incomparable: then say so where they are published."""
    assert fingerprint() == FROZEN


def test_the_file_is_what_the_code_makes() -> None:
    """`python -m train.evals.nano_prompts` writes it."""
    assert prompts() == tuple(made.prompt for made in made_prompts())


def test_there_are_fifty_of_each_kind_and_no_two_alike() -> None:
    made = made_prompts()
    assert Counter(m.prompt.kind for m in made) == dict.fromkeys(PROMPT_KINDS, PER_KIND)
    for texts in ([m.prompt.id for m in made], [m.prompt.dense for m in made]):
        assert len(set(texts)) == len(made)
    for kind in PROMPT_KINDS:
        assert len({m.prompt.brief for m in made if m.prompt.kind == kind}) == PER_KIND
    assert [m.prompt.number for m in made] == list(range(len(made)))


def test_no_prompt_is_a_training_caption() -> None:
    """Captions open with a style of `scene_text` and "of" or "showing", or (brief) with the things themselves."""
    styles = [s for group in scene_text._STYLE.values() for s in group] + list(scene_text._BARE_STYLE)
    after_opening = {s.removeprefix(OPENING).split()[0] for s in styles if s.startswith(OPENING + " ")}
    assert after_opening == {"soft"}, "the only style that opens like our wording goes on otherwise"
    for m in made_prompts():
        own = [m.prompt.brief]
        if len(m.scene.things) > 1:
            assert is_held_out(m.scene), "training draws no such scene, and a dense caption names all of it"
            assert all(t.colour in m.prompt.dense for t in m.scene.things)
        else:
            own.append(m.prompt.dense)
        for text in own:
            text = text.lower()
            assert text.startswith(OPENING + " ") and text.split()[3] in ("a", "an", "two", "three", "four", "five")
            assert not any(text.startswith((f"{s} of ", f"{s} showing ")) for s in styles)


def test_drawn_captions_never_open_like_a_prompt() -> None:
    """The same claim by sampling: 2,000 captions of each sort."""
    rng = random.Random(0)
    for _ in range(2000):
        scene = sample_scene(rng)
        for text in (
            scene_text.brief(scene, rng),
            scene_text.dense(scene, rng),
            scene_text.dense(scene, rng, frozenset()),
        ):
            assert not text.lower().startswith(OPENING + " ") or text.lower().startswith(OPENING + " soft shading")


def test_dense_wordings_have_the_length_of_training_captions_and_name_what_is_checked() -> None:
    for m in made_prompts():
        assert 40 <= len(m.prompt.dense.split()) <= 110
        for wanted in m.prompt.expectation.things:
            for text in (m.prompt.brief, m.prompt.dense):
                assert scene_text.kind_name(wanted.kind, wanted.count) in text
                assert wanted.colour is None or wanted.colour in text
                assert wanted.word is None or f'"{wanted.word}"' in text


def test_half_of_the_words_are_new() -> None:
    words = [m.prompt.expectation.things[0].word for m in made_prompts() if m.prompt.kind == "text"]
    assert len(set(words)) == PER_KIND
    assert sum(w in WORDS for w in words) == PER_KIND // 2 == len(OTHER_WORDS)
    assert not set(OTHER_WORDS) & set(WORDS)


def test_limit_takes_the_kinds_in_turn() -> None:
    assert Counter(p.kind for p in prompts(limit=14)) == dict.fromkeys(PROMPT_KINDS, 2)
    assert {p.kind for p in prompts(("text",))} == {"text"}
    with pytest.raises(ValueError, match="nonsense"):
        prompts(("nonsense",))
    with pytest.raises(ValueError, match="wording"):
        prompts(limit=1)[0].wording("long")
