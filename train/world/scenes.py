"""Lens-Nano's world: draw a scene from a seed, and know everything that is in it.

A `Scene` is data: style, background, things with kind, colour, size and place. `sample_scene` makes one from a
generator, `train.world.drawing.render` draws it at any size, `train.world.scene_text` writes its dense and brief
captions. Because the content is known, a rule can check a picture against it (`train.evals.nano`).

Coordinates are in units of the picture's short side, origin top left, y down. Knows nothing about training.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass

from train.world.things import KINDS

RGB = tuple[int, int, int]

COLOURS: dict[str, RGB] = {
    "red": (220, 40, 40),
    "orange": (246, 134, 30),
    "yellow": (252, 214, 48),
    "green": (46, 158, 68),
    "turquoise": (44, 196, 190),
    "blue": (42, 88, 214),
    "purple": (132, 60, 182),
    "pink": (246, 128, 182),
    "brown": (134, 82, 44),
    "black": (38, 38, 44),
    "gray": (140, 142, 148),
    "white": (248, 248, 248),
}

STYLES = ("flat", "ink", "shaded", "paper", "chalk")

PLAIN: dict[str, RGB] = {
    "cream": (250, 242, 220),
    "pale yellow": (252, 244, 190),
    "pale pink": (252, 222, 228),
    "pale blue": (206, 228, 248),
    "mint green": (208, 240, 220),
    "lavender": (226, 216, 246),
    "light gray": (218, 220, 224),
    "peach": (252, 224, 200),
}
PAPER: dict[str, RGB] = {"white": (255, 255, 255)}  # plain as well, but in no scene unless it is asked for
BOARD: RGB = (52, 66, 66)  # the dark board of the chalk style

SKIES: dict[str, tuple[RGB, RGB]] = {  # top and bottom of a vertical gradient
    "clear blue": (( 150, 205, 246), (214, 236, 252)),
    "cloudy": ((196, 206, 216), (224, 230, 236)),
    "sunset": ((244, 160, 120), (252, 214, 170)),
    "starry night": ((22, 28, 72), (56, 62, 120)),
    "pink morning": ((246, 196, 214), (254, 232, 226)),
}  # fmt: skip
GROUNDS: dict[str, RGB] = {
    "meadow": (164, 210, 124),
    "beach": (242, 224, 168),
    "sea": (112, 174, 214),
    "snow": (240, 246, 252),
    "desert": (230, 192, 132),
    "hill": (0, 0, 0),  # takes `Background.tint`
    "road": (166, 168, 172),
    "wooden floor": (204, 162, 116),
    "table": (186, 132, 88),
}
HILL_COLOURS: dict[str, RGB] = {
    "green": (104, 178, 88),
    "brown": (170, 128, 90),
    "yellow": (226, 206, 104),
    "purple": (160, 128, 190),
    "white": (236, 240, 246),
}
INDOOR = ("wooden floor", "table")

WORDS = (
    "OPEN HELLO HI YES NO STOP GO SALE CAFE TEA ZOO PARK HOME LOVE EXIT LENS FUN WOW BUS TAXI SHOP FOOD MILK CAKE "
    "BOOK TOYS GAME STAR MOON SUN CAT DOG FISH HOT COLD NEW OLD UP DOWN BIG PLAY ART MAP JOY ICE BEST KING RAIN"
).split()

SIZES = ("small", "medium", "large")
LAYOUT_WEIGHTS = {
    "single": 0.26, "pair": 0.28, "inside": 0.05, "trio": 0.10, "count": 0.14, "count_and_one": 0.07, "sign": 0.10,
}  # fmt: skip
LAYOUTS = tuple(LAYOUT_WEIGHTS)
RELATIONS = ("left of", "right of", "above", "below", "on top of", "inside")
# What a thing may be inside of, and the half-size of that thing, in the container's. Frame and bubble are never alone.
HOLES = {"ring": 0.42, "frame": 0.58, "bubble": 0.52}
CONTAINERS = tuple(HOLES)


@dataclass(frozen=True, kw_only=True)
class Thing:
    """One drawn thing. `x, y` is its centre and `r` its half-size, in short sides of the picture."""

    kind: str  # a name in KINDS, or "frame", "bubble", "sign"
    colour: str  # a name in COLOURS
    size: str  # a name in SIZES: what a caption says
    x: float
    y: float
    r: float
    mirrored: bool = False
    tilt: float = 0.0  # degrees, clockwise
    word: str | None = None  # the upper-case word on a sign


@dataclass(frozen=True, kw_only=True)
class Background:
    """`plain` names a colour of PLAIN or PAPER, or "board", and then sky and ground are None; else both are set."""

    plain: str | None = None
    sky: str | None = None  # a name in SKIES, or a name in PLAIN for the wall of a room
    ground: str | None = None  # a name in GROUNDS
    tint: str | None = None  # a name in HILL_COLOURS where the ground is a hill
    horizon: float = 0.65  # fraction of the picture's height where the ground begins
    seed: int = 0  # places of clouds, stars and tufts


@dataclass(frozen=True, kw_only=True)
class Scene:
    """`things` lists equal things one by one; `groups` gives (first index, count) of each run of equal things."""

    width: float  # in short sides: 1.0 for square and portrait pictures
    height: float
    style: str
    background: Background
    things: tuple[Thing, ...]
    groups: tuple[tuple[int, int], ...]
    layout: str
    relation: str | None = None  # of group 0 to group 1
    arrangement: str | None = None  # of a counted group: "row", "column", "two rows", "scattered"


# ---------------------------------------------------------------------------------------------------------- held out


def content_key(scene: Scene) -> str:
    """What the scene is about, independent of place, style and background."""
    parts = sorted(f"{n} {scene.things[i].colour} {scene.things[i].kind}" for i, n in scene.groups)
    return " + ".join(parts)


def is_held_out(scene: Scene) -> bool:
    """True for the 1 in 40 combinations of more than one thing that training never draws (evaluation uses them)."""
    if len(scene.things) < 2:
        return False
    return hashlib.blake2b(content_key(scene).encode(), digest_size=2).digest()[0] < 256 // 40


# ---------------------------------------------------------------------------------------------------------- sampling


def sample_scene(
    rng: random.Random,
    *,
    aspect: float = 1.0,
    layouts: tuple[str, ...] = LAYOUTS,
    weights: tuple[float, ...] | None = None,
    held_out: bool | None = False,
    flat_share: float = 0.0,
) -> Scene:
    """One random scene for a picture of `aspect` = width / height; `weights` of the layouts, None: as trained.

    `held_out`: False draws only what training may see, True only what it never sees, None anything.
    `flat_share`: probability that a scene of another style is a flat one instead.
    """
    if weights is None:
        weights = tuple(LAYOUT_WEIGHTS[layout] for layout in layouts)
    while True:
        scene = _sample_any(rng, aspect, rng.choices(layouts, weights)[0], flat_share)
        if scene is not None and (held_out is None or is_held_out(scene) == held_out):
            return scene


def _sample_any(rng: random.Random, aspect: float, layout: str, flat_share: float) -> Scene | None:
    width, height = max(1.0, aspect), max(1.0, 1 / aspect)
    style = rng.choices(STYLES, (0.34, 0.30, 0.16, 0.10, 0.10))[0]
    if flat_share and rng.random() < flat_share:  # no number is drawn for 0: the scenes of a seed stay what they were
        style = "flat"
    background = _sample_background(rng, style)
    place = {
        "single": _place_single,
        "pair": _place_pair,
        "inside": _place_inside,
        "trio": _place_trio,
        "count": _place_count,
        "count_and_one": _place_count_and_one,
        "sign": _place_sign,
    }[layout]
    placed = place(rng, width, height, background)
    if placed is None:
        return None
    things, groups, relation, arrangement = placed
    return Scene(
        width=width,
        height=height,
        style=style,
        background=background,
        things=tuple(things),
        groups=tuple(groups),
        layout=layout,
        relation=relation,
        arrangement=arrangement,
    )


_Placed = tuple[list[Thing], list[tuple[int, int]], str | None, str | None]


def _sample_background(rng: random.Random, style: str) -> Background:
    seed = rng.randrange(1 << 16)
    if style == "chalk":
        return Background(plain="board", seed=seed)
    if rng.random() < 0.38:
        return Background(plain=rng.choice(list(PLAIN)), seed=seed)
    ground = rng.choices(list(GROUNDS), (3, 2, 2, 2, 1.5, 3, 1.5, 1.5, 1.5))[0]
    sky = rng.choice(list(PLAIN)) if ground in INDOOR else rng.choices(list(SKIES), (4, 2, 2, 2, 1.5))[0]
    tint = rng.choices(list(HILL_COLOURS), (5, 1, 1, 1, 1))[0] if ground == "hill" else None
    return Background(sky=sky, ground=ground, tint=tint, horizon=rng.uniform(0.55, 0.74), seed=seed)


def _colour(rng: random.Random, background: Background, *avoid: str) -> str:
    """A colour that can be told from the background and differs from `avoid`."""
    while True:
        colour = rng.choice(list(COLOURS))
        dark = background.plain == "board" or background.sky == "starry night"
        pale = background.plain not in (None, "board") or background.ground == "snow" or background.sky in PLAIN
        if colour in avoid or (colour == "black" and dark) or (colour == "white" and pale and rng.random() < 0.7):
            continue
        return colour


def _make(
    rng: random.Random, kind: str, colour: str, size: str, x: float, y: float, r: float, word: str | None = None
) -> Thing:
    mirrored = kind in KINDS and KINDS[kind].faces and rng.random() < 0.5
    tilt = rng.uniform(-6, 6) if kind in KINDS and rng.random() < 0.5 else 0.0
    return Thing(kind=kind, colour=colour, size=size, x=x, y=y, r=r, mirrored=mirrored, tilt=tilt, word=word)


def _place_single(rng: random.Random, w: float, h: float, background: Background) -> _Placed:
    kind = rng.choice(list(KINDS))
    size = rng.choices(SIZES, (0.2, 0.4, 0.4))[0]
    r = {"small": rng.uniform(0.13, 0.17), "medium": rng.uniform(0.22, 0.28), "large": rng.uniform(0.34, 0.40)}[size]
    if rng.random() < 0.45:
        x, y = w / 2 + rng.uniform(-0.04, 0.04), h / 2 + rng.uniform(-0.04, 0.04)
    else:
        x, y = rng.uniform(r + 0.04, w - r - 0.04), rng.uniform(r + 0.04, h - r - 0.04)
        if background.ground is not None and rng.random() < 0.7:
            line = background.horizon * h
            y = (
                rng.uniform(r + 0.04, max(line - r * 0.6, r + 0.05))
                if KINDS[kind].flies
                else min(line + 0.1, h - r - 0.03)
            )
    return [_make(rng, kind, _colour(rng, background), size, x, y, r)], [(0, 1)], None, None


def _two_kinds(rng: random.Random) -> tuple[str, str]:
    first, second = rng.sample(list(KINDS), 2)
    return first, second


def _place_pair(rng: random.Random, w: float, h: float, background: Background) -> _Placed:
    first, second = _two_kinds(rng)
    one = _colour(rng, background)
    two = _colour(rng, background, *([one] if rng.random() < 0.9 else []))
    upright = ["above", "below", "on top of"]
    level = ["left of", "right of"]
    # The long side decides: a wide picture seldom stacks its things.
    relation = rng.choices(level + upright, (3, 3, 2, 2, 1) if w <= 1 else (5, 5, 1, 1, 0.5))[0]
    big, little = rng.uniform(0.19, 0.24), rng.uniform(0.12, 0.15)
    mid = rng.uniform(0.17, 0.21)
    sizes = rng.choice([("medium", "medium"), ("medium", "medium"), ("large", "small"), ("small", "large")])
    radius = {"small": little, "medium": mid, "large": big}
    ra, rb = radius[sizes[0]], radius[sizes[1]]
    if relation in level:
        xa, xb = w * 0.27 + rng.uniform(-0.04, 0.04), w * 0.73 + rng.uniform(-0.04, 0.04)
        base = h / 2 + rng.uniform(-0.12, 0.16)
        ya, yb = base + rng.uniform(-0.04, 0.04), base + rng.uniform(-0.04, 0.04)
        if relation == "right of":
            xa, xb = xb, xa
    elif relation == "on top of":
        xa = xb = w / 2 + rng.uniform(-0.12, 0.12)
        total = ra + rb
        top = (h - 2 * total) / 2 + rng.uniform(-0.05, 0.05)
        ya, yb = top + ra * 1.03, top + 2 * ra + rb * 0.97
    else:
        xa = xb = w / 2 + rng.uniform(-0.15, 0.15)
        xa, xb = xa + rng.uniform(-0.04, 0.04), xb + rng.uniform(-0.04, 0.04)
        ya, yb = h * 0.27 + rng.uniform(-0.03, 0.03), h * 0.74 + rng.uniform(-0.03, 0.03)
        if relation == "below":
            ya, yb = yb, ya
    things = [_make(rng, first, one, sizes[0], xa, ya, ra), _make(rng, second, two, sizes[1], xb, yb, rb)]
    return things, [(0, 1), (1, 1)], relation, None


def _place_inside(rng: random.Random, w: float, h: float, background: Background) -> _Placed:
    kind, container = rng.choice([k for k in KINDS if k != "ring"]), rng.choice(CONTAINERS)
    outer = rng.uniform(0.36, 0.43)
    x, y = w / 2 + rng.uniform(-0.5, 0.5) * (w - 1), h / 2 + rng.uniform(-0.5, 0.5) * (h - 1)
    one = _colour(rng, background)
    two = _colour(rng, background, one)
    inner = outer * HOLES[container]
    things = [_make(rng, kind, one, "medium", x, y, inner), _make(rng, container, two, "large", x, y, outer)]
    return things, [(0, 1), (1, 1)], "inside", None


def _place_trio(rng: random.Random, w: float, h: float, background: Background) -> _Placed:
    kinds = rng.sample(list(KINDS), 3)
    colours: list[str] = []
    for _ in kinds:
        colours.append(_colour(rng, background, *colours))
    things: list[Thing] = []
    for i, (kind, colour) in enumerate(zip(kinds, colours, strict=True)):
        r = rng.uniform(0.125, 0.15)
        if h > 1.2:
            x, y = w / 2 + rng.uniform(-0.12, 0.12), h * (0.2 + 0.3 * i) + rng.uniform(-0.02, 0.02)
        else:
            x, y = w * (0.19 + 0.31 * i) + rng.uniform(-0.01, 0.01), h / 2 + rng.uniform(-0.08, 0.12)
        things.append(_make(rng, kind, colour, "medium", x, y, r))
    return things, [(0, 1), (1, 1), (2, 1)], None, ("column" if h > 1.2 else "row")


def _arrange(
    rng: random.Random, n: int, box: tuple[float, float, float, float]
) -> tuple[list[tuple[float, float]], float, str] | None:
    """Centres and a common half-size for n things inside box (x0, y0, x1, y1)."""
    x0, y0, x1, y1 = box
    w, h = x1 - x0, y1 - y0
    if n >= 4 and w / n < 0.28:  # one row of many would make them specks
        way = rng.choices(("two rows", "scattered"), (6, 4))[0]
    else:
        way = rng.choices(("row", "column", "scattered"), (5, 1 if n < 4 else 0, 4) if w >= h * 0.9 else (1, 4, 4))[0]
    if way == "two rows":
        top = (n + 1) // 2
        r = min(w / top / 2 * 0.84, h / 4 * 0.84, 0.2)
        at = [(x0 + w * (i + 0.5) / top, y0 + h * 0.26) for i in range(top)]
        at += [(x0 + w * (i + 0.5) / (n - top), y0 + h * 0.74) for i in range(n - top)]
        return [(x + rng.uniform(-0.015, 0.015), y + rng.uniform(-0.015, 0.015)) for x, y in at], r, way
    if way == "row":
        r = min(w / n / 2 * 0.86, h / 2 * 0.8, 0.2)
        y = y0 + h / 2 + rng.uniform(-0.3, 0.3) * max(0.0, h / 2 - r)
        return [(x0 + w * (i + 0.5) / n, y + rng.uniform(-0.015, 0.015)) for i in range(n)], r, way
    if way == "column":
        r = min(h / n / 2 * 0.86, w / 2 * 0.8, 0.2)
        x = x0 + w / 2 + rng.uniform(-0.3, 0.3) * max(0.0, w / 2 - r)
        return [(x + rng.uniform(-0.015, 0.015), y0 + h * (i + 0.5) / n) for i in range(n)], r, way
    r = min(0.17, 0.34 * (w * h / n) ** 0.5)
    for _ in range(60):
        at = [(rng.uniform(x0 + r, x1 - r), rng.uniform(y0 + r, y1 - r)) for _ in range(n)]
        if all((ax - bx) ** 2 + (ay - by) ** 2 > (2.25 * r) ** 2 for i, (ax, ay) in enumerate(at) for bx, by in at[:i]):
            return at, r, way
    return None


def _counted(
    rng: random.Random, n: int, kind: str, colour: str, box: tuple[float, float, float, float]
) -> tuple[list[Thing], str] | None:
    arranged = _arrange(rng, n, box)
    if arranged is None:
        return None
    centres, r, way = arranged
    r *= rng.uniform(0.88, 1.0)
    size = "small" if r < 0.125 else "medium" if r < 0.2 else "large"
    mirrored = rng.random() < 0.5 and KINDS[kind].faces
    return [Thing(kind=kind, colour=colour, size=size, x=x, y=y, r=r, mirrored=mirrored) for x, y in centres], way


def _place_count(rng: random.Random, w: float, h: float, background: Background) -> _Placed | None:
    n = rng.choice((2, 3, 4, 5))
    made = _counted(rng, n, rng.choice(list(KINDS)), _colour(rng, background), (0.05, 0.06, w - 0.05, h - 0.06))
    return None if made is None else (made[0], [(0, n)], None, made[1])


def _place_count_and_one(rng: random.Random, w: float, h: float, background: Background) -> _Placed | None:
    n = rng.choice((2, 3, 4))
    first, second = _two_kinds(rng)
    one = _colour(rng, background)
    two = _colour(rng, background, one)
    relation = rng.choice(("above", "below") if h >= w * 0.8 else ("left of", "right of", "above", "below"))
    cut = 0.5
    boxes = {
        "above": ((0.05, 0.05, w - 0.05, h * cut - 0.02), (w / 2, h * 0.76)),
        "below": ((0.05, h * cut + 0.02, w - 0.05, h - 0.05), (w / 2, h * 0.25)),
        "left of": ((0.05, 0.1, w * 0.6, h - 0.1), (w * 0.8, h / 2)),
        "right of": ((w * 0.4, 0.1, w - 0.05, h - 0.1), (w * 0.2, h / 2)),
    }
    box, (x, y) = boxes[relation]
    made = _counted(rng, n, first, one, box)
    if made is None:
        return None
    other = _make(rng, second, two, "medium", x + rng.uniform(-0.1, 0.1), y, rng.uniform(0.16, 0.2))
    return [*made[0], other], [(0, n), (n, 1)], relation, made[1]


def _sign_word(rng: random.Random) -> str:
    if rng.random() < 0.5:
        return rng.choice(WORDS)
    n = rng.choice((2, 3, 3, 4, 4, 5))
    return "".join(rng.choice("AEIOU" if (i + n) % 2 else "BCDFGHJKLMNPRSTVWXYZ") for i in range(n))


def _with_q(word: str, background: Background) -> str:
    """One in ten made-up words with a Q in place of a consonant.

    By the background's seed and not by `rng`: a scene of a seed has what it always had beside its word.
    """
    if word in WORDS or background.seed % 10:
        return word
    places = [i for i, letter in enumerate(word) if letter not in "AEIOU"]
    at = places[background.seed // 10 % len(places)]
    return word[:at] + "Q" + word[at + 1 :]


def _place_sign(rng: random.Random, w: float, h: float, background: Background) -> _Placed:
    word = _with_q(_sign_word(rng), background)
    colour = _colour(rng, background, "white")
    if rng.random() < 0.55:
        r = rng.uniform(0.38, 0.46)
        x = rng.uniform(r + 0.02, w - r - 0.02)
        return (
            [_make(rng, "sign", colour, "large", x, h * 0.5 + rng.uniform(-0.03, 0.06), r, word)],
            [(0, 1)],
            None,
            None,
        )
    kind = rng.choice(list(KINDS))
    other = _colour(rng, background, colour)
    if w > 1.2:
        relation = rng.choice(("left of", "right of"))
        xs = (w * 0.7, w * 0.22) if relation == "right of" else (w * 0.3, w * 0.8)
        sign = _make(rng, "sign", colour, "large", xs[0], h * 0.5, 0.4, word)
        thing = _make(rng, kind, other, "medium", xs[1], h * 0.55, rng.uniform(0.17, 0.2))
    else:
        relation = rng.choice(("above", "below"))
        sign_y, thing_y = (h * 0.3, h * 0.8) if relation == "above" else (h * 0.72, h * 0.2)
        sign = _make(rng, "sign", colour, "large", w / 2, sign_y, 0.38, word)
        thing = _make(rng, kind, other, "medium", w / 2 + rng.uniform(-0.2, 0.2), thing_y, rng.uniform(0.15, 0.17))
    return [sign, thing], [(0, 1), (1, 1)], relation, None
