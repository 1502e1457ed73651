"""Score a generator on the prompts of `train.evals.nano_prompts` with the rule-based verifier.

`evaluate` takes any function from (prompt, seed) to a picture, so a trainer scores a checkpoint with it and
`lens eval nano` a finished model. As in GenEval the overall score is the plain mean of the kinds' scores.
A `rewrite`, such as a reasoner, may change what the generator reads; what is checked never changes, and a prompt that
it refuses or loses counts as wrong.
"""

from __future__ import annotations

import io
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from backend.disk import make_folder, write_atomic, write_error
from backend.errors import FileError, RefusedError, ReplyError, UsageError
from backend.foreign import documents
from train.evals.nano_prompts import PROMPT_KINDS, NanoPrompt
from train.evals.nano_requests import REQUEST_KINDS
from train.evals.stats import AnswerTally, Pairs, mean_difference
from train.evals.verifier.find_things import FoundThing
from train.evals.verifier.verify import verify

Generate = Callable[[str, int], Image.Image]  # (prompt, seed) -> picture
Answer = TypeVar("Answer")
Key = tuple[str, int]  # (prompt id, which picture of it)
KINDS = (*PROMPT_KINDS, *REQUEST_KINDS)
REFUSED, NO_REWRITE = "refused", "no rewrite"
SETTINGS, RESULTS, PICTURES = "settings.json", "results.jsonl", "pictures"
_SEED_STRIDE = 1000  # between prompts: no two prompts start from the same noise, and more pictures keep the first ones


@dataclass(frozen=True, kw_only=True)
class EvalResult:
    """One judged picture."""

    id: str  # of the prompt
    kind: str  # of the prompt
    index: int  # which picture of this prompt, from 0
    asked: str  # the prompt's wording
    prompt: str  # what the generator read: `asked`, or its rewriting
    seed: int
    right: bool
    reason: str  # empty where right
    found: list[dict[str, Any]]  # what was seen: kind, colour, x, y, score, word
    seconds: float  # to generate
    unmade: str = ""  # "refused" or "no rewrite" where the reasoner gave nothing to draw; then there is no picture

    @property
    def key(self) -> Key:
        return self.id, self.index


def _by_prompt(answers: Iterable[tuple[str, Answer]]) -> list[list[Answer]]:
    """Answers of (prompt id, answer), those of one prompt together."""
    groups: dict[str, list[Answer]] = {}
    for prompt, answer in answers:
        groups.setdefault(prompt, []).append(answer)
    return list(groups.values())


@dataclass(kw_only=True)
class EvalReport:
    """All results of one evaluation."""

    results: list[EvalResult] = field(default_factory=list[EvalResult])

    def by_kind(self) -> dict[str, AnswerTally]:
        """A tally per kind of prompt that was tried, in the order of KINDS."""
        return {
            kind: AnswerTally.of(groups)
            for kind in KINDS
            if (groups := _by_prompt((r.id, r.right) for r in self.results if r.kind == kind))
        }

    @property
    def overall(self) -> float:
        """Mean of the kinds' scores, as GenEval; nan without results."""
        tallies = self.by_kind()
        return sum(t.rate for t in tallies.values()) / len(tallies) if tallies else math.nan

    @property
    def overall_interval(self) -> tuple[float, float]:
        """95 % interval of the mean of kinds: normal, from each kind's variance with two successes and failures added
        (Agresti and Coull), so that a kind with no failure still has one."""
        tallies = self.by_kind().values()
        if not tallies:
            return 0.0, 1.0
        worth = [(t.right / t.design + 2, t.total / t.design + 4) for t in tallies]
        shares = [(right / total, total) for right, total in worth]
        half = 1.96 * math.sqrt(sum(p * (1 - p) / n for p, n in shares)) / len(shares)
        return max(0.0, self.overall - half), min(1.0, self.overall + half)

    @property
    def micro(self) -> AnswerTally:
        """All pictures together."""
        return AnswerTally.of(_by_prompt((r.id, r.right) for r in self.results))

    def table(self) -> list[str]:
        """Scores as lines of text, with 95 % intervals."""
        low, high = self.overall_interval
        lines = [tally.row(kind) for kind, tally in self.by_kind().items()]
        lines.append(f"{'overall':<16} {self.overall:.3f}  [{low:.3f}, {high:.3f}]  mean of kinds")
        lines.append(self.micro.row("all pictures"))
        if any(self.unmade.values()):
            lines.append("counted as wrong: " + ", ".join(f"{n} {why}" for why, n in self.unmade.items()))
        return lines

    @property
    def unmade(self) -> dict[str, int]:
        """How many pictures a reasoner's refusals and unusable answers cost."""
        return {why: sum(result.unmade == why for result in self.results) for why in (REFUSED, NO_REWRITE)}

    def data(self) -> dict[str, Any]:
        """The scores for JSON."""

        def one(tally: AnswerTally) -> dict[str, Any]:
            scores = {"score": tally.rate, "interval": list(tally.interval), "design_effect": tally.design}
            return {**scores, "right": tally.right, "total": tally.total}

        return {
            "kinds": {kind: one(tally) for kind, tally in self.by_kind().items()},
            "overall": self.overall if self.results else None,
            "overall_interval": list(self.overall_interval),
            "micro": one(self.micro) if self.results else None,
            "unmade": self.unmade,
        }


@dataclass(frozen=True, kw_only=True)
class EvalComparison:
    """Two reports over the same prompts and seeds; pictures that only one of them has are left out."""

    kinds: dict[str, Pairs]
    micro: Pairs  # all pictures together

    @classmethod
    def of(cls, before: EvalReport, after: EvalReport) -> EvalComparison:
        """Raises ValueError where nothing is common to both, or a picture was made from another seed."""
        first = {result.key: result for result in before.results}
        common: list[tuple[EvalResult, EvalResult]] = []
        for result in after.results:
            if (other := first.get(result.key)) is not None:
                if other.seed != result.seed:
                    raise ValueError(f"{result.id} was made from the seeds {other.seed} and {result.seed}")
                common.append((other, result))
        if not common:
            raise ValueError("the two reports have no picture in common")

        def pairs(kinds: Sequence[str]) -> Pairs:
            return Pairs.of(_by_prompt((b.id, (a.right, b.right)) for a, b in common if b.kind in kinds))

        found = {kind: pairs([kind]) for kind in KINDS}
        return cls(kinds={kind: of for kind, of in found.items() if of.total}, micro=pairs(KINDS))

    @property
    def overall(self) -> tuple[float, tuple[float, float]]:
        """(difference of the overall scores, its 95 % interval)."""
        return mean_difference(list(self.kinds.values()))

    def table(self) -> list[str]:
        """Differences as lines of text, with 95 % intervals; won and lost are pictures."""
        lines = [pairs.row(name) for name, pairs in self.kinds.items()]
        mean, (low, high) = self.overall
        lines.append(f"{'overall':<16} {mean:+.3f}  [{low:+.3f}, {high:+.3f}]  mean of kinds")
        return [*lines, self.micro_row()]

    def micro_row(self) -> str:
        """The line of all pictures together."""
        return f"{self.micro.row('all pictures')} of {self.micro.total}, p = {self.micro.p:.2g}"

    def data(self) -> dict[str, Any]:
        """The differences for JSON."""

        def one(pairs: Pairs) -> dict[str, Any]:
            return {
                "difference": pairs.difference,
                "interval": list(pairs.interval),
                "design_effect": pairs.design,
                "won": pairs.won,
                "lost": pairs.lost,
                "total": pairs.total,
            }

        mean, interval = self.overall
        return {
            "kinds": {kind: one(pairs) for kind, pairs in self.kinds.items()},
            "overall": mean,
            "overall_interval": list(interval),
            "micro": {**one(self.micro), "p": self.micro.p},
        }


OnResult = Callable[[EvalResult, Image.Image | None], None]  # None: the reasoner gave nothing to draw


def seed_of(prompt: NanoPrompt, index: int, seed: int) -> int:
    """The seed of picture `index` of a prompt: the same whatever else is evaluated."""
    return seed + _SEED_STRIDE * prompt.number + index


def evaluate(
    generate: Generate,
    prompts: Sequence[NanoPrompt],
    *,
    wording: str = "brief",
    images_per_prompt: int = 1,
    seed: int = 0,
    done: Iterable[EvalResult] = (),
    rewrite: Callable[[str], str] | None = None,
    on_result: OnResult | None = None,
) -> EvalReport:
    """Generate and judge `images_per_prompt` pictures of each prompt.

    `wording` is "brief" or "dense". Results in `done` are kept and not made again. `on_result` gets each new result
    with its picture. A prompt that `rewrite` refuses (RefusedError) or gives no usable answer for (ReplyError) is
    wrong. What else `generate`, `rewrite` and `on_result` raise is passed on; earlier results went to `on_result`.
    Raises ValueError for fewer than one picture, or as many as the seeds of one prompt.
    """
    if not 1 <= images_per_prompt < _SEED_STRIDE:
        raise ValueError(f"{images_per_prompt} pictures a prompt is outside 1..{_SEED_STRIDE - 1}")
    finished: Mapping[Key, EvalResult] = {result.key: result for result in done}
    report = EvalReport()
    for prompt in prompts:
        asked = prompt.wording(wording)
        missing = [i for i in range(images_per_prompt) if (prompt.id, i) not in finished]
        report.results += [finished[prompt.id, i] for i in range(images_per_prompt) if i not in missing]
        if not missing:
            continue
        text, unmade, reason = asked, "", ""
        if rewrite is not None:
            try:
                text = rewrite(asked)
            except RefusedError as error:
                text, unmade, reason = "", REFUSED, str(error)
            except ReplyError as error:
                text, unmade, reason = "", NO_REWRITE, str(error)
        for index in missing:
            number = seed_of(prompt, index, seed)
            picture, verdict, seconds = None, None, 0.0
            if not unmade:
                started = time.perf_counter()
                picture = generate(text, number)
                seconds = time.perf_counter() - started
                verdict = verify(picture, prompt.expectation)
            result = EvalResult(
                id=prompt.id, kind=prompt.kind, index=index, asked=asked, prompt=text, seed=number,
                right=verdict is not None and verdict.right,
                reason=f"{unmade}: {reason}" if verdict is None else verdict.reason,
                found=[] if verdict is None else [_seen(found) for found in verdict.found],
                seconds=round(seconds, 3), unmade=unmade,
            )  # fmt: skip
            report.results.append(result)
            if on_result is not None:
                on_result(result, picture)
    return report


def _seen(found: FoundThing) -> dict[str, Any]:
    """One thing the verifier found, for JSON."""
    row = {"kind": found.kind, "colour": found.colour, "x": round(found.x, 3), "y": round(found.y, 3)}
    return {**row, "score": found.score, **({"word": found.word} if found.kind == "sign" else {})}


# -------------------------------------------------------------------------------------------------- a folder of results


@dataclass(frozen=True)
class EvalFolder:
    """Results on the disk: settings.json, results.jsonl (one line a picture, appended), pictures/ID-INDEX.png."""

    path: Path

    def open(self, settings: dict[str, Any]) -> list[EvalResult]:
        """Make the folder, or read what an earlier run with the same settings finished.

        Raises UsageError where the folder holds results of other settings, FileError where it cannot be used.
        """
        make_folder(self.path / PICTURES)
        at = self.path / SETTINGS
        if at.exists():
            try:
                before = documents.parse_json(documents.read_bytes(at))
            except (OSError, ValueError) as error:
                raise FileError(f"cannot read {at}: {error}") from error
            if before != settings:
                changed = sorted(k for k in {*before, *settings} if before.get(k) != settings.get(k))
                raise UsageError(
                    f"{self.path} holds results with other settings ({', '.join(changed)})", hint="use another --out"
                )
        else:
            write_atomic(at, json.dumps(settings, indent=1).encode())
        return self.read()

    def read(self) -> list[EvalResult]:
        """What is there, whatever its settings. Raises FileError where it is damaged."""
        at = self.path / RESULTS
        if not at.exists():
            return []
        lines = at.read_bytes().split(b"\n")
        # A run that was killed while it wrote leaves a last line without its end: that picture is made again.
        whole = lines[:-1]
        try:
            results = [EvalResult(**json.loads(line)) for line in whole]
        except (ValueError, TypeError) as error:
            raise FileError(f"{at} is damaged: {error}", hint="delete the folder, or use another --out") from error
        if lines[-1]:
            write_atomic(at, b"".join(line + b"\n" for line in whole))
        return results

    def picture(self, result: EvalResult) -> Path:
        """Where the picture of a result lies."""
        return self.path / PICTURES / f"{result.id}-{result.index}.png"

    def add(self, result: EvalResult, picture: Image.Image | None) -> None:
        """Save one picture, where there is one, and then its line, synced. Raises FileError."""
        if picture is not None:
            stream = io.BytesIO()
            picture.save(stream, "PNG")
            write_atomic(self.picture(result), stream.getvalue())
        at = self.path / RESULTS
        try:
            with at.open("ab") as file:
                file.write(json.dumps(asdict(result)).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise write_error(at, error) from error
