"""Make a set of prompts with rubrics of the taxonomy: by a writer model behind any endpoint, or by our own grammar.

Draw number k says what prompt k is about (`train.rl.grammar`); the set is what the draws 0, 1, 2, … give, those left
out that repeat an earlier one or that no attempt made usable, until it is large enough.

With a model, two questions a prompt: its text, then its rubrics. Every answer goes into a journal as it came, before
anybody judges it; the set is computed from the journal. So a run that was killed goes on where it was, nothing is asked
twice, and other rules about what is usable cost nothing for what is there.

Light ring: standard library only.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from backend.errors import UsageError
from backend.reasoner.answers import declines
from prompts import rubric_text
from prompts.taxonomies import Taxonomy
from train.rl.checks import Rules, prompt_flaws, rubric_flaws, text_flaws
from train.rl.grammar import MOST_RUBRICS, Draw, Draws, compose, global_rubric
from train.rl.journal import Journal
from train.rl.near import Texts, normal_form
from train.rl.prompts import RUBRIC_KINDS, Prompt, PromptSet, Rubric
from train.rl.wording import QUOTED, head, plural

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


@dataclass(frozen=True, kw_only=True)
class ExpandSettings:
    """What `expand` is told."""

    to: int = 8406  # prompts (the paper's number)
    seed: int = 0
    attempts: int = 3  # answers a question, at most, until one is usable
    calls: int | None = None  # questions that this run may ask; None: as many as it takes
    at_once: int = 8  # prompts under way
    draws_a_prompt: int = 4  # given up after that many draws for each prompt that was wanted
    rules: Rules = field(default_factory=Rules)

    def __post_init__(self) -> None:
        for name, least in (("to", 1), ("attempts", 1), ("at_once", 1), ("draws_a_prompt", 1)):
            if getattr(self, name) < least:
                raise UsageError(f"{name} = {getattr(self, name)} is below {least}")
        if self.calls is not None and self.calls < 0:
            raise UsageError(f"calls = {self.calls} is below 0")


@dataclass(frozen=True)
class Dropped:
    """A draw of which no prompt was made."""

    k: int
    item: str
    why: str


@dataclass(frozen=True, kw_only=True)
class Expansion:
    """What came of it."""

    prompts: PromptSet
    dropped: tuple[Dropped, ...]
    asked: int  # questions of this run; answers from the journal are not among them
    stopped: str | None  # why it is smaller than wanted; None: it is not


class Unusable(Exception):
    """No attempt gave a usable answer. `str(error)` says what the last one lacked."""


class BudgetSpent(Exception):
    """The run may ask no more questions."""


def expand(
    taxonomy: Taxonomy,
    settings: ExpandSettings,
    writer: Writer | None = None,
    on_prompt: Callable[[Prompt], None] = lambda prompt: None,
) -> Expansion:
    """Make the set; without a writer the grammar writes, and each record says so.

    Same arguments (and, with a writer, same answers) make the same set, interrupted or not. Raises what the writer
    raises, and FileError for a journal that cannot be read or written.
    """
    draws = Draws(taxonomy, settings.seed)
    if writer is None:
        return _gather(draws, settings, lambda draw: compose(draw, taxonomy, settings.seed), on_prompt, lambda: 0)
    desk = Desk(writer, settings)
    return _gather(draws, settings, desk.write, on_prompt, lambda: desk.asked)


def _gather(
    draws: Draws,
    settings: ExpandSettings,
    write: Callable[[Draw], Prompt],
    on_prompt: Callable[[Prompt], None],
    asked: Callable[[], int],
) -> Expansion:
    """Prompts in the order of draws; no more are under way than are still wanted, so none is paid for in vain."""
    kept: list[Prompt] = []
    dropped: list[Dropped] = []
    stopped: str | None = None
    same: set[str] = set()
    texts = Texts(settings.rules.near)
    waiting: deque[tuple[Draw, Future[Prompt]]] = deque()
    numbers = iter(range(settings.to * settings.draws_a_prompt))
    with ThreadPoolExecutor(settings.at_once) as pool:
        try:
            while len(kept) < settings.to:
                while len(waiting) < min(settings.at_once, settings.to - len(kept)) and stopped is None:
                    if (k := next(numbers, None)) is None:
                        stopped = f"{settings.to * settings.draws_a_prompt:,} draws gave no more"
                        break
                    draw = draws.draw(k)
                    waiting.append((draw, pool.submit(write, draw)))
                if not waiting:
                    break
                draw, future = waiting.popleft()
                try:
                    prompt = future.result()
                except Unusable as error:
                    dropped.append(Dropped(draw.k, draw.item, str(error)))
                    continue
                except BudgetSpent:
                    stopped = f"the budget of {settings.calls:,} calls is spent"
                    continue
                if normal_form(prompt.prompt) in same or texts.nearest(prompt.prompt):
                    dropped.append(Dropped(draw.k, draw.item, "nearly an earlier prompt"))
                    continue
                same.add(normal_form(prompt.prompt))
                texts.add(prompt.prompt)
                kept.append(prompt)
                on_prompt(prompt)
        finally:
            for _, future in waiting:
                future.cancel()
    reason = stopped if len(kept) < settings.to else None
    return Expansion(prompts=PromptSet(tuple(kept)), dropped=tuple(dropped), asked=asked(), stopped=reason)


# ------------------------------------------------------------------------------------------------------------ the model


class Desk:
    """Writes prompts with a model. Safe from several threads."""

    def __init__(self, writer: Writer, settings: ExpandSettings) -> None:
        self._writer = writer
        self._settings = settings
        self._journal = Journal(writer.journal)
        self._lock = threading.Lock()
        self.asked = 0

    def write(self, draw: Draw) -> Prompt:
        """Raises Unusable, BudgetSpent, and what the writer raises."""
        instructions, questions = rubric_text("write"), rubric_text("questions")
        rules = self._settings.rules
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
        for _ in range(self._settings.attempts):
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
            if self._settings.calls is not None and self.asked >= self._settings.calls:
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
