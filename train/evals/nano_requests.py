"""Requests that need a reasoner: 126 of them, fourteen of each twist, frozen, with what their pictures must hold.

Each says a scene in words that the transformer never read, and differs from a request in its own words by one twist of
`train.world.requests`; the last kind has all of them that go together. What holds two things or more comes from scenes
that no training draws, neither the transformer's nor the reasoner's; the words themselves are those that the reasoner
learned, for no small network can guess what a feline is. Made by code from a fixed seed; a test pins their hash.
"""

from __future__ import annotations

import functools
import hashlib
import json
import random
from collections.abc import Callable
from dataclasses import asdict, replace

from train.evals.nano_prompts import OTHER_WORDS, NanoPrompt, chosen, pale
from train.evals.verifier.verify import Expectation, Wanted
from train.world.lexicon import LANGUAGES, TONES
from train.world.requests import SIDES, WAYS, WRITTEN, Request, Said, other_name, other_number, rewritten, talk_of, text
from train.world.requests import misspell as misspelt
from train.world.scenes import Scene, sample_scene
from train.world.things import KINDS

REQUEST_KINDS = ("name", "language", "misspelt", "digit", "sum", "shade", "way", "talk", "letters")
PER_KIND = 14
_SEED = "lens eval nano requests 1"
EVERYTHING = frozenset({"usual", "english", "spelling", "count", "sum", "tone", "side", "visible", "letters"})


def _plain(rng: random.Random, layout: str, *, colours: bool) -> Request:
    """A held-out scene in the transformer's own words."""
    while True:
        scene = sample_scene(rng, layouts=(layout,), weights=(1.0,), held_out=True)
        if not pale(scene) and scene.relation in (None, *SIDES):
            break
    return Request(groups=_groups(scene, colours), relation=scene.relation if layout == "pair" else None)


def _groups(scene: Scene, colours: bool) -> tuple[Said, ...]:
    return tuple(
        Said(kind=scene.things[i].kind, n=n, colour=scene.things[i].colour if colours else None, size="")
        for i, n in scene.groups
    )


def _each(request: Request, change: Callable[[Said], Said]) -> Request:
    return replace(request, groups=tuple(change(group) for group in request.groups))


def _name(rng: random.Random, i: int) -> Request:
    return _each(_plain(rng, "pair", colours=i % 2 == 0), lambda group: other_name(group, rng))


def _language(rng: random.Random, i: int) -> Request:
    request = _plain(rng, ("pair", "count")[i % 2], colours=i % 4 < 2)
    return replace(request, language=LANGUAGES[i % len(LANGUAGES)])


def _misspelt(rng: random.Random, i: int) -> Request:
    return misspelt(_plain(rng, ("pair", "count")[i % 2], colours=True), rng)


def _digit(rng: random.Random, i: int) -> Request:
    return _each(_plain(rng, "count", colours=i % 2 == 0), lambda group: other_number(group, rng, summed=False))


def _sum(rng: random.Random, i: int) -> Request:
    return _each(_plain(rng, "count", colours=i % 2 == 0), lambda group: other_number(group, rng, summed=True))


def _shade(rng: random.Random, i: int) -> Request:
    layout = ("pair", "count")[i % 2]
    return _each(_plain(rng, layout, colours=True), lambda g: replace(g, shade=rng.choice(TONES[g.colour or "red"])))


def _way(rng: random.Random, i: int) -> Request:
    request = _plain(rng, "pair", colours=True)
    while request.relation is None:
        request = _plain(rng, "pair", colours=True)
    return replace(request, way=rng.choice(("with", *WAYS[request.relation])))


def _talk(rng: random.Random, i: int) -> Request:
    return replace(_plain(rng, ("pair", "count")[i % 2], colours=True), talk=talk_of(rng))


def _letters(rng: random.Random, i: int) -> Request:
    sign = Said(kind="sign", n=1, colour=None, size="", word=OTHER_WORDS[i], written=WRITTEN[i % len(WRITTEN)])
    return Request(groups=(sign,))


_MAKERS = (_name, _language, _misspelt, _digit, _sum, _shade, _way, _talk, _letters)


def expectation(request: Request) -> Expectation:
    """What a picture of the request must hold: what it says, and nothing that it leaves open."""
    things = tuple(Wanted(kind=g.kind, colour=g.colour, count=g.n, word=g.word) for g in request.groups)
    return Expectation(things=things, relation=request.relation)


@functools.cache
def made_requests() -> tuple[tuple[Request, NanoPrompt], ...]:
    """All of them, in order."""
    found: list[tuple[Request, NanoPrompt]] = []
    for kind, make in zip(REQUEST_KINDS, _MAKERS, strict=True):
        seen: set[str] = set()
        attempt = 0
        while len(seen) < PER_KIND:
            request = make(random.Random(f"{_SEED} {kind} {len(seen)} {attempt}"), len(seen))
            attempt += 1
            asked = text(request)
            if asked in seen or asked == rewritten(request, EVERYTHING) or has_unknown_things(request):
                continue
            prompt = NanoPrompt(
                id=f"{kind}-{len(seen):02d}",
                kind=kind,
                number=len(found),
                brief=asked,
                dense=rewritten(request, EVERYTHING),
                expectation=expectation(request),
            )
            found.append((request, prompt))
            seen.add(asked)
    return tuple(found)


def has_unknown_things(request: Request) -> bool:
    """Whether a thing of the request is none that the verifier knows, and no sign."""
    return any(group.kind not in KINDS and group.word is None for group in request.groups)


def requests(kinds: tuple[str, ...] = (), limit: int | None = None) -> tuple[NanoPrompt, ...]:
    """The requests of `kinds` (empty: all); with `limit`, that many, taken from the kinds in turn.

    Raises ValueError for an unknown kind.
    """
    return chosen(tuple(prompt for _, prompt in made_requests()), REQUEST_KINDS, kinds, limit)


def fingerprint() -> str:
    """SHA-256 over all requests and expectations."""
    rows = [asdict(prompt) for prompt in requests()]
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()
