"""A model that writes prompts and rubrics, behind any endpoint: what it is asked, and whether an answer can be used.

Two questions a prompt: its text, then its rubrics. Every answer goes into a journal as it came, before anybody judges
it. So a run that was killed goes on where it was, nothing is asked twice, and other rules about what is usable cost
nothing for what is there.

Light ring: standard library only.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from backend.reasoner.answers import declines
from prompts import rubric_text
from train.rl.prompts.checks import Rules, prompt_flaws, rubric_flaws, text_flaws
from train.rl.prompts.grammar import MOST_RUBRICS, Draw, global_rubric
from train.rl.prompts.journal import Journal
from train.rl.prompts.near import normal_form
from train.rl.prompts.prompt_set import RUBRIC_KINDS, Prompt, Rubric
from train.rl.prompts.wording import QUOTED, head, plural

Message = dict[str, str]  # {"role": …, "content": …}


class Ask(Protocol):
    """One question to a model. What it raises ends the run; what was answered before is in the journal."""

    def __call__(self, messages: list[Message], /) -> str: ...


@dataclass(frozen=True, kw_only=True)
class Writer:
    """The model that writes."""

    name: str  # its answers are told from those of others by it
    ask: Ask
    journal: Path  # every answer, a line of JSON each


class Unusable(Exception):
    """No attempt gave a usable answer. `str(error)` says what the last one lacked."""


class BudgetSpent(Exception):
    """The run may ask no more questions."""


class Desk:
    """Writes prompts with a model. Safe from several threads."""

    def __init__(self, writer: Writer, rules: Rules, attempts: int, calls: int | None) -> None:
        self._writer = writer
        self._rules = rules
        self._attempts = attempts
        self._calls = calls  # that may be asked; None: as many as it takes
        self._journal = Journal(writer.journal)
        self._lock = threading.Lock()
        self.asked = 0

    def write(self, draw: Draw) -> Prompt:
        """Raises Unusable, BudgetSpent, and what the writer raises."""
        instructions, questions, rules = rubric_text("write"), rubric_text("questions"), self._rules
        text = self._answer(draw.k, instructions.body, _about(draw), lambda said: _flaw_of_text(said, draw, rules))
        prompt = Prompt(
            id=draw.id,
            prompt=text,
            category=draw.category.name,
            subcategory=draw.subcategory.name,
            item=draw.item,
            dimensions=tuple(dimension.name for dimension in draw.dimensions),
            rubrics=(global_rubric(),),
            sensitive=draw.subcategory.sensitive,
            writer=f"{self._writer.name} {instructions.sha256[:8]} {questions.sha256[:8]}",
        )
        said = self._answer(draw.k, questions.body, text, lambda said: _flaw_of_rubrics(said, prompt, rules))
        return replace(prompt, rubrics=(*parse_rubrics(said), global_rubric()))

    def _answer(self, k: int, system: str, user: str, flaw: Callable[[str], str | None]) -> str:
        """The first usable answer; each attempt is told what the one before lacked. Asks what is not in the journal."""
        messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
        lacks: str | None = None
        for _ in range(self._attempts):
            said = _tidy(self._said(k, messages))
            if (lacks := flaw(said)) is None:
                return said
            again = f"This cannot be used: {lacks}. Answer again, in the form that was asked for."
            messages = [*messages, {"role": "assistant", "content": said}, {"role": "user", "content": again}]
        raise Unusable(str(lacks))

    def _said(self, k: int, messages: list[Message]) -> str:
        key = hashlib.sha256(json.dumps([self._writer.name, k, messages]).encode()).hexdigest()
        if (known := self._journal.get(key)) is not None:
            return known
        with self._lock:
            if self._calls is not None and self.asked >= self._calls:
                raise BudgetSpent
            self.asked += 1
        said = self._writer.ask(messages)
        self._journal.add(key, said)
        return said


def _about(draw: Draw) -> str:
    """What the model is told of a draw."""
    lines = [f"Item: {draw.item}", f"Category: {draw.category.title} / {draw.subcategory.title}", "Dimensions:"]
    pairs = zip(draw.dimensions, draw.ways, strict=True)
    return "\n".join([*lines, *(f"- {dimension.title} ({dimension.meaning}): {way.ask}" for dimension, way in pairs)])


def _tidy(text: str) -> str:
    """The answer without a code fence or marks around the whole."""
    text = text.strip()
    if text.startswith("```") and text.endswith("```"):
        text = text.partition("\n")[2].removesuffix("```").strip()
    if text[:1] == '"' == text[-1:] and text.count('"') == 2:
        text = text[1:-1].strip()
    return text


def _flaw_of_text(said: str, draw: Draw, rules: Rules) -> str | None:
    """What speaks against a prompt that a model wrote, or None."""
    if declines(said):
        return "it declines"
    if flaw := next(text_flaws(said, rules), None):
        return flaw
    if "\n" in said.strip():
        return "it is not one paragraph"
    if missing := [words for words in QUOTED.findall(draw.item) if words not in said]:
        return f"it lacks the words {missing[0]}"
    if not QUOTED.search(draw.item) and QUOTED.search(said):
        return "it asks for words in the picture, and none were given"
    noun = QUOTED.sub("", head(draw.item).split(" of ")[0]).split()[-1]
    words = f" {normal_form(said)} "
    if not any(f" {normal_form(form)} " in words for form in (noun, plural(noun))):
        return f"it does not name the {noun}"
    return None


def _flaw_of_rubrics(said: str, prompt: Prompt, rules: Rules) -> str | None:
    """What speaks against the rubrics that a model wrote, or None."""
    try:
        rubrics = parse_rubrics(said)
    except ValueError as error:
        return str(error)
    if len(rubrics) != MOST_RUBRICS:
        return f"{len(rubrics)} questions, not {MOST_RUBRICS}"
    if lacking := [name for name in prompt.dimensions if name not in {rubric.kind for rubric in rubrics}]:
        return f"no question of the kind {lacking[0]}"
    if flaw := next(rubric_flaws(rubrics, rules), None):
        return flaw
    return next(prompt_flaws(replace(prompt, rubrics=(*rubrics, global_rubric())), rules), None)


def parse_rubrics(said: str) -> list[Rubric]:
    """The rubrics of a JSON array of `{"kind": …, "question": …}`, whatever stands before and after it.

    Raises ValueError, which says what it lacks.
    """
    start, end = said.find("["), said.rfind("]")
    try:
        entries = json.loads(said[start : end + 1]) if start >= 0 else None
    except ValueError as error:
        raise ValueError(f"the array is no JSON: {error}") from None
    if not isinstance(entries, list):
        raise ValueError("there is no JSON array")
    return list(_rubrics(entries))


def _rubrics(entries: list[object]) -> Iterator[Rubric]:
    kinds = [kind for kind in RUBRIC_KINDS if kind != "global"]
    for entry in entries:
        kind, text = (entry.get("kind"), entry.get("question")) if isinstance(entry, dict) else (None, None)
        if kind not in kinds or not isinstance(text, str):
            raise ValueError(f"an entry needs a kind ({', '.join(kinds)}) and a question")
        yield Rubric(kind=kind, text=" ".join(text.split()))
