"""A prompt search: one function, one loop (paper section 2.5, with a gate that the paper does not have).

The loop is replayed from the start each time: what `events.jsonl` has is taken from there, what it has not is done and
written before the next step. So a search that was killed anywhere goes on to the same end.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import prompts
from backend.disk import make_folder, write_atomic
from backend.errors import BudgetError, FileError, ReplyError
from backend.foreign import documents
from prompts import SystemPrompt
from train.search import gate
from train.search.analysis import Analysis, analyse
from train.search.checks import ProbeCounts, chosen_probes, flaw_of, probe, word_limit
from train.search.evaluator import NONE, Evaluator, Parts, Sample, mean_score, paired
from train.search.folder import SearchFolder, text_sha256
from train.search.gate import Confirmation, Racing
from train.search.requests import Request, batch_of, benchmark_runs, word_runs
from train.search.spending import Spending
from train.search.statistics import interval
from train.search.writers.task import Attempt, Proposal, Task, Trial, Writer, WriterSpent

FIRST = "c0000"
ATTEMPTS = 3  # at a text that can be used, for one candidate
BARREN = 2  # candidates in a row without a usable text; then the writer has nothing to say

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a search ended."""

    why: str  # it ended
    winner: str  # the candidate that won on validation; FIRST: none was better
    validated: int  # candidates that were looked at on validation
    confirmation: Confirmation | None  # None: there was nothing to confirm, or no budget to do it
    unconfirmed: str = ""  # why a winner was not confirmed

    @property
    def best(self) -> str:
        """What may be used: the winner where it was confirmed, else the first prompt."""
        return self.winner if self.confirmation is not None and self.confirmation.confirmed else FIRST

    def verdict(self) -> str:
        """The one sentence that everything comes down to."""
        found, many = self.confirmation, f"{self.validated} candidate{'' if self.validated == 1 else 's'}"
        if self.winner == FIRST:
            return f"No candidate was demonstrably better ({many} validated): the first prompt stays."
        if found is None:
            return (
                f"{self.winner} won on validation and was not confirmed ({self.unconfirmed}): the first prompt stays."
            )
        told = (
            f"{found.mean:+.3f} on {found.prompts} untouched test requests, 95 % interval [{found.low:+.3f}, "
            f"{found.high:+.3f}], p = {found.p:.2g}"
        )
        if found.confirmed:
            return f"{self.winner} is better than the first prompt: {told}."
        return f"No demonstrable gain: {self.winner} won on validation, and has {told}. The first prompt stays."

    def data(self) -> Row:
        found = None if self.confirmation is None else asdict(self.confirmation)
        return {**asdict(self), "confirmation": found, "best": self.best, "verdict": self.verdict()}


def run(
    folder: SearchFolder, parts: Parts, writer: Writer, *, say: Callable[[str], None] = lambda text: None,
    on_event: Callable[[Row], None] = lambda row: None, on_sample: Callable[[Sample], None] = lambda sample: None,
    stop: Callable[[], bool] = lambda: False, wait: Callable[[float], None] = time.sleep,
    spending: Spending | None = None,
) -> Outcome:  # fmt: skip
    """Search until a limit ends it, confirm, and say what came of it. The same call again goes on, or says it again.

    Raises CancelledError once `stop()` is true or the folder has a file STOP, PersonAsked where a person is the writer,
    NetworkError and the like for what a later run may mend; what is finished is kept.
    """
    spending = spending or Spending(folder.path / "spent.jsonl", folder.config.limits)
    evaluator = Evaluator(folder, parts, spending, say=say, stop=stop, wait=wait, on_sample=on_sample)
    search = _Search(folder, evaluator, writer, spending, say, on_event)
    if (closed := search.event("closed")) is None:
        # 1. Where it begins: the first prompt, and no rewriting at all. 2. Candidates, until a limit. 3. The test.
        why = search.candidates()
        closed = search.close(why)
    return outcome_of(closed)


def outcome_of(closed: Row) -> Outcome:
    """From the event that closed a search."""
    found = closed["confirmation"]
    return Outcome(
        why=closed["why"], winner=closed["winner"], validated=closed["validated"], unconfirmed=closed["unconfirmed"],
        confirmation=None if found is None else Confirmation(**found),
    )  # fmt: skip


class _Search:
    def __init__(
        self, folder: SearchFolder, evaluator: Evaluator, writer: Writer, spending: Spending,
        say: Callable[[str], None], on_event: Callable[[Row], None],
    ) -> None:  # fmt: skip
        self.folder, self.evaluator, self.writer, self.spending = folder, evaluator, writer, spending
        self.say, self.on_event, self.config = say, on_event, folder.config
        self.train, self.validation, self.test = (folder.split(name) for name in ("train", "validation", "test"))
        self.current = FIRST
        self.history: list[Attempt] = []
        self.locked: tuple[str, ...] = tuple(folder.frozen.get("locked", ()))
        sizes = self.config.sizes
        evaluator.reserve = 2 * sizes.test * sizes.seeds
        self._examples = frozenset(run for r in folder.requests for run in word_runs(r.prompt))

    # ---------------------------------------------------------------------------------------------------------- events

    def event(self, kind: str, **place: Any) -> Row | None:
        """The event of a kind, at a place, that is there."""
        wanted = {"event": kind, **place}.items()
        return next((row for row in self.folder.events.rows if wanted <= _flat(row).items()), None)

    def once(self, kind: str, make: Callable[[], Row], **place: Any) -> Row:
        """The event that is there, or one made and written now."""
        row = self.event(kind, **place)
        if row is None:
            row = {"event": kind, **place, **make()}
            self.folder.events.append(row)
            self.on_event(row)
        return row

    # -------------------------------------------------------------------------------------------------------- the loop

    def candidates(self) -> str:
        """Try candidates until a limit; returns which."""
        barren = quiet = 0
        limits = self.config.limits
        try:
            self.baselines()
            for iteration in range(limits.candidates):
                confirming = self.event("confirming")
                if confirming is not None and self.event("candidate", iteration=iteration) is None:
                    return confirming["why"]  # the test split was looked at: nothing is tried after that
                if (why := self._finished(quiet, barren)) is not None:
                    return why
                name = self.propose(iteration)
                barren = barren + 1 if name is None else 0
                promoted = name is not None and self.judge(iteration, name)
                quiet = 0 if promoted else quiet + 1
            return f"{limits.candidates} candidates were tried"
        except BudgetError as error:
            return str(error)
        except WriterSpent as error:
            return str(error)

    def _finished(self, quiet: int, barren: int) -> str | None:
        if barren >= BARREN:
            return f"the writer gave no usable text for {barren} candidates in a row"
        if quiet >= self.config.limits.patience:
            return f"{quiet} candidates in a row were not better"
        if self.validation_mean() >= self.config.limits.target:
            return f"the validation score has reached {self.config.limits.target:g}"
        if (spent := self.spending.exhausted(self.evaluator.reserve)) is not None:
            return f"{spent}, is spent"
        return None

    def baselines(self) -> Row:
        """The first prompt and no rewriting, on validation."""

        def make() -> Row:
            mine = self.evaluator.scores(self.prompt(FIRST), FIRST, self.validation)
            bare = self.evaluator.scores(None, NONE, self.validation)
            gains = paired(bare, mine)
            low, high = interval(gains)
            return {
                "first": _mean(mine), "none": _mean(bare), "gain": _average(gains), "low": low, "high": high,
                "prompts": len(gains),
            }  # fmt: skip

        row = self.once("baselines", make)
        if row["high"] < 0:
            self.say(f"without any rewriting the pictures are better ({-row['gain']:+.3f}); the search goes on")
        return row

    def propose(self, iteration: int) -> str | None:
        """The name of a candidate whose text can be used, or None after ATTEMPTS that cannot."""
        complaint = ""
        for attempt in range(ATTEMPTS):
            row = self.event("candidate", iteration=iteration, attempt=attempt)
            if row is None:
                self.on_event({"event": "writing", "iteration": iteration, "attempt": attempt})
                proposal = self._written(iteration, attempt, complaint)
                name, flaw = f"c{iteration + 1:04d}", self._flaw(proposal.text)
                if flaw is None:
                    meta = {"parent": self.current, "iteration": iteration, "changes": proposal.changes}
                    self.folder.keep_candidate(name, proposal.text, {**meta, "writer": self.writer.identity})
                row = self.once(
                    "candidate", lambda made=proposal, name=name, flaw=flaw: {
                        "name": name, "parent": self.current, "changes": made.changes, "flaw": flaw,
                        "sha256": text_sha256(made.text),
                    }, iteration=iteration, attempt=attempt,
                )  # fmt: skip
            if row["flaw"] is None:
                return row["name"]
            complaint = row["flaw"]
            self.history.append(
                Attempt(
                    name=f"{row['name']}.{attempt}", text=self._reply(iteration, attempt).text, changes=row["changes"],
                    outcome=f"not usable: {complaint}", gain=None,
                )
            )  # fmt: skip
        return None

    def judge(self, iteration: int, name: str) -> bool:
        """Whether a candidate takes the place of the prompt in force: gate, probes, race."""
        row = self.once("gate", lambda: self._gate(iteration, name), name=name)
        outcome, gain = "gate", row["mean"]
        if row["passed"]:
            veto = self._probed(name)
            if veto is not None:
                outcome = "vetoed by the refusal probes"
            else:
                row = self.once("ruling", lambda: self._race(name), name=name)
                outcome, gain = row["outcome"], row["mean"]
        told = json.loads((self.folder.candidate(name) / "meta.json").read_bytes())
        self.history.append(
            Attempt(
                name=name, text=self.folder.text_of(name), changes=told["changes"], outcome=outcome, gain=gain
            )
        )  # fmt: skip
        if outcome != "promoted":
            return False
        self.current = name
        return True

    # ----------------------------------------------------------------------------------------------------- the writing

    def _written(self, iteration: int, attempt: int, complaint: str) -> Proposal:
        """What the writer answered, from the disk or asked now and put there before it is used."""
        path = self.folder.analysis(iteration, f"{attempt}.reply.json")
        if path.exists():
            return self._reply(iteration, attempt)
        task = Task(
            iteration=iteration, attempt=attempt, current=self.folder.text_of(self.current),
            analysis=self._analysis(iteration), history=tuple(self.history), locked=self.locked,
            word_limit=word_limit(self.config, self.folder.text_of(FIRST)),
            texts=(self.folder.text_of(FIRST), *(attempt.text for attempt in self.history)), complaint=complaint,
            trial=Trial(requests=self.train, scores=self._tried, flaw=self._flaw),
        )  # fmt: skip
        make_folder(path.parent)
        write_atomic(self.folder.analysis(iteration, "md"), f"{task.instructions()}\n".encode())
        try:
            proposal = self.writer.write(task)
        except ReplyError as error:
            self.say(f"the writer's answer could not be used: {error}")
            proposal = Proposal(text="", changes=str(error))
        self.spending.add("writer", seconds=self.spending.tick(), proposals=1)
        write_atomic(path, json.dumps(asdict(proposal), ensure_ascii=False).encode())
        return proposal

    def _reply(self, iteration: int, attempt: int) -> Proposal:
        path = self.folder.analysis(iteration, f"{attempt}.reply.json")
        try:
            return Proposal(**documents.parse_json(documents.read_bytes(path)))
        except (OSError, ValueError, TypeError) as error:
            raise FileError(f"{path} is damaged: {error}", hint="restore it") from error

    def _analysis(self, iteration: int) -> Analysis:
        """What fails under the prompt in force, on this batch and on all that it was tried on before."""
        batch, system = batch_of(self.train, self.config.sizes.batch, iteration), self.prompt(self.current)
        rows = self.evaluator.scores(system, self.current, batch)
        seen = {request.id: (request, row) for request, row in zip(batch, rows, strict=True)}
        for number in range(iteration):
            for request in batch_of(self.train, self.config.sizes.batch, number):
                known = self.evaluator.known(text_sha256(system.body), request.id)
                if known:
                    seen.setdefault(request.id, (request, known))
        return analyse([request for request, _ in seen.values()], [row for _, row in seen.values()])

    def _tried(self, text: str, requests: Sequence[Request]) -> list[list[Sample]]:
        """Scores of a text that is no candidate yet."""
        return self.evaluator.scores(replace(self.prompt(FIRST), body=text), "trial", requests)

    def _flaw(self, text: str) -> str | None:
        earlier = {FIRST: self.folder.text_of(FIRST)} | {a.name: a.text for a in self.history if a.text}
        return flaw_of(
            text, limit=word_limit(self.config, earlier[FIRST]), locked=self.locked, earlier=earlier,
            examples=self._examples, benchmarks=benchmark_runs(),
        )  # fmt: skip

    # ----------------------------------------------------------------------------------------------------- the judging

    def _gate(self, iteration: int, name: str) -> Row:
        batch = batch_of(self.train, self.config.sizes.batch, iteration)
        before = self.evaluator.scores(self.prompt(self.current), self.current, batch)
        gains = paired(before, self.evaluator.scores(self.prompt(name), name, batch))
        return {"mean": _average(gains), "prompts": len(gains), "passed": gate.passes_batch(gains)}

    def _probed(self, name: str) -> str | None:
        """Why the refusal probes speak against a candidate; None: they do not."""
        if not self.config.probes:
            return None
        chosen = chosen_probes(prompts.probes(), self.config.probes)

        def counted(of: str) -> ProbeCounts:
            system = self.prompt(of)
            row = self.once(
                "probed", lambda: probe(lambda text: self.evaluator.decide(text, system), chosen).data(), name=of
            )
            return ProbeCounts(**{key: row[key] for key in ("allowed", "harmless", "refused", "harmful")})

        first = counted(FIRST)
        why = counted(name).veto(first)
        if why is not None:
            self.say(f"{name} is vetoed: {why}")
        return why

    def _race(self, name: str) -> Row:
        """The candidate's way through validation."""
        begun = self.event("validating", name=name)
        if begun is None:
            begun = {"event": "validating", "name": name, "number": self.folder.validated + 1}
            self.folder.begin_validation(begun)
            self.on_event(begun)
        racing = Racing(self.config.rules, begun["number"], len(self.validation))
        for first, end in gate.blocks(len(self.validation), self.config.rules.block):
            part: Sequence[Request] = self.validation[first:end]
            before = self.evaluator.scores(self.prompt(self.current), self.current, part)
            after = self.evaluator.scores(self.prompt(name), name, part)
            if (ruling := racing.add(paired(before, after), prompts=len(part))) is not None:
                return {"against": self.current, **asdict(ruling)}
        raise AssertionError("a race ends with its last block")

    def validation_mean(self) -> float:
        """Of the prompt in force."""
        key = text_sha256(self.folder.text_of(self.current))
        found = [m for r in self.validation if (m := mean_score(self.evaluator.known(key, r.id))) is not None]
        return sum(found) / len(found) if found else 0.0

    # --------------------------------------------------------------------------------------------------------- the end

    def close(self, why: str) -> Row:
        """Confirm the winner, once, on the test split; write down how the search ended."""
        confirmation: Confirmation | None = None
        unconfirmed = ""
        if self.current != FIRST:
            self.evaluator.reserve = None
            # Written before the first look: nothing is decided by the test split that is not decided already.
            self.once("confirming", lambda: {"winner": self.current, "why": why})
            try:
                before = self.evaluator.scores(self.prompt(FIRST), FIRST, self.test)
                after = self.evaluator.scores(self.prompt(self.current), self.current, self.test)
                confirmation = gate.confirm(paired(before, after))
            except BudgetError as error:
                unconfirmed = str(error)
        found = None if confirmation is None else asdict(confirmation)
        return self.once(
            "closed",
            lambda: {
                "why": why, "winner": self.current, "validated": self.folder.validated, "confirmation": found,
                "unconfirmed": unconfirmed,
            },
        )  # fmt: skip

    def prompt(self, name: str) -> SystemPrompt:
        """A candidate as a system prompt. Raises FileError where it was changed."""
        text = self.folder.text_of(name)
        contract = self.folder.frozen.get("contract", "decision")
        return SystemPrompt(name=f"search-{name}", purpose="", contract=contract, version=0, body=text)


def _flat(row: Row) -> Row:
    """The row's plain values, which can be compared."""
    return {key: value for key, value in row.items() if isinstance(value, str | int | float | bool)}


def _average(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _mean(rows: Sequence[Sequence[Sample]]) -> float:
    return _average([mean for row in rows if (mean := mean_score(row)) is not None])
