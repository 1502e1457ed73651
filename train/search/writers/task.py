"""What a writer is given and what it gives: the protocol between a search and whoever writes the next system prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from backend.errors import LensError
from train.search.analysis import Analysis
from train.search.evaluator import Sample
from train.search.requests import Request

SHOWN = 6  # earlier attempts that a model is shown


class WriterSpent(Exception):
    """A writer that has nothing left to propose. `str(error)` says why."""


class PersonAsked(LensError):
    """The search waits for a person; it is not a failure."""

    exit_code = 0
    code = "waiting"


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One earlier candidate, as a writer is told of it."""

    name: str
    text: str
    changes: str
    outcome: str  # promoted, not better, loser, hopeless, gate, vetoed, or what was wrong with its text
    gain: float | None  # on validation, or on the batch; None: it was never drawn


@dataclass(frozen=True, kw_only=True)
class Trial:
    """The train split, for a writer that tries texts by itself before it proposes one."""

    requests: Sequence[Request]
    scores: Callable[[str, Sequence[Request]], list[list[Sample]]]  # of a text, on some of them
    flaw: Callable[[str], str | None]  # why a text could not be a candidate


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a writer is given."""

    iteration: int
    attempt: int  # of this iteration, from 0: the earlier ones were refused for their text
    current: str  # the prompt in force
    analysis: Analysis
    history: Sequence[Attempt]
    locked: Sequence[str]
    word_limit: int
    texts: Sequence[str]  # every text there was so far
    complaint: str = ""  # what was wrong with the attempt before
    trial: Trial | None = None

    def instructions(self) -> str:
        """Everything as Markdown, for a model or a person."""
        parts = [f"# The system prompt in force\n\n{self.current}", f"# What fails under it\n\n{self.analysis.text()}"]
        if self.history:
            told = [
                f"- {a.name}: {a.outcome}" + (f", {a.gain:+.3f}" if a.gain is not None else "") + f". {a.changes}"
                for a in self.history[-SHOWN:]
            ]
            parts.append("# Earlier attempts, with what they gained\n\n" + "\n".join(told))
        limits = [f"- at most {self.word_limit} words", "- no request of the examples, no eight words in a row of one"]
        limits += [f"- this stays letter by letter: {part}" for part in self.locked]
        parts.append("# Limits\n\n" + "\n".join(limits))
        if self.complaint:
            parts.append(f"# The last answer could not be used\n\n{self.complaint}")
        return "\n\n".join(parts)


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """The next system prompt, before anything is checked."""

    text: str
    changes: str  # one line


class Writer(Protocol):
    """Who writes."""

    @property
    def identity(self) -> str: ...

    def write(self, task: Task) -> Proposal:
        """Raises WriterSpent, PersonAsked, and LensError for what a later run may mend."""
        ...
