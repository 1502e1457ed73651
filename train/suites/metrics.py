"""Put together what was seen in single pictures: a suite's scores, with intervals.

A scorer says a few numbers of each picture. Every score here is a function of their totals by kind of prompt, so that
an interval is a matter of drawing prompts again: whole prompts, within their kinds, as pictures of one are alike.
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


def _table(metric: Metric, rows: Rows) -> dict[str, dict[str, np.ndarray]]:
    """kind -> number -> one value a prompt."""
    table: dict[str, dict[str, np.ndarray]] = {}
    for kind, prompts in rows.items():
        reduced = [_reduced(metric, pictures) for pictures in prompts.values() if pictures]
        if reduced:
            table[kind] = {name: np.array([row.get(name, 0.0) for row in reduced], float) for name in reduced[0]}
    return table


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


def estimate(metric: Metric, rows: Rows, resamples: int = RESAMPLES) -> Estimate | None:
    """A score with its percentile bootstrap interval over prompts; None where there is no picture."""
    table = _table(metric, rows)
    if not table:
        return None
    value = metric.value({kind: {n: v.sum() for n, v in columns.items()} for kind, columns in table.items()})
    low, high = _interval(metric.value(_drawn(table, resamples)))
    return Estimate(value=float(value), low=low, high=high, prompts=sum(len(c["n"]) for c in table.values()))


def difference(metric: Metric, before: Rows, after: Rows, resamples: int = RESAMPLES) -> Estimate | None:
    """`after` less `before` over the prompts that both have, drawn together; None where they share none."""
    common = {
        kind: [own for own, pictures in prompts.items() if pictures and before.get(kind, {}).get(own)]
        for kind, prompts in after.items()
    }
    common = {kind: sorted(ids) for kind, ids in common.items() if ids}
    if not common:
        return None
    found: list[Any] = []
    for rows in (before, after):
        table = _table(metric, {kind: {own: rows[kind][own] for own in ids} for kind, ids in common.items()})
        whole = metric.value({kind: {n: v.sum() for n, v in columns.items()} for kind, columns in table.items()})
        found += [float(whole), metric.value(_drawn(table, resamples))]
    low, high = _interval(found[3] - found[1])
    count = sum(map(len, common.values()))
    return Estimate(value=found[2] - found[0], low=low, high=high, prompts=count)


def _interval(values: Any) -> tuple[float, float]:
    known = np.asarray(values)[np.isfinite(values)]
    if not known.size:
        return float("nan"), float("nan")
    low, high = np.percentile(known, (2.5, 97.5))
    return float(low), float(high)
