"""A writer without a model: the next system prompt is put together from a library of sentences, by the failures.

A prompt is seen as a row of sentences: those of the library, and others. The moves from it, boldest first: the
sentences against what fails most are added, the prompt's own sentences or those of themes that do not fail are dropped,
single ones are added or taken away. Each move that was tried is not tried again. Deterministic.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from prompts.guidelines import TASK, Guideline
from train.search.analysis import UNUSABLE, Analysis
from train.search.checks import sentences
from train.search.writers.task import Proposal, Task, WriterSpent

FEW = 3  # themes of the bold moves


class GuidelineWriter:
    """Composes from `library`. `train.search.writers.Writer`."""

    def __init__(self, library: Sequence[Guideline]) -> None:
        self.library = tuple(library)

    @property
    def identity(self) -> str:
        return "guidelines " + " ".join(guideline.id for guideline in self.library)

    def write(self, task: Task) -> Proposal:
        """The first move that was not tried. Raises WriterSpent where all were."""
        tried = {_form(text) for text in task.texts}
        for chosen, changes in self._moves(task):
            text = self._compose(task, chosen)
            if _form(text) not in tried:
                return Proposal(text=text, changes=changes)
        raise WriterSpent("the library of guidelines holds nothing that was not tried")

    def _moves(self, task: Task) -> Iterator[tuple[list[str], str]]:
        """(sentences without the locked ones, what changed), boldest first."""
        now = [s for s in sentences(task.current) if s not in task.locked and s != TASK]
        mine, own = [s for s in now if s in self._texts], [s for s in now if s not in self._texts]
        failing = failing_themes(task.analysis)
        worst = [s for theme in failing[:FEW] for s in self._of(theme)]
        fresh = [s for s in worst if s not in mine]
        strange = [s for s in mine if self._theme(s) not in failing]
        # 1. Bold: all sentences against the worst themes, without and with what stands there; the worst theme alone.
        if own:
            yield _joined(mine, fresh), f"{_words(fresh)}; the prompt's own sentences are dropped"
            yield mine, "the prompt's own sentences are dropped"
        if fresh:
            yield _joined(now, fresh), _words(fresh)
        for theme in failing:
            if added := [s for s in self._of(theme) if s not in now]:
                yield _joined(now, added), f"against {theme}: {_words(added)}"
        # 2. What is there for nothing.
        if strange:
            yield [s for s in now if s not in strange], f"dropped: {_words(strange)}"
        # 3. One by one: of the failing themes first, then taking away, then everything else.
        order = sorted(self.library, key=lambda g: failing.index(g.theme) if g.theme in failing else len(failing))
        for guideline in order:
            if guideline.theme in failing and guideline.text not in now:
                yield _joined(now, [guideline.text]), f"added: {guideline.text}"
        for sentence in reversed(now):
            yield [s for s in now if s != sentence], f"dropped: {sentence}"
        for guideline in order:
            if guideline.text not in now:
                yield _joined(now, [guideline.text]), f"added: {guideline.text}"

    def _compose(self, task: Task, chosen: Sequence[str]) -> str:
        # The task first and the locked parts last, as in the prompts that Lens-Nano's reasoner was trained on.
        return " ".join([TASK, *chosen, *task.locked])

    def _of(self, theme: str) -> list[str]:
        return [guideline.text for guideline in self.library if guideline.theme == theme]

    def _theme(self, sentence: str) -> str:
        return next(guideline.theme for guideline in self.library if guideline.text == sentence)

    @property
    def _texts(self) -> frozenset[str]:
        return frozenset(guideline.text for guideline in self.library)


def failing_themes(analysis: Analysis) -> list[str]:
    """The themes of the library that fail, the most frequent first; things that are missing may also be unnamed, and
    unusable answers are often too long."""
    found: list[str] = []
    for theme in analysis.themes:
        found += {UNUSABLE: ["length"], "missing thing": ["missing thing", "look"]}.get(theme, [theme])
    return list(dict.fromkeys(found))


def _joined(first: Sequence[str], more: Sequence[str]) -> list[str]:
    return list(dict.fromkeys([*first, *more]))


def _words(texts: Sequence[str]) -> str:
    return " ".join(texts) if texts else "nothing is added"


def _form(text: str) -> frozenset[str]:
    """Two prompts of the same sentences are one, whatever their order."""
    return frozenset(sentences(text))
