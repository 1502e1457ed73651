"""The requests that need a reasoner are data frozen by a hash, of scenes that no training sees."""

from __future__ import annotations

import hashlib
from collections import Counter

import pytest

from prompts.guidelines import load_guidelines
from train.evals import following
from train.evals.nano_requests import PER_KIND, REQUEST_KINDS, fingerprint, made_requests, requests
from train.world.requests import rewritten, text

FROZEN = "298ab619acd7c9d13447f3d6931dca98c7d0807a6a32cd5fd92834bf026b84ed"


def test_they_are_frozen() -> None:
    """A change here makes old scores incomparable: then say so where they are published."""
    assert fingerprint() == FROZEN


def test_there_are_fourteen_of_each_and_every_one_has_its_twist_alone() -> None:
    assert Counter(prompt.kind for prompt in requests()) == dict.fromkeys(REQUEST_KINDS, PER_KIND)
    assert [prompt.number for prompt in requests()] == list(range(len(requests())))
    assert len(requests(limit=9)) == 9 and {p.kind for p in requests(("sum", "way"))} == {"sum", "way"}
    for request, prompt in made_requests():
        assert request.twists == {prompt.kind} and prompt.brief == text(request) != prompt.dense


def test_no_training_draws_their_scenes() -> None:
    """Of those that say all colours, which is what a combination is held out by; the others come the same way."""
    checked = 0
    for request, _ in made_requests():
        if all(group.colour for group in request.groups):
            parts = sorted(f"{group.n} {group.colour} {group.kind}" for group in request.groups)
            key = " + ".join(parts)
            checked += 1
            assert hashlib.blake2b(key.encode(), digest_size=2).digest()[0] < 256 // 40, key
    assert checked > 70


def test_following_tells_a_reasoner_that_follows_from_one_that_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "QUIET", {guideline.id for guideline in load_guidelines()} - {"sum", "weather"})
    by_text = {text(case): case for name in ("sum", "weather") for case in following.cases(name, 2)}
    good = following.follow(lambda asked, ids: rewritten(by_text[asked], frozenset(ids)), 2)
    lazy = following.follow(lambda asked, ids: asked, 2)
    assert [(row.id, row.asked.right, row.left_out.right) for row in good] == [("sum", 2, 2), ("weather", 2, 2)]
    assert [(row.id, row.asked.right, row.left_out.right) for row in lazy] == [("sum", 0, 2), ("weather", 0, 2)]
