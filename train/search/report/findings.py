"""What a search found, as numbers: read from its folder, finished or not; draws and asks nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from train.search.analysis import THEME_OF
from train.search.evaluator import NONE, Sample, question_of
from train.search.folder import SearchFolder, text_sha256
from train.search.requests import Request
from train.search.run import FIRST, Outcome, outcome_of
from train.search.spending import Spending


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One candidate and how far it came."""

    name: str
    parent: str
    changes: str
    outcome: str
    mean: float | None  # difference to its parent, where it was drawn
    low: float | None  # 95 % interval, where it was validated
    high: float | None
    p: float | None
    alpha: float | None
    prompts: int


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One request under two prompts."""

    request: Request
    before: tuple[Sample, ...]
    after: tuple[Sample, ...]
    gain: float


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Everything that a report says."""

    outcome: Outcome | None  # None: the search is not over
    candidates: tuple[Candidate, ...]
    baselines: dict[str, Any] | None
    spending: dict[str, Any]
    split: str  # of the pairs: test where the winner was confirmed, else validation
    pairs: tuple[Pair, ...]  # first prompt and winner
    themes: dict[str, tuple[float, float]]  # share of rubrics that hold, before and after
    strict: tuple[float, float]  # share of pictures of which everything holds
    refused: tuple[int, int]
    unjudged: int
    stamps: tuple[str, ...]  # what a reader must know

    @property
    def verdict(self) -> str:
        return "The search is not over." if self.outcome is None else self.outcome.verdict()

    def data(self) -> dict[str, Any]:
        return {
            "verdict": self.verdict,
            "outcome": None if self.outcome is None else self.outcome.data(),
            "candidates": [vars(candidate) for candidate in self.candidates],
            "baselines": self.baselines,
            "spending": self.spending,
            "split": self.split,
            "themes": {theme: list(shares) for theme, shares in self.themes.items()},
            "strict": list(self.strict),
            "refused": list(self.refused),
            "unjudged": self.unjudged,
            "wins": sum(pair.gain > 0 for pair in self.pairs),
            "ties": sum(pair.gain == 0 for pair in self.pairs),
            "losses": sum(pair.gain < 0 for pair in self.pairs),
            "stamps": list(self.stamps),
        }


def findings(folder: SearchFolder) -> Findings:
    """Read a search, finished or not; draws and asks nothing. Raises FileError."""
    events = folder.events.rows
    closed = next((row for row in events if row["event"] == "closed"), None)
    outcome = None if closed is None else outcome_of(closed)
    winner = FIRST
    for row in events:
        if row["event"] == "ruling" and row["outcome"] == "promoted":
            winner = row["name"]
    confirmed = outcome is not None and outcome.confirmation is not None
    split = "test" if confirmed else "validation"
    pairs = tuple(_pairs(folder, winner, split))
    samples = ([s for p in pairs for s in p.before], [s for p in pairs for s in p.after])
    spending = Spending(folder.path / "spent.jsonl", folder.config.limits)
    return Findings(
        outcome=outcome,
        candidates=tuple(_candidates(events)),
        baselines=next((row for row in events if row["event"] == "baselines"), None),
        spending=spending.data(),
        split=split,
        pairs=pairs,
        themes=_themes(pairs),
        strict=(_strict(samples[0]), _strict(samples[1])),
        refused=(sum(s.status == "refused" for s in samples[0]), sum(s.status == "refused" for s in samples[1])),
        unjudged=sum(row["status"] == "unjudged" for row in folder.samples.rows),
        stamps=tuple(_stamps(folder)),
    )


def _candidates(events: Sequence[dict[str, Any]]) -> Iterator[Candidate]:
    found: dict[str, dict[str, Any]] = {}
    for row in events:
        name = row.get("name", "")
        if row["event"] == "candidate":
            about = {"parent": row["parent"], "changes": row["changes"]}
            flaw = row["flaw"]
            if flaw is None:
                found[name] = {**about, "outcome": "under way"}
            else:
                found[f"{name}.{row['attempt']}"] = {**about, "outcome": f"not usable: {flaw}"}
        elif row["event"] == "gate":
            stays = "passed the gate" if row["passed"] else "failed the gate"
            found[name] |= {"mean": row["mean"], "prompts": row["prompts"], "outcome": stays}
        elif row["event"] == "probed" and name in found:
            found[name]["probed"] = row
        elif row["event"] == "validating":
            found[name]["outcome"] = "in validation"
        elif row["event"] == "ruling":
            found[name] |= {key: row[key] for key in ("mean", "low", "high", "p", "alpha", "prompts", "outcome")}
    for name, told in found.items():
        if told["outcome"] == "passed the gate" and "probed" in told:
            told["outcome"] = "vetoed by the refusal probes"
        yield Candidate(
            name=name, parent=told["parent"], changes=told["changes"], outcome=told["outcome"], mean=told.get("mean"),
            low=told.get("low"), high=told.get("high"), p=told.get("p"), alpha=told.get("alpha"),
            prompts=told.get("prompts", 0),
        )  # fmt: skip


def _pairs(folder: SearchFolder, winner: str, split: str) -> Iterator[Pair]:
    """The requests that both prompts were judged on; before the first promotion: no rewriting and the first prompt."""
    sides = (FIRST, winner) if winner != FIRST else (NONE, FIRST)
    texts = [NONE if side == NONE else text_sha256(folder.text_of(side)) for side in sides]
    rows: dict[tuple[str, str], list[Sample]] = {}
    for row in folder.samples.rows:
        said = {key: value for key, value in row.items() if key != "system"}
        sample = Sample(**{**said, "answers": tuple(said["answers"])})
        rows.setdefault((row["system"], row["request"]), []).append(sample)
    for request in folder.split(split):
        before, after = (sorted(rows.get((text, request.id), []), key=lambda s: s.index) for text in texts)
        scores = [
            (b.score, a.score)
            for b, a in zip(before, after, strict=False)
            if b.score is not None and a.score is not None
        ]
        if scores:
            gain = sum(a - b for b, a in scores) / len(scores)
            yield Pair(request=request, before=tuple(before), after=tuple(after), gain=gain)


def _themes(pairs: Sequence[Pair]) -> dict[str, tuple[float, float]]:
    held: dict[str, tuple[list[float], list[float]]] = {}
    for pair in pairs:
        kinds = question_of(pair.request).kinds
        for side, samples in enumerate((pair.before, pair.after)):
            for sample in samples:
                for kind, answer in zip(kinds, sample.answers or (0.0,) * len(kinds), strict=False):
                    if answer is not None and sample.status != "unjudged":
                        held.setdefault(THEME_OF.get(kind, "look"), ([], []))[side].append(answer)
    return {
        theme: (sum(a) / len(a), sum(b) / len(b)) for theme, (a, b) in sorted(held.items()) if a and b
    }  # fmt: skip


def _strict(samples: Sequence[Sample]) -> float:
    judged = [sample for sample in samples if sample.score is not None]
    whole = [s for s in judged if s.answers and all(answer is not None and answer > 0.5 for answer in s.answers)]
    return len(whole) / len(judged) if judged else 0.0


def _stamps(folder: SearchFolder) -> Iterator[str]:
    frozen, sizes = folder.frozen, folder.config.sizes
    if frozen.get("leaked"):
        yield f"{frozen['leaked']} requests are prompts of a known benchmark: results on that benchmark mean nothing."
    if frozen.get("forked_from"):
        yield (
            f"Forked from {frozen['forked_from']}: {frozen['validated_before']} candidates were validated before, and "
            "count."
        )
    if frozen.get("test_seen"):
        yield "The test split was looked at by the search before: this confirmation is not the first look."
    judge = folder.config.judge
    if judge.kind == "rules":
        yield "Judged by the rules of Lens-Nano's drawn world: nothing is said about other pictures."
    elif (
        judge.kind == "endpoint"
        and folder.config.writer.kind == "endpoint"
        and judge.model == folder.config.writer.model
    ):
        yield f"{judge.model} is both writer and judge: it may like its own taste."
    if sizes.validation < 128:
        yield f"Exploratory: {sizes.validation} validation requests find large gains only."
