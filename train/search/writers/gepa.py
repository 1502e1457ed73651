"""`gepa` as a writer: its reflective search over the train split proposes, our gate, test and confirmation decide.

Guards against what version 0.1.4 does: its evaluation cache serves validation items the scores of training items, so it
is off and ours is used, which knows which request it is; it sees the train split alone; its state, a pickle, is not
written; what it finds best is a candidate like any other. Its mutations come from the search's own writer, so it needs
no other model, and works with the guidelines too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from backend.cache.lines import JsonLines
from backend.errors import optional_package
from train.search.analysis import analyse
from train.search.evaluator import Sample, mean_score
from train.search.folder import text_sha256
from train.search.requests import Request
from train.search.writers.task import Proposal, Task, Trial, Writer, WriterSpent

PART = "system_prompt"  # what gepa calls the one text that it changes
PASSES = 4  # over the train split, that one call may score: gepa's own budget, in requests


class GepaWriter:
    """`train.search.writers.task.Writer`. What `inner` answers is kept in `journal`: a killed search asks nothing
    twice."""

    def __init__(self, inner: Writer, journal: Path, seed: int) -> None:
        """Raises LensError where the package is not installed."""
        with optional_package():
            import gepa  # noqa: F401  # pyright: ignore[reportUnusedImport]
        self.inner, self.seed, self._lines = inner, seed, JsonLines(journal)
        self._known = {str(row["key"]): row for row in self._lines.read() if "key" in row}

    @property
    def identity(self) -> str:
        return f"gepa 0.1.4 with {self.inner.identity}"

    def write(self, task: Task) -> Proposal:
        """The best prompt that gepa finds on the train split. Raises WriterSpent where that is the one in force."""
        from gepa.api import optimize

        assert task.trial is not None, "a search gives its writers the train split"
        adapter = _Adapter(task, task.trial, self)
        half = len(task.trial.requests) // 2
        found: Any = optimize(
            seed_candidate={PART: task.current},
            trainset=list(task.trial.requests[:half]),
            valset=list(task.trial.requests[half:]),
            adapter=adapter,  # pyright: ignore[reportArgumentType]  its protocol is generic in ways it does not use
            candidate_selection_strategy="current_best",
            reflection_minibatch_size=min(8, half),
            max_metric_calls=PASSES * len(task.trial.requests),
            cache_evaluation=False,
            raise_on_exception=True,
            seed=self.seed + task.iteration,
            logger=_Silent(),
            display_progress_bar=False,
        )
        text = str(found.best_candidate[PART])
        if text in task.texts or text == task.current:
            raise WriterSpent("gepa finds nothing better on the train split")
        return Proposal(text=text, changes=f"gepa, {len(found.candidates)} candidates on the train split")

    def answer(self, task: Task) -> Proposal:
        """The inner writer's, from the journal where it was asked the same."""
        key = text_sha256(f"{task.iteration} {task.attempt} {task.instructions()} {json.dumps(list(task.texts))}")
        row = self._known.get(key)
        if row is None:
            row = {"key": key, **asdict(self.inner.write(task))}
            self._lines.append(row, flush=True)
            self._known[key] = row
        return Proposal(text=str(row["text"]), changes=str(row["changes"]))


@dataclass
class _Trace:
    request: Request
    samples: list[Sample]


class _Adapter:
    """What gepa asks for: scores of a text on requests, and a new text from failures."""

    def __init__(self, task: Task, trial: Trial, writer: GepaWriter) -> None:
        self.task, self.trial, self.writer = task, trial, writer
        self._texts = list(task.texts)
        self._count = 0

    def evaluate(self, batch: list[Request], candidate: dict[str, str], capture_traces: bool = False) -> Any:
        """A text that cannot be a candidate scores nothing, and nothing is drawn for it. A picture without a verdict
        takes the others' mean."""
        from gepa.core.adapter import EvaluationBatch

        text = candidate[PART]
        if text != self.task.current and self.trial.flaw(text) is not None:
            rows: list[list[Sample]] = [[] for _ in batch]
            scores = [0.0] * len(batch)
        else:
            rows = self.trial.scores(text, batch)
            means = [mean_score(row) for row in rows]
            known = [mean for mean in means if mean is not None]
            usual = sum(known) / len(known) if known else 0.0
            scores = [usual if mean is None else mean for mean in means]
        traces = [_Trace(request, row) for request, row in zip(batch, rows, strict=True)]
        return EvaluationBatch(outputs=traces, scores=scores, trajectories=traces if capture_traces else None)

    def make_reflective_dataset(
        self, candidate: dict[str, str], eval_batch: Any, components_to_update: list[str]
    ) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        return {PART: [{"trace": trace} for trace in eval_batch.trajectories]}

    def propose_new_texts(
        self, candidate: dict[str, str], reflective_dataset: Mapping[str, Sequence[Mapping[str, Any]]],
        components_to_update: list[str],
    ) -> dict[str, str]:  # fmt: skip
        """The inner writer's next text; the same text again, which gains nothing, where it has none left."""
        traces: list[_Trace] = [row["trace"] for row in reflective_dataset[PART] if row["trace"].samples]
        self._count += 1
        task = replace(
            self.task, attempt=self._count, current=candidate[PART], texts=tuple(self._texts), complaint="",
            analysis=analyse([trace.request for trace in traces], [trace.samples for trace in traces]),
        )  # fmt: skip
        try:
            text = self.writer.answer(task).text
        except WriterSpent:
            return {PART: candidate[PART]}
        self._texts.append(text)
        return {PART: text}


class _Silent:
    """Gepa's talk goes nowhere: the search's own events say what happens."""

    def log(self, message: str) -> None:
        """Nothing."""
