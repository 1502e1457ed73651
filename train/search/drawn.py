"""Requests about Lens-Nano's world, made by code with what their pictures must hold: in its own words, or in others.

None stands in a benchmark: a search that was run on a test set says nothing by that test.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence

from backend.errors import UsageError
from train.evals.nano_prompts import pale
from train.evals.nano_requests import expectation, has_unknown_things
from train.rl.prompts import drawn
from train.search.requests import Request, leaks
from train.world.requests import LAYOUTS, SIDES, UNDONE_BY, WEIGHTS, plain_request, text, twisted
from train.world.scenes import sample_scene

_TRIES = 2000  # scenes in a row that give no new request: then there are no more


def draw_requests(count: int, seed: int, benchmarks: Mapping[str, Sequence[str]], source: str) -> tuple[Request, ...]:
    """`count` requests of a source in SOURCES of which no benchmark has one. Raises UsageError where there are not so
    many."""
    made = SOURCES[source](int(count * 1.15) + 20, seed)
    leaked = {request.id for request, _ in leaks(made, benchmarks)}
    return tuple(request for request in made if request.id not in leaked)


def _in_its_words(count: int, seed: int) -> tuple[Request, ...]:
    prompts, expectations = drawn.make(count, seed)
    return tuple(
        Request(
            id=prompt.id, prompt=prompt.prompt, category=prompt.category, item=prompt.item, rubrics=prompt.rubrics,
            expectation=expectations[prompt.id],
        )
        for prompt in prompts.prompts
    )  # fmt: skip


def _in_other_words(count: int, seed: int) -> tuple[Request, ...]:
    """Names, languages, sums, shades, … that the transformer never read; a request's category is its first twist."""
    rng, found, vain = random.Random(f"search requests {seed}"), dict[str, Request](), 0
    while len(found) < count:
        vain += 1
        if vain > _TRIES:
            raise UsageError(f"there are not {count:,} different requests", hint="smaller splits")
        scene = sample_scene(rng, layouts=LAYOUTS, weights=WEIGHTS, held_out=False)
        if pale(scene) or scene.relation not in (None, *SIDES):
            continue
        said = twisted(plain_request(scene, rng), rng, chance=1.0)
        words = text(said)
        if not said.twists or words in found or has_unknown_things(said):
            continue
        vain, wanted = 0, expectation(said)
        twist = next(name for name in UNDONE_BY if name in said.twists)
        item = " and ".join(sorted(group.word or group.kind for group in said.groups))
        found[words] = Request(
            id=f"{twist}-{len(found):04d}", prompt=words, category=twist, item=item,
            rubrics=drawn.rubrics_of(wanted), expectation=wanted,
        )  # fmt: skip
    return tuple(found.values())


# In a file's place: what stands there -> (how many, seed) -> requests.
SOURCES: Mapping[str, Callable[[int, int], tuple[Request, ...]]] = {
    "nano": _in_its_words,
    "nano-requests": _in_other_words,
}
