"""Make a set of prompts with rubrics of the taxonomy: by a writer model behind any endpoint, or by our own grammar.

Draw number k says what prompt k is about (`train.rl.prompts.grammar`); the set is what the draws 0, 1, 2, … give, those
left out that repeat an earlier one or that no attempt made usable, until it is large enough.

Light ring: standard library only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from backend.errors import UsageError
from prompts.taxonomies import Taxonomy
from train.rl.prompts.checks import Rules
from train.rl.prompts.grammar import Draw, Draws, compose
from train.rl.prompts.near import Texts
from train.rl.prompts.prompt_set import Prompt, PromptSet
from train.rl.prompts.writer import BudgetSpent, Desk, Unusable, Writer


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
    desk = None if writer is None else Desk(writer, settings.rules, settings.attempts, settings.calls)
    write = desk.write if desk else lambda draw: compose(draw, taxonomy, settings.seed)
    shelf = _Shelf(settings.rules.near, on_prompt)
    with ThreadPoolExecutor(settings.at_once) as pool:
        stopped = _fill(shelf, settings, draws, lambda draw: pool.submit(write, draw))
    return Expansion(
        prompts=PromptSet(tuple(shelf.kept)),
        dropped=tuple(shelf.dropped),
        asked=desk.asked if desk else 0,
        stopped=stopped if len(shelf.kept) < settings.to else None,
    )


class _Shelf:
    """Prompts that were kept, in the order of their draws, none nearly an earlier one."""

    def __init__(self, near: float, on_prompt: Callable[[Prompt], None]) -> None:
        self.kept: list[Prompt] = []
        self.dropped: list[Dropped] = []
        self._texts = Texts(near)
        self._on_prompt = on_prompt

    def add(self, draw: Draw, prompt: Prompt) -> None:
        if self._texts.nearest(prompt.prompt):
            self.drop(draw, "nearly an earlier prompt")
            return
        self._texts.add(prompt.prompt)
        self.kept.append(prompt)
        self._on_prompt(prompt)

    def drop(self, draw: Draw, why: str) -> None:
        self.dropped.append(Dropped(draw.k, draw.item, why))


def _fill(
    shelf: _Shelf, settings: ExpandSettings, draws: Draws, submit: Callable[[Draw], Future[Prompt]]
) -> str | None:
    """Put prompts on the shelf until it is full; returns what stopped it, or None. No more are under way at once than
    are still wanted, so that none is paid for in vain."""
    stopped: str | None = None
    waiting: deque[tuple[Draw, Future[Prompt]]] = deque()
    numbers = iter(range(settings.to * settings.draws_a_prompt))
    try:
        while len(shelf.kept) < settings.to:
            while stopped is None and len(waiting) < min(settings.at_once, settings.to - len(shelf.kept)):
                if (k := next(numbers, None)) is None:
                    stopped = f"{settings.to * settings.draws_a_prompt:,} draws gave no more"
                else:
                    draw = draws.draw(k)
                    waiting.append((draw, submit(draw)))
            if not waiting:
                break
            draw, future = waiting.popleft()
            try:
                shelf.add(draw, future.result())
            except Unusable as error:
                shelf.drop(draw, str(error))
            except BudgetSpent:
                stopped = f"the budget of {settings.calls:,} calls is spent"
    finally:
        for _, future in waiting:
            future.cancel()
    return stopped
