"""Which rubrics are worth a rollout: verdicts of a pilot, before training, tell those that cannot teach anything.

Within a group of pictures of one prompt only differences count (the reward is centred on the group's mean). A rubric
that all pictures pass, or none, adds nothing; one that is passed by the pictures that fail the others, or answered one
way and the other about the same picture, adds noise. (Rubrics checked before use: arXiv 2605.08354, 2605.17602.)

The global rubric is judged and told, and never dropped.

Light ring: standard library only.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from backend.errors import FileError, UsageError, os_reason
from backend.foreign import documents
from train.rl.prompts.prompt_set import Prompt, PromptSet, Rubric

Answers = Mapping[str, Sequence[bool | None]]  # picture -> what the judge said of it, once or more often


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A judge's answer to one rubric about one picture."""

    prompt: str  # id
    picture: str  # any name; the same for repeated verdicts about the same picture
    rubric: str  # its text
    passed: bool | None  # None: missing, which is neither yes nor no


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """When a rubric is dropped."""

    least_pictures: int = 8  # with a verdict; with fewer nothing is said of a rubric, and it stays
    always: float = 0.97  # passed by this share of the pictures, or more
    never: float = 0.03  # passed by this share, or less
    most_missing: float = 0.5  # of its verdicts
    least_link: float = 0.0  # the correlation with the prompt's other rubrics is certainly below this
    certainty: float = 1.645  # standard errors that make "certainly": 95 % on one side
    most_flips: float = 0.3  # of pictures judged more than once, those about which the judge is not of one mind


@dataclass(frozen=True, kw_only=True)
class PilotOutcome:
    """What the pilot says of one rubric of one prompt."""

    prompt: str
    rubric: Rubric
    pictures: int  # with a verdict
    missing: float  # share of its verdicts
    passed: float | None  # share of its pictures; None: none has a verdict
    link: float | None  # correlation with the prompt's other useful rubrics; None: not asked, or one never differs
    flips: float | None  # None: no picture was judged more than once
    why: str | None  # it is dropped; None: it stays
    remark: str | None = None  # of a rubric that stays


def judge_rubrics(
    prompts: PromptSet, verdicts: Iterable[Verdict], thresholds: Thresholds | None = None
) -> list[PilotOutcome]:
    """One outcome for every rubric of a prompt with verdicts, in the order of the set.

    Raises UsageError for a verdict about a prompt or a rubric that is not in the set.
    """
    thresholds = thresholds or Thresholds()
    known = {prompt.id: {rubric.text for rubric in prompt.rubrics} for prompt in prompts.prompts}
    by_prompt: dict[str, dict[str, dict[str, list[bool | None]]]] = {}
    for verdict in verdicts:
        if verdict.rubric not in known.get(verdict.prompt, ()):
            what = f"rubric {verdict.rubric!r}" if verdict.prompt in known else "prompt"
            raise UsageError(
                f"there is a verdict about {verdict.prompt!r}, and no such {what} in the set",
                hint="the pilot was drawn with other prompts",
            )
        rubrics = by_prompt.setdefault(verdict.prompt, defaultdict(lambda: defaultdict(list)))
        rubrics[verdict.rubric][verdict.picture].append(verdict.passed)
    return [
        outcome
        for prompt in prompts.prompts
        if prompt.id in by_prompt
        for outcome in _judge_one(prompt, by_prompt[prompt.id], thresholds)
    ]


def without_dropped(prompts: PromptSet, outcomes: Iterable[PilotOutcome]) -> tuple[PromptSet, list[str]]:
    """(the set without the rubrics that were dropped, ids of prompts left out since no rubric of their own is left)."""
    dropped = {(outcome.prompt, outcome.rubric.text) for outcome in outcomes if outcome.why is not None}
    kept = [
        replace(prompt, rubrics=tuple(r for r in prompt.rubrics if (prompt.id, r.text) not in dropped))
        for prompt in prompts.prompts
    ]
    bare = [prompt.id for prompt in kept if all(rubric.kind == "global" for rubric in prompt.rubrics)]
    return PromptSet(tuple(prompt for prompt in kept if prompt.id not in set(bare))), bare


def read_verdicts(path: Path) -> list[Verdict]:
    """Read lines of `{"prompt": …, "picture": …, "rubric": …, "passed": true | false | null}`. Raises FileError."""
    try:
        lines = path.read_text("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = os_reason(error) if isinstance(error, OSError) else "it is not UTF-8 text"
        raise FileError(f"cannot read {path}: {reason}") from error
    found: list[Verdict] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            said: Any = documents.parse_json(line)
        except documents.Unreadable as error:
            raise FileError(f"{path}, line {number}: {str(error).removeprefix('is ')}") from None
        if not isinstance(said, dict) or set(said) != {"prompt", "picture", "rubric", "passed"}:
            raise FileError(f"{path}, line {number}: a verdict has the keys prompt, picture, rubric and passed")
        if bad := [key for key in ("prompt", "picture", "rubric") if not isinstance(said[key], str)]:
            raise FileError(f"{path}, line {number}: {bad[0]} is {said[bad[0]]!r}, not a text")
        if not (said["passed"] is None or isinstance(said["passed"], bool)):
            raise FileError(f"{path}, line {number}: passed is {said['passed']!r}, not true, false or null")
        found.append(Verdict(**said))
    return found


def _means(table: Answers) -> dict[str, float]:
    """Picture -> share of its verdicts that say yes; pictures without one are left out."""
    valid = {picture: [passed for passed in said if passed is not None] for picture, said in table.items()}
    return {picture: sum(said) / len(said) for picture, said in valid.items() if said}


def _judge_one(prompt: Prompt, tables: Mapping[str, Answers], thresholds: Thresholds) -> list[PilotOutcome]:
    """Faults of each rubric by itself first; of the others the one that goes most against the rest, until none does."""
    found = {
        rubric.text: _alone(prompt.id, rubric, tables.get(rubric.text, {}), thresholds) for rubric in prompt.rubrics
    }
    shares = {text: _means(tables.get(text, {})) for text in found}
    live = [text for text, outcome in found.items() if outcome.why is outcome.remark is None]
    while True:
        links = {text: _link(text, live, shares) for text in live}
        against = {text: high for text in live if (high := _highest(links[text], found[text], thresholds)) is not None}
        for text in live:
            found[text] = replace(found[text], link=links[text])
        worst = min(against, key=lambda text: against[text], default=None)
        if worst is None or against[worst] >= thresholds.least_link:
            break
        why = f"does not separate: it goes against the other rubrics (correlation {links[worst]:+.2f})"
        found[worst] = replace(found[worst], why=why)
        live.remove(worst)
    return [_spared(outcome) if outcome.rubric.kind == "global" else outcome for outcome in found.values()]


def _spared(outcome: PilotOutcome) -> PilotOutcome:
    return replace(outcome, why=None, remark=outcome.why or outcome.remark)


def _alone(prompt: str, rubric: Rubric, table: Answers, thresholds: Thresholds) -> PilotOutcome:
    """What the verdicts about one rubric say without the others."""
    mine = _means(table)
    said = [passed for verdicts in table.values() for passed in verdicts]
    repeated = [{p for p in verdicts if p is not None} for verdicts in table.values() if len(verdicts) > 1]
    outcome = PilotOutcome(
        prompt=prompt,
        rubric=rubric,
        pictures=len(mine),
        missing=said.count(None) / len(said) if said else 0.0,
        passed=sum(mine.values()) / len(mine) if mine else None,
        link=None,
        flips=sum(len(answers) > 1 for answers in repeated) / len(repeated) if repeated else None,
        why=None,
    )
    if fault := _fault(outcome, thresholds):
        return replace(outcome, why=fault)
    few = len(mine) < thresholds.least_pictures
    return replace(outcome, remark=f"only {len(mine)} pictures have a verdict" if few else None)


def _fault(outcome: PilotOutcome, thresholds: Thresholds) -> str | None:
    if outcome.missing > thresholds.most_missing:
        return f"{outcome.missing:.0%} of its verdicts are missing"
    if outcome.passed is None or outcome.pictures < thresholds.least_pictures:
        return None
    if outcome.passed >= thresholds.always:
        return f"always true: {outcome.passed:.0%} of {outcome.pictures} pictures"
    if outcome.passed <= thresholds.never:
        return f"never true: {outcome.passed:.0%} of {outcome.pictures} pictures"
    if outcome.flips is not None and outcome.flips > thresholds.most_flips:
        return f"does not separate: asked again, the judge changes its mind about {outcome.flips:.0%} of the pictures"
    return None


def _link(text: str, live: Sequence[str], shares: Mapping[str, Mapping[str, float]]) -> float | None:
    """Correlation over pictures with the mean of the other live rubrics, each less its own mean: a picture about which
    some verdicts are missing is not taken for a better or a worse one."""
    others: dict[str, list[float]] = defaultdict(list)
    for other in live:
        mean = sum(shares[other].values()) / max(1, len(shares[other]))
        for picture, share in shares[other].items():
            if other != text and picture in shares[text]:
                others[picture].append(share - mean)
    return _correlation([(shares[text][picture], sum(row) / len(row)) for picture, row in others.items()])


def _highest(link: float | None, outcome: PilotOutcome, thresholds: Thresholds) -> float | None:
    """The upper end of the link's interval (Fisher's z), or None where there is none."""
    if link is None or outcome.pictures <= 3:
        return None
    z = math.atanh(max(-0.999, min(0.999, link)))
    return math.tanh(z + thresholds.certainty / math.sqrt(outcome.pictures - 3))


def _correlation(pairs: list[tuple[float, float]]) -> float | None:
    """Pearson's; None where one of the two never differs."""
    if len(pairs) < 2:
        return None
    mean_x, mean_y = (sum(values) / len(pairs) for values in zip(*pairs, strict=True))
    xx = sum((x - mean_x) ** 2 for x, _ in pairs)
    yy = sum((y - mean_y) ** 2 for _, y in pairs)
    if xx < 1e-12 or yy < 1e-12:
        return None
    return sum((x - mean_x) * (y - mean_y) for x, y in pairs) / math.sqrt(xx * yy)
