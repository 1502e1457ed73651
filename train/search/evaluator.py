"""What a system prompt scores on requests: rewritten, drawn, judged; each of these once.

A rewrite serves all seeds of its request; pictures start from the same noise whatever the system prompt is, so two
prompts are compared in pairs; two prompts that give the same rewrite share the picture and its verdict. What is on the
disk is not made again, also after kill -9. A failure (no connection, a server that fails) is never kept: it is raised,
and the next run tries again. A verdict that is missing after all pauses is missing, never a zero.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

from PIL import Image

from backend.cache.lines import JsonLines
from backend.disk import make_folder, write_atomic
from backend.errors import BudgetError, CancelledError, FileError, NetworkError, UsageError
from prompts import SystemPrompt
from train.judge.config import Judging
from train.judge.journal import Asked, VerdictJournal
from train.judge.judge import Judge, Question
from train.losses.rewards import RewardRule, Verdict, reward
from train.rl.chance import unit
from train.search.folder import SearchFolder, canonical, text_sha256
from train.search.requests import Request
from train.search.spending import Spending

Status = Literal["drawn", "refused", "unusable", "unjudged"]
NONE = "none"  # in a candidate's place: requests are drawn as they are
_PIXELS = 64_000_000  # of a picture that is read back


@dataclass(frozen=True, kw_only=True)
class Rewrite:
    """What a reasoner made of one request. One of the three is not empty."""

    prompt: str = ""
    refused: str = ""  # the rule
    unusable: str = ""  # why its answer is no rewrite


class Rewriter(Protocol):
    """Who rewrites requests under a system prompt."""

    @property
    def identity(self) -> str:
        """All that decides its answers beside system prompt and request."""
        ...

    def rewrite(self, request: str, system: SystemPrompt) -> Rewrite:
        """Raises LensError for what a later call may mend; an answer that is no rewrite is `unusable`."""
        ...


class Generator(Protocol):
    """Who draws."""

    @property
    def identity(self) -> str:
        """All that decides its pictures beside prompt and seed."""
        ...

    def draw(self, prompt: str, seed: int) -> Image.Image:
        """Raises LensError."""
        ...


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One picture of one request under one system prompt, judged."""

    candidate: str  # the name it was first asked for by, or NONE
    request: str  # the id
    index: int  # which picture of the request, from 0
    seed: int
    prompt: str  # what was drawn; empty: nothing was
    status: Status
    score: float | None  # 0..1; None: no verdict
    answers: tuple[float | None, ...] = ()  # a rubric each
    overall: float | None = None
    picture: str = ""  # its key in the folder; empty: none
    reason: str = ""  # why there is no picture or no verdict


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Everybody who works for a search."""

    rewriter: Rewriter
    generator: Generator
    judge: Judge


def seed_of(search: int, request: str, index: int) -> int:
    """The noise seed of a picture: the same under every system prompt."""
    return int(unit("prompt search", search, request, index) * 2**32)


Waiting = tuple[Sample, str, Asked | None]  # the second: the SHA-256 of its system prompt


class Evaluator:
    """Scores system prompts within one search's folder."""

    def __init__(
        self, folder: SearchFolder, parts: Parts, spending: Spending, *, say: Callable[[str], None] = lambda text: None,
        stop: Callable[[], bool] = lambda: False, wait: Callable[[float], None] = time.sleep,
        on_sample: Callable[[Sample], None] = lambda sample: None,
    ) -> None:  # fmt: skip
        """Raises FileError for files that cannot be read, UsageError where somebody else would answer than so far."""
        self.folder, self.parts, self.spending = folder, parts, spending
        self.say, self.stop, self.wait, self.on_sample = say, stop, wait, on_sample
        self.reserve: int | None = 0  # pictures of the budget that are kept back; None: this is what they were kept for
        for name in ("rewriter", "generator", "judge"):
            now, then = getattr(parts, name).identity, folder.frozen.get(name)
            if then is not None and now != then:
                raise UsageError(
                    f"the {name} is another one than when this search began", hint=f"then: {then}; now: {now}"
                )
        self._rewrites = JsonLines(folder.path / "rewrites.jsonl")
        self._rewritten = {row["key"]: row for row in self._rewrites.read() if isinstance(row.get("key"), str)}
        self._journal = VerdictJournal(folder.path / "verdicts.jsonl", parts.judge)
        self._known = {_place(row): _sample(row) for row in folder.samples.rows}

    # ---------------------------------------------------------------------------------------------------------- scores

    def scores(self, system: SystemPrompt | None, name: str, requests: Sequence[Request]) -> list[list[Sample]]:
        """Of each request its samples, one a seed. `system` None: the requests are drawn as they are.

        Raises CancelledError once `stop()` is true, BudgetError before a picture that the budget does not allow, and
        what rewriter, generator and judge raise; what is finished is kept.
        """
        text = NONE if system is None else text_sha256(system.body)
        seeds = range(self.folder.config.sizes.seeds)
        missing = [r for r in requests if any((text, r.id, index) not in self._known for index in seeds)]
        # All rewrites of these requests first: a local reasoner and the transformer take turns in memory.
        rewrites = {r.id: self._rewrite(r.prompt, system) for r in missing}
        waiting: list[Waiting] = []
        for request in missing:
            for index in seeds:
                if (text, request.id, index) not in self._known:
                    waiting.append(self._drawn(name, text, request, index, rewrites[request.id]))
                    while len(waiting) > 1 and _ready(waiting[0]):  # in order, so that the file is the same every time
                        self._finish(*waiting.pop(0))
        self._settle(waiting, {request.id: request for request in missing})
        return [[self._known[text, request.id, index] for index in seeds] for request in requests]

    def known(self, text: str, request: str) -> list[Sample]:
        """The samples of a request that are there already, under a system prompt given by the SHA-256 of its text."""
        keys = ((text, request, index) for index in range(self.folder.config.sizes.seeds))
        return [self._known[key] for key in keys if key in self._known]

    def _rewrite(self, request: str, system: SystemPrompt | None) -> Rewrite:
        if system is None:
            return Rewrite(prompt=request)
        self._check_stop()
        key = text_sha256(canonical([self.parts.rewriter.identity, system.contract, system.body, request]))
        row = self._rewritten.get(key)
        if row is None:
            made = self.parts.rewriter.rewrite(request, system)
            row = {"key": key, "request": request, **asdict(made)}
            self._rewrites.append(row, flush=True)
            self._rewritten[key] = row
            self.spending.add("reasoner", seconds=self.spending.tick(), rewrites=1)
        return Rewrite(**{part: str(row.get(part, "")) for part in ("prompt", "refused", "unusable")})

    def decide(self, request: str, system: SystemPrompt) -> Rewrite:
        """One rewrite, kept: for the refusal probes."""
        return self._rewrite(request, system)

    def _drawn(self, name: str, text: str, request: Request, index: int, rewrite: Rewrite) -> Waiting:
        """A sample whose verdict may be under way, and the hash of its system prompt."""
        self._check_stop()
        seed = seed_of(self.folder.config.seed, request.id, index)
        common: dict[str, Any] = {"candidate": name, "request": request.id, "index": index, "seed": seed}
        if not rewrite.prompt:
            status: Status = "refused" if rewrite.refused else "unusable"
            reason = rewrite.refused or rewrite.unusable
            return Sample(**common, prompt="", status=status, score=0.0, reason=reason), text, None
        picture, key = self._picture(rewrite.prompt, seed)
        asked = self._journal.ask(picture, question_of(request), about=key)
        made = Sample(**common, prompt=rewrite.prompt, status="drawn", score=None, picture=key)
        return made, text, asked

    def _picture(self, prompt: str, seed: int) -> tuple[Image.Image, str]:
        key = text_sha256(canonical([self.parts.generator.identity, prompt, seed]))
        path = self.folder.picture(key)
        if path.exists():
            return read_picture(path), key
        if (spent := self.spending.exhausted(self.reserve)) is not None:
            raise BudgetError(f"{spent}, is spent", hint="what was made is kept")
        picture = self.parts.generator.draw(prompt, seed).convert("RGB")
        stream = io.BytesIO()
        picture.save(stream, "PNG")
        if not path.parent.is_dir():
            make_folder(path.parent)
        write_atomic(path, stream.getvalue())
        self.spending.add("generator", pictures=1, dollars=getattr(self.folder.config.generator, "price", 0.0))
        return picture, key

    def _finish(self, sample: Sample, text: str, asked: Asked | None) -> None:
        """Enter a sample whose verdict is there. Raises what the judge raises."""
        made = sample if asked is None else _judged(sample, asked.verdict.result(), self.folder.config.all_hold)
        self.folder.samples.append({"system": text, **asdict(made), "answers": list(made.answers)}, flush=False)
        self._known[text, made.request, made.index] = made
        self.spending.add("pictures", seconds=self.spending.tick())
        self.on_sample(made)

    def _settle(self, waiting: list[Waiting], requests: dict[str, Request]) -> None:
        """Wait for every verdict; ask for missing ones again after each pause, then take them for missing."""
        judging: Judging = self.folder.config.judging
        for pause in (*judging.pauses, None):
            lost = [asked for _, _, asked in waiting if asked is not None and asked.verdict.result().missing]
            if not lost or pause is None:
                break
            self.say(
                f"the judge has no verdict for {len(lost)} of {len(waiting)} pictures; asking again in {pause:g} s"
            )
            self.wait(pause)
            self._check_stop()
            waiting[:] = [(sample, text, self._again(sample, asked, requests)) for sample, text, asked in waiting]
        lost = [asked for _, _, asked in waiting if asked is not None and asked.verdict.result().missing]
        if waiting and len(lost) > judging.most_failing * len(waiting):
            raise NetworkError(
                f"the judge failed on {len(lost)} of {len(waiting)} pictures", hint="mend it; the search then goes on"
            )
        self._journal.settle(lost)
        for entry in waiting:
            self._finish(*entry)

    def _again(self, sample: Sample, asked: Asked | None, requests: dict[str, Request]) -> Asked | None:
        if asked is None or not asked.verdict.result().missing:
            return asked
        picture = read_picture(self.folder.picture(sample.picture))
        return self._journal.ask(picture, question_of(requests[sample.request]), about=sample.picture)

    def _check_stop(self) -> None:
        if self.stop() or self.folder.stopping():
            raise CancelledError("stopped; the same command goes on")


def question_of(request: Request) -> Question:
    """What is asked about a request's pictures: never anything of the rewrite."""
    own = [rubric for rubric in request.rubrics if rubric.kind != "global"]
    return Question(
        prompt=request.prompt,
        rubrics=tuple(rubric.text for rubric in own),
        kinds=tuple(rubric.kind for rubric in own),
        overall=next((rubric.text for rubric in request.rubrics if rubric.kind == "global"), None),
        expectation=request.expectation,
    )


def mean_score(samples: Sequence[Sample]) -> float | None:
    """The mean of a request's pictures; None where none has a verdict."""
    scores = [sample.score for sample in samples if sample.score is not None]
    return sum(scores) / len(scores) if scores else None


def paired(before: Sequence[Sequence[Sample]], after: Sequence[Sequence[Sample]]) -> list[float]:
    """Differences a request, over the seeds that have a verdict on both sides; a request without one has none."""
    found: list[float] = []
    for old, new in zip(before, after, strict=True):
        pairs = [(a.score, b.score) for a, b in zip(old, new, strict=True)]
        gains = [b - a for a, b in pairs if a is not None and b is not None]
        if gains:
            found.append(sum(gains) / len(gains))
    return found


def read_picture(path: Any) -> Image.Image:
    """A picture of the folder as RGB. Raises FileError where it is damaged or too large."""
    try:
        with Image.open(path, formats=("PNG",)) as image:
            if image.width * image.height > _PIXELS:
                raise FileError(f"{path} has more than {_PIXELS:,} pixels")
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise FileError(f"{path} is damaged: {error}", hint="delete it: it is drawn again") from error


def _ready(entry: Waiting) -> bool:
    asked = entry[2]
    return asked is None or (
        asked.verdict.done() and asked.verdict.exception() is None and not asked.verdict.result().missing
    )


def _judged(sample: Sample, verdict: Verdict, all_hold: float) -> Sample:
    # The rubric of every picture counts where it was asked: a score server and the rules do not answer it.
    rule = RewardRule(overall_weight=0.0 if verdict.overall is None else 1.0, all_hold=all_hold)
    score = reward(verdict, rule)
    said = {**asdict(sample), "answers": tuple(verdict.answers), "overall": verdict.overall, "score": score}
    if score is None:
        said |= {"status": "unjudged", "reason": str(verdict.missing or "too few answers")}
    return Sample(**said)


def _place(row: dict[str, Any]) -> tuple[str, str, int]:
    return str(row["system"]), str(row["request"]), int(row["index"])


def _sample(row: dict[str, Any]) -> Sample:
    said = {key: value for key, value in row.items() if key not in ("system", "check")}
    return Sample(**{**said, "answers": tuple(said["answers"])})
