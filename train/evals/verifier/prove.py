"""Measure the verifier on drawn scenes: how often it says yes to the truth and no to a falsehood.

A drawn scene's content is known, so the right answer is too. Each scene is judged against its own expectation and
against every falsehood that can be made from it by changing one thing: a colour, a kind, a count, the relation, the
two colours swapped, the word. The picture may first be degraded the way a small autoencoder and sampler degrade it.
"""

from __future__ import annotations

import io
import random
import string
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image, ImageFilter

from train.evals.stats import AnswerTally
from train.evals.verifier.regions import distance
from train.evals.verifier.templates import f32, role_colours
from train.evals.verifier.verify import Expectation, check, expectation_of, see
from train.world.drawing import render
from train.world.scenes import COLOURS, CONTAINERS, WORDS, Scene, sample_scene
from train.world.things import KINDS

FALSEHOODS = ("colour", "kind", "count", "relation", "swap", "word", "letter")
_OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above", "on top of": "below"}


def falsehoods(scene: Scene, rng: random.Random) -> Iterator[tuple[str, Expectation]]:
    """Every (what was changed, expectation) that is false of `scene` in one thing."""
    truth = expectation_of(scene)
    i = rng.randrange(len(truth.things))
    one = truth.things[i]

    def changed(index: int, **fields: object) -> Expectation:
        things = list(truth.things)
        things[index] = replace(things[index], **fields)  # type: ignore[arg-type]
        return replace(truth, things=tuple(things))

    taken = {(t.kind, t.colour) for t in truth.things}
    yield "colour", changed(i, colour=rng.choice([c for c in COLOURS if (one.kind, c) not in taken]))
    kinds = CONTAINERS if one.kind in CONTAINERS else tuple(KINDS)
    if one.kind != "sign":
        yield "kind", changed(i, kind=rng.choice([k for k in kinds if all(k != t.kind for t in truth.things)]))
    yield "count", changed(i, count=rng.choice([n for n in (one.count - 1, one.count + 1) if 1 <= n <= 5]))
    if truth.relation in _OPPOSITE:
        yield "relation", replace(truth, relation=_OPPOSITE[truth.relation])
    elif truth.relation == "inside":
        yield "relation", replace(truth, things=(truth.things[1], truth.things[0]))
    if len(truth.things) > 1 and truth.things[0].colour != truth.things[1].colour:
        a, b = truth.things[:2]
        rest = truth.things[2:]
        yield "swap", replace(truth, things=(replace(a, colour=b.colour), replace(b, colour=a.colour), *rest))
    for index, thing in enumerate(truth.things):
        if thing.word is not None:
            yield "word", changed(index, word=rng.choice([w for w in WORDS if w != thing.word]))
            at = rng.randrange(len(thing.word))
            letter = rng.choice([c for c in string.ascii_uppercase if c != thing.word[at]])
            yield "letter", changed(index, word=thing.word[:at] + letter + thing.word[at + 1 :])


# -------------------------------------------------------------------------------------------------------- degrading


def _softened(picture: Image.Image, rng: random.Random) -> Image.Image:
    half = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BILINEAR)
    return half.resize(picture.size, Image.Resampling.BICUBIC)


def _blurred(picture: Image.Image, rng: random.Random) -> Image.Image:
    return picture.filter(ImageFilter.GaussianBlur(1.0))


def _noisy(picture: Image.Image, rng: random.Random) -> Image.Image:
    noise = np.random.default_rng(rng.randrange(1 << 30)).normal(0, 8, (picture.height, picture.width, 3))
    return Image.fromarray(np.clip(np.asarray(picture) + noise, 0, 255).astype(np.uint8))


def _compressed(picture: Image.Image, rng: random.Random) -> Image.Image:
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=50)
    return Image.open(io.BytesIO(stream.getvalue())).convert("RGB")


def _tinted(picture: Image.Image, rng: random.Random) -> Image.Image:
    shift = f32([rng.uniform(-8, 8) for _ in range(3)])
    return Image.fromarray(np.clip(np.asarray(picture, np.float32) + shift, 0, 255).astype(np.uint8))


def _toned(picture: Image.Image, rng: random.Random) -> Image.Image:
    """Each colour of the palette, with its darker and lighter shade, up to 20 off in each channel: a model's own tones.

    By the nearest shade, and only what is near one: outlines, skies and grounds stay.
    """
    pixels = np.asarray(picture, np.float32)
    shades = f32([shade for colour in COLOURS for shade in role_colours(colour)[:3]])
    shifts = f32([[rng.uniform(-20, 20) for _ in range(3)] for _ in COLOURS]).repeat(3, axis=0)
    nearest, least = np.zeros(pixels.shape[:2], int), np.full(pixels.shape[:2], 12.0, np.float32)
    for i, shade in enumerate(shades):
        away = distance(pixels, shade)
        nearest, least = np.where(away < least, i + 1, nearest), np.minimum(away, least)
    moved = pixels + np.concatenate([np.zeros((1, 3), np.float32), shifts])[nearest]
    return Image.fromarray(np.clip(moved, 0, 255).astype(np.uint8))


def _wobbly(picture: Image.Image, rng: random.Random) -> Image.Image:
    """Outlines displaced by smooth waves of up to 1.2 % of the picture, as a sampler's are."""
    pixels = np.asarray(picture)
    h, w = pixels.shape[:2]
    y, x = np.mgrid[:h, :w].astype(np.float32)
    shift = []
    for _ in range(2):
        total = np.zeros((h, w), np.float32)
        for _ in range(4):
            kx, ky, phase = rng.uniform(-9, 9), rng.uniform(-9, 9), rng.uniform(0, 6.28)
            total += np.sin(2 * np.pi * (kx * x / w + ky * y / h) + phase)
        shift.append(total * 0.003 * min(h, w))
    ys, xs = np.clip(y + shift[0], 0, h - 1).astype(int), np.clip(x + shift[1], 0, w - 1).astype(int)
    return Image.fromarray(pixels[ys, xs])


DEGRADATIONS: dict[str, Callable[[Image.Image, random.Random], Image.Image]] = {
    "softened": _softened,
    "blurred": _blurred,
    "noisy": _noisy,
    "compressed": _compressed,
    "tinted": _tinted,
    "toned": _toned,
    "wobbly": _wobbly,
}


# ----------------------------------------------------------------------------------------------------------- the proof


@dataclass
class Proof:
    """`yes` per layout: truths accepted; `no` per falsehood: rejected. `mistakes` says what went wrong, in words."""

    yes: dict[str, AnswerTally] = field(default_factory=dict)
    no: dict[str, AnswerTally] = field(default_factory=dict)
    mistakes: list[str] = field(default_factory=list)
    seconds: float = 0.0  # processor time spent verifying, all pictures

    def total(self, side: dict[str, AnswerTally]) -> AnswerTally:
        """All rows of one side together."""
        return sum(side.values(), AnswerTally())

    def table(self) -> list[str]:
        """The proof as lines of text: rates with Wilson's 95 % intervals."""
        lines = ["yes to the truth, by layout"]
        lines += [tally.row(f"  {name}") for name, tally in sorted(self.yes.items())]
        lines += [self.total(self.yes).row("  all"), "no to a falsehood, by what was changed"]
        lines += [self.no[name].row(f"  {name}") for name in FALSEHOODS if name in self.no]
        return [*lines, self.total(self.no).row("  all")]


def prove(
    *,
    scenes: int = 1000,
    seed: int = 0,
    size: int = 256,
    degradation: str | None = None,
    on_scene: Callable[[int], None] | None = None,
) -> Proof:
    """Judge `scenes` freshly drawn scenes (all layouts, styles and backgrounds), each picture `size` pixels square.

    `degradation` is a name in DEGRADATIONS, or None for the clean drawing. Deterministic in all arguments.
    Raises KeyError for an unknown degradation.
    """
    proof = Proof()
    degrade = DEGRADATIONS[degradation] if degradation is not None else None
    for i in range(scenes):
        rng = random.Random(f"proof {seed} {i}")
        scene = sample_scene(rng, held_out=None)
        picture = render(scene, size, size)
        if degrade is not None:
            picture = degrade(picture, rng)
        lies = list(falsehoods(scene, rng))
        truth = expectation_of(scene)
        started = time.process_time()
        words = [t.word for e in (truth, *(lie for _, lie in lies)) for t in e.things if t.word is not None]
        found = see(picture, words)
        proof.seconds += time.process_time() - started
        items = check(truth, found)
        holds = all(item.holds for item in items)
        proof.yes.setdefault(scene.layout, AnswerTally()).add(holds)
        if not holds:
            reasons = "; ".join(item.reason for item in items if not item.holds)
            proof.mistakes.append(f"{i} {scene.layout} {scene.style}, true but refused: {reasons}")
        for name, lie in lies:
            refused = not all(item.holds for item in check(lie, found))
            proof.no.setdefault(name, AnswerTally()).add(refused)
            if not refused:
                proof.mistakes.append(f"{i} {scene.layout} {scene.style}, false {name} accepted: {lie}")
        if on_scene is not None:
            on_scene(i + 1)
    return proof
