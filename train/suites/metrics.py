"""Put together what was seen in single pictures: a suite's scores, with intervals.

A scorer says a few numbers of each picture. Every score here is a function of their totals by kind of prompt, so that
an interval is a matter of drawing prompts again: whole prompts, within their kinds, as pictures of one are alike.

To each kind two imagined prompts are added for the drawing, one as bad and one as good as can be (after Agresti, Coull
and Min), so that few prompts, or no failure among them, do not pass for certainty.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Row = Mapping[str, float]  # what a scorer says of one picture
Rows = Mapping[str, Mapping[str, Sequence[Row]]]  # kind -> prompt's id -> its pictures
Totals = Mapping[str, Mapping[str, Any]]  # kind -> number -> total; "n" counts what was added up
RESAMPLES, SEED = 1000, 0


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One score of a suite."""

    name: str
    value: Callable[[Totals], Any]  # from totals, numbers or arrays of them
    # How pictures of a prompt are put together: added up, their mean, or the best of each number.
    reduce: Literal["sum", "mean", "best"] = "sum"
    official: bool = False  # computed as the official evaluator does, faults included
    paper: str | None = None  # column of `train.suites.paper`; None: the paper has no such number
    by_kind: bool = False  # shown for each kind of prompt as well
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A score, or a difference of two, with its 95 % interval."""

    value: float
    low: float
    high: float
    prompts: int

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def signed(self) -> str:
        return f"{self.value:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"

    def data(self) -> dict[str, Any]:
        found = {"value": self.value, "interval": [self.low, self.high]}
        return {key: _finite(value) for key, value in found.items()} | {"prompts": self.prompts}


def _finite(value: Any) -> Any:
    if isinstance(value, list):
        return [_finite(one) for one in value]  # pyright: ignore[reportUnknownVariableType]
    return value if np.isfinite(value) else None


# ---------------------------------------------------------------------------------------------------------- of totals


def mean_of_kinds(name: str) -> Callable[[Totals], Any]:
    """The plain mean of the kinds' means, as GenEval has it."""
    return lambda totals: sum(of[name] / of["n"] for of in totals.values()) / len(totals)


def pooled(top: str, bottom: str = "n") -> Callable[[Totals], Any]:
    """One total over another, over all kinds together; nan where there is nothing below."""

    def value(totals: Totals) -> Any:
        below = sum(of[bottom] for of in totals.values())
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.divide(sum(of[top] for of in totals.values()), below)

    return value


def oneig_text(most: float, distance: str, exact: str, matched: str, words: str) -> Callable[[Totals], Any]:
    """OneIG's text score: 1 - min(MOST, ED) (1 - CR) (1 - WAC) / MOST."""

    def value(totals: Totals) -> Any:
        edits, share = pooled(distance)(totals), pooled(exact)(totals)
        accuracy = pooled(matched, words)(totals)
        return 1 - np.minimum(most, edits) * (1 - share) * (1 - accuracy) / most

    return value


# --------------------------------------------------------------------------------------------------------- estimates


@dataclass(frozen=True, kw_only=True)
class Edges:
    """A picture as bad and one as good as can be, of one kind of prompt, and how many pictures a prompt has."""

    worst: Row
    best: Row
    images: int


def _table(metric: Metric, rows: Rows, edges: Mapping[str, Edges], turn: int = 1) -> dict[str, dict[str, np.ndarray]]:
    """kind -> number -> one value a prompt; the last two are imagined, bad and good (`turn` -1: good and bad)."""
    table: dict[str, dict[str, np.ndarray]] = {}
    for kind, prompts in rows.items():
        reduced = [_reduced(metric, pictures) for pictures in prompts.values() if pictures]
        if reduced:
            edge = edges[kind]
            imagined = [_reduced(metric, [row] * edge.images) for row in (edge.worst, edge.best)[::turn]]
            columns = [*reduced, *imagined]
            table[kind] = {name: np.array([row.get(name, 0.0) for row in columns], float) for name in reduced[0]}
    return table


def _whole(table: Mapping[str, Mapping[str, np.ndarray]]) -> Totals:
    """Totals of the real prompts."""
    return {kind: {name: values[:-2].sum() for name, values in columns.items()} for kind, columns in table.items()}


def _reduced(metric: Metric, pictures: Sequence[Row]) -> dict[str, float]:
    columns = {name: [row[name] for row in pictures] for name in pictures[0]}
    if metric.reduce == "sum":
        return {name: sum(values) for name, values in columns.items()} | {"n": len(pictures)}
    of = max if metric.reduce == "best" else np.mean
    return {name: float(of(values)) for name, values in columns.items()} | {"n": 1}


def _drawn(table: Mapping[str, Mapping[str, np.ndarray]], resamples: int) -> Totals:
    """Totals of `resamples` draws of prompts with replacement; which ones depends on the numbers of prompts alone."""
    random = np.random.default_rng(SEED)
    drawn: dict[str, dict[str, np.ndarray]] = {}
    for kind, columns in table.items():
        count = len(columns["n"])
        times = random.multinomial(count, np.full(count, 1 / count), size=resamples)
        drawn[kind] = {name: times @ values for name, values in columns.items()}
    return drawn


def estimate(metric: Metric, rows: Rows, edges: Mapping[str, Edges], resamples: int = RESAMPLES) -> Estimate | None:
    """A score with its percentile bootstrap interval over prompts; None where there is no picture."""
    table = _table(metric, rows, edges)
    if not table:
        return None
    value = float(metric.value(_whole(table)))
    low, high = _interval(metric.value(_drawn(table, resamples)), value)
    return Estimate(value=value, low=low, high=high, prompts=sum(len(c["n"]) - 2 for c in table.values()))


def difference(
    metric: Metric, before: Rows, after: Rows, edges: Mapping[str, Edges], resamples: int = RESAMPLES
) -> Estimate | None:
    """`after` less `before` over the prompts that both have, drawn together; None where they share none."""
    common = {
        kind: [own for own, pictures in prompts.items() if pictures and before.get(kind, {}).get(own)]
        for kind, prompts in after.items()
    }
    common = {kind: sorted(ids) for kind, ids in common.items() if ids}
    if not common:
        return None
    found: list[Any] = []
    for rows, turn in ((before, 1), (after, -1)):  # imagined: from bad to good, and from good to bad
        of = {kind: {own: rows[kind][own] for own in ids} for kind, ids in common.items()}
        table = _table(metric, of, edges, turn)
        found += [float(metric.value(_whole(table))), metric.value(_drawn(table, resamples))]
    value = found[2] - found[0]
    low, high = _interval(found[3] - found[1], value)
    return Estimate(value=value, low=low, high=high, prompts=sum(map(len, common.values())))


def _interval(values: Any, value: float) -> tuple[float, float]:
    """The middle 95 %, and at least up to the value itself."""
    known = np.asarray(values)[np.isfinite(values)]
    if not known.size:
        return float("nan"), float("nan")
    low, high = np.percentile(known, (2.5, 97.5))
    return min(float(low), value), max(float(high), value)
