"""What goes wrong under a system prompt, as themes and as text: what a writer is shown (paper section 2.5: "textual
summaries of failure cases").

A failure is put down to the prompt only where the prompt can be at fault: a rewrite that lost or changed something, or
a theme that fails again and again. What the judge was unsure about is left out. Texts of requests are examples here and
nothing else: a candidate that repeats them is refused (`train.search.checks`).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from backend.reasoner.answers import missing_quotes
from train.rl.prompts.near import normal_form
from train.search.evaluator import Sample, question_of
from train.search.requests import Request

# Kinds of rubrics in the words of `prompts.guidelines.THEMES`.
THEME_OF = {
    "item": "missing thing", "count": "counting", "color": "colours", "spatial": "position", "text": "text",
    "attribute": "look", "interaction": "position", "global": "background",
}  # fmt: skip
EXAMPLES = 2  # of a theme
REFUSAL, UNUSABLE = "refusal", "unusable answer"
_NUMBERS: list[str] = [*"one two three four five six seven eight nine ten".split()]
_COLOURS = "red orange yellow green blue purple pink brown black white gray grey".split()


@dataclass(frozen=True, kw_only=True)
class Failure:
    """One picture that lacks something."""

    theme: str
    request: str  # its text
    rewrite: str
    lacks: str  # the rubric that does not hold, or the reason
    lost: str  # what the rewrite itself lost; empty: the rewrite is faithful


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """The failures of some pictures, by theme, the most frequent first."""

    pictures: int
    mean: float | None  # score
    themes: Mapping[str, tuple[Failure, ...]]
    strong: Mapping[str, float]  # themes that hold nearly always, with their share

    def counts(self) -> dict[str, int]:
        return {theme: len(failures) for theme, failures in self.themes.items()}

    def text(self) -> str:
        """Markdown for a writer."""
        mean = "none" if self.mean is None else f"{self.mean:.3f}"
        lines = [f"{self.pictures} pictures, mean score {mean} of 1."]
        if not self.themes:
            lines.append("Nothing failed.")
        for theme, failures in self.themes.items():
            lost = sum(bool(failure.lost) for failure in failures)
            about = f" ({lost} of them already lost in the rewrite)" if lost else ""
            lines += ["", f"## {theme}: {len(failures)} failures{about}"]
            for failure in failures[:EXAMPLES]:
                lines.append(f"- request: {failure.request}")
                lines.append(f"  rewrite: {failure.rewrite or '(none)'}")
                lines.append(f"  fails: {failure.lacks}" + (f"; the rewrite lost {failure.lost}" * bool(failure.lost)))
        if self.strong:
            kept = ", ".join(f"{theme} ({share:.0%})" for theme, share in self.strong.items())
            lines += ["", f"Keep what makes these hold: {kept}."]
        return "\n".join(lines)


def analyse(requests: Sequence[Request], samples: Sequence[Sequence[Sample]]) -> Analysis:
    """Look at the samples of requests, those of one request together. Deterministic."""
    themes: dict[str, list[Failure]] = defaultdict(list)
    held: dict[str, list[float]] = defaultdict(list)
    flat = [sample for row in samples for sample in row]
    for request, row in zip(requests, samples, strict=True):
        question = question_of(request)
        for sample in row:
            if sample.status in ("refused", "unusable"):
                theme = REFUSAL if sample.status == "refused" else UNUSABLE
                themes[theme].append(_failure(theme, request, sample, sample.reason))
                continue
            asked = [*zip(question.rubrics, question.kinds, strict=True), (question.overall or "", "global")]
            for (rubric, kind), answer in zip(asked, (*sample.answers, sample.overall), strict=False):
                if answer is None:
                    continue
                theme = THEME_OF.get(kind, "look")
                held[theme].append(answer)
                if answer < 0.5:
                    themes[theme].append(_failure(theme, request, sample, rubric))
    scores = [sample.score for sample in flat if sample.score is not None]
    order = sorted(themes, key=lambda theme: (-len(themes[theme]), theme))
    # First those whose rewrite is at fault: a system prompt can mend these.
    sorted_themes = {t: tuple(sorted(themes[t], key=lambda f: (not f.lost, f.request))) for t in order}
    strong = {t: sum(v) / len(v) for t, v in sorted(held.items()) if len(v) >= 5 and sum(v) / len(v) >= 0.95}
    return Analysis(
        pictures=len(flat), mean=sum(scores) / len(scores) if scores else None, themes=sorted_themes, strong=strong
    )


def _failure(theme: str, request: Request, sample: Sample, lacks: str) -> Failure:
    lost = lost_content(request.prompt, sample.prompt) if sample.prompt else ""
    return Failure(theme=theme, request=request.prompt, rewrite=sample.prompt, lacks=lacks, lost=lost)


def lost_content(request: str, rewrite: str) -> str:
    """What a rewrite visibly lost of its request: quoted words, number words, colours; empty: nothing of these.

    A plain comparison of texts: it does not see that a thing was renamed or a relation turned round.
    """
    if missing := missing_quotes(request, rewrite):
        return f'the words "{missing[0]}"'
    asked, said = set(normal_form(request).split()), set(normal_form(rewrite).split())
    for kind, words in (("the number", _NUMBERS[1:]), ("the colour", _COLOURS)):
        if gone := [word for word in words if word in asked and word not in said]:
            if kind == "the number" and str(_NUMBERS.index(gone[0]) + 1) in said:
                continue
            return f"{kind} {gone[0]}"
    if digits := [n for n in re.findall(r"\b\d+\b", request) if n not in re.findall(r"\b\d+\b", rewrite)]:
        return f"the number {digits[0]}"
    return ""
