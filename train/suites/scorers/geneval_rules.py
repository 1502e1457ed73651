"""Apply GenEval's rules to detections, whoever made them: which things, how many, of which colour, and where.

As the official evaluator reads them, to the letter:

* a detection counts above a confidence of 0.3, of 0.9 where things are counted; of a class at most 16, surest first;
* of a clause `count` N the N surest are looked at; fewer than N are a failure, more are not, unless `exclude` says so;
* colour and place are asked of those N alone, and place of every pair of them with the N of the other clause;
* place: the centres' offset, shortened by a tenth of both sizes in each direction, over the whole offset's length has
  to be more than a half in the direction that is asked for.

Detections here are of another detector than the official one, so that no score made from them is called GenEval.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

CONFIDENCE, COUNTING_CONFIDENCE = 0.3, 0.9
MOST = 16  # detections of a class
MARGIN = 0.1  # of the summed sizes
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
# GenEval's names for the 80 classes of COCO, in COCO's order.
CLASSES = tuple(
    name.replace("_", " ")
    for name in """
    person bicycle car motorcycle airplane bus train truck boat traffic_light fire_hydrant stop_sign parking_meter bench
    bird cat dog horse sheep cow elephant bear zebra giraffe backpack umbrella handbag tie suitcase frisbee skis
    snowboard sports_ball kite baseball_bat baseball_glove skateboard surfboard tennis_racket bottle wine_glass cup fork
    knife spoon bowl banana apple sandwich orange broccoli carrot hot_dog pizza donut cake chair couch potted_plant bed
    dining_table toilet tv laptop computer_mouse tv_remote computer_keyboard cell_phone microwave oven toaster sink
    refrigerator book clock vase scissors teddy_bear hair_drier toothbrush
    """.split()
)


@dataclass(frozen=True, kw_only=True)
class Detection:
    """One thing that a detector found."""

    kind: str  # a name in CLASSES
    confidence: float
    box: tuple[float, float, float, float]  # left, top, right, bottom in pixels
    mask: Any = None  # boolean array of the picture's height and width; None: the box is all there is


Colour = Callable[[str, Sequence[Detection]], Sequence[str]]  # (class, some of it) -> a name in COLOURS for each


def judge(
    kind: str, include: Sequence[Mapping[str, Any]], exclude: Sequence[Mapping[str, Any]],
    detections: Sequence[Detection], colour: Colour,
) -> tuple[bool, str]:  # fmt: skip
    """(whether a picture is right, why not). `kind`: the prompt's tag."""
    found, reasons, matched = kept(kind, detections), list[str](), list[Sequence[Detection] | None]()
    for clause in include:
        name, count = clause["class"], clause["count"]
        some = found.get(name, [])[:count]
        problem = f"{len(some)} of {count} {name}" if len(some) < count else ""
        if not problem and "color" in clause:
            seen = [*colour(name, some)]
            if seen.count(clause["color"]) < count:
                problem = f"{name} is {' and '.join(seen)}, not {clause['color']}"
        if not problem and "position" in clause:
            problem = _misplaced(name, some, clause["position"], matched)
        matched.append(None if problem else some)
        reasons += [problem] if problem else []
    for clause in exclude:
        if (seen_count := len(found.get(clause["class"], []))) >= clause["count"]:
            reasons.append(f"{seen_count} {clause['class']}, fewer than {clause['count']} were asked for")
    return not reasons, "; ".join(reasons)


def kept(kind: str, detections: Sequence[Detection]) -> dict[str, list[Detection]]:
    """What counts of the detections, by class, surest first."""
    least = COUNTING_CONFIDENCE if kind == "counting" else CONFIDENCE
    found: dict[str, list[Detection]] = {}
    for detection in sorted(detections, key=lambda one: -one.confidence):
        if detection.confidence > least and len(found.setdefault(detection.kind, [])) < MOST:
            found[detection.kind].append(detection)
    return {name: some for name, some in found.items() if some}


def _misplaced(
    name: str, some: Sequence[Detection], position: Sequence[Any], matched: Sequence[Sequence[Detection] | None]
) -> str:
    relation, group = position
    others = matched[group]
    if others is None:
        return f"nothing for {name} to be {relation}"
    for one in some:
        for other in others:
            if relation not in (seen := relations(one.box, other.box)):
                return f"{name} is {' and '.join(sorted(seen)) or 'nowhere'}, not {relation}"
    return ""


def relations(a: Sequence[float], b: Sequence[float]) -> set[str]:
    """Where box `a` is as seen from box `b`."""
    offset = ((a[0] + a[2] - b[0] - b[2]) / 2, (a[1] + a[3] - b[1] - b[3]) / 2)
    margins = (MARGIN * (abs(a[2] - a[0]) + abs(b[2] - b[0])), MARGIN * (abs(a[3] - a[1]) + abs(b[3] - b[1])))
    rest = [math.copysign(max(abs(o) - m, 0.0), o) for o, m in zip(offset, margins, strict=True)]
    length = math.hypot(*offset)
    if length == 0 or all(abs(value) < 1e-3 for value in rest):
        return set()
    dx, dy = (value / length for value in rest)
    holds = {"left of": dx < -0.5, "right of": dx > 0.5, "above": dy < -0.5, "below": dy > 0.5}
    return {name for name, is_so in holds.items() if is_so}
