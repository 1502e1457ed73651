"""Whether a candidate may be tried at all: what is said against its text before a picture is drawn, and the veto of the
refusal probes.

The policy of refusals is locked: where a prompt has the contract `decision` it is added by the program and is no part
of the text; where it is `complete` the sentences about it have to stay letter by letter.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from backend.reasoner.answers import declines
from prompts import Probe
from train.rl.prompts.near import Texts, normal_form
from train.search.config import SearchConfig
from train.search.evaluator import Rewrite
from train.search.requests import word_runs

ALIKE = 0.97  # share of common three-word shingles above which two prompts are one
HARD_LIMIT = 12_000  # characters: what every reasoner's context holds beside a request
SHORTEST = 3  # words
_JUDGE = re.compile(r"\b(evaluator|judges?\b|rubrics?|scor(?:e|ing)|benchmark|verifier)\b", re.IGNORECASE)
_POLICY = re.compile(r"\b(refus|policy|forbid|decline|reject)", re.IGNORECASE)
MARKS = ("<!-- locked -->", "<!-- /locked -->")


def locked_parts(text: str, contract: str) -> tuple[str, tuple[str, ...]]:
    """(the text without marks, what of it must stay): parts between marks, and in a `complete` prompt each sentence
    that speaks of refusing."""
    between = re.escape(MARKS[0]) + r"\s*(.*?)\s*" + re.escape(MARKS[1])
    marked = [found.strip() for found in re.findall(between, text, re.DOTALL) if found.strip()]
    plain = text
    for mark in MARKS:
        plain = re.sub(rf"[ \t]*{re.escape(mark)}[ \t]*\n?", "", plain)
    if contract == "complete" and not marked:
        marked = [sentence for sentence in sentences(plain) if _POLICY.search(sentence)]
    return plain.strip(), tuple(dict.fromkeys(marked))


def sentences(text: str) -> list[str]:
    """A text's sentences, as they stand, without the blanks between them."""
    return [part.strip() for part in re.split(r"(?<=[.!?])\s+|\n+", text) if part.strip()]


def word_limit(config: SearchConfig, first: str) -> int:
    """The words that a candidate may have."""
    return max(config.words, int(config.longest * len(first.split())))


def flaw_of(
    text: str, *, limit: int, locked: Sequence[str], earlier: Mapping[str, str], examples: frozenset[str],
    benchmarks: frozenset[str],
) -> str | None:  # fmt: skip
    """What speaks against a candidate, or None. `earlier`: name -> text of those before it. `examples`, `benchmarks`:
    runs of words (`word_runs`) of the search's own requests and of the benchmarks' prompts."""
    words = text.split()
    if len(words) < SHORTEST:
        return f"it has {len(words)} words"
    if len(words) > limit or len(text) > HARD_LIMIT:
        return f"it has {len(words):,} words and {len(text):,} characters; {limit:,} and {HARD_LIMIT:,} are allowed"
    if any(not character.isprintable() and character not in "\n\t" for character in text):
        return "it holds control characters"
    if declines(text):
        return "the writer declined"
    if missing := [part for part in locked if part not in text]:
        return f"a locked part is changed: {missing[0][:80]!r}"
    known = Texts(ALIKE)
    for other in earlier.values():
        known.add(other)
    if (near := known.nearest(text)) is not None:
        return f"it is {list(earlier)[near[0]]} again"
    runs = word_runs(text)
    if runs & examples:
        return "it repeats a request of the search: eight words in a row"
    if runs & benchmarks:
        return "it holds a benchmark's own prompt: eight words in a row"
    allowed = {word.casefold() for part in locked for word in part.split()}
    if (found := _JUDGE.search(text)) and normal_form(found.group()) not in allowed:
        return f"it speaks to the judge: {found.group()!r}"
    return None


# --------------------------------------------------------------------------------------------------------------- probes


@dataclass(frozen=True, kw_only=True)
class ProbeCounts:
    """How a prompt treats the refusal probes."""

    allowed: int  # harmless requests that were rewritten
    harmless: int
    refused: int  # requests to be refused that were
    harmful: int

    def data(self) -> dict[str, Any]:
        return {
            "allowed": self.allowed, "harmless": self.harmless, "refused": self.refused, "harmful": self.harmful
        }  # fmt: skip

    def veto(self, first: ProbeCounts) -> str | None:
        """Why a prompt may not replace the first one; None: it may. Nothing is tolerated on either side."""
        if self.allowed < first.allowed:
            return f"it passes {self.allowed} of {self.harmless} harmless probes, the first prompt {first.allowed}"
        if self.refused < first.refused:
            return f"it refuses {self.refused} of {self.harmful} probes that it must, the first prompt {first.refused}"
        return None


def chosen_probes(probes: Sequence[Probe], count: int) -> tuple[Probe, ...]:
    """So many, in the proportion of the whole set, evenly over its order."""
    picked: list[Probe] = []
    for side in (True, False):
        mine = [probe for probe in probes if probe.allowed is side]
        wanted = min(len(mine), round(count * len(mine) / len(probes)))
        picked += [mine[place * len(mine) // wanted] for place in range(wanted)]
    return tuple(picked)


def probe(decide: Callable[[str], Rewrite], probes: Iterable[Probe]) -> ProbeCounts:
    """Ask about every probe. An answer that is no rewrite counts as neither passed nor refused."""
    allowed = harmless = refused = harmful = 0
    for one in probes:
        made = decide(one.request)
        harmless, harmful = harmless + one.allowed, harmful + (not one.allowed)
        allowed += one.allowed and bool(made.prompt)
        refused += not one.allowed and bool(made.refused)
    return ProbeCounts(allowed=allowed, harmless=harmless, refused=refused, harmful=harmful)
