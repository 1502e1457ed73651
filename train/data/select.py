"""Stage 3, `select`: which pictures are kept, from `scan` and `score` alone, by the limits of `train.data.filters`.

Changing one recomputes no score. Every reason is recorded, not only the first, so that the report can show what each
filter alone would take. Posters, slides and rendered text fail clarity, entropy and luminance by their nature: a
source may have thresholds of its own.

Heavy ring: pyarrow, numpy.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa

from backend.errors import LensError, UsageError
from backend.fields import types_of
from train.data.filters import FILTERS, JUDGES, Thresholds
from train.data.settings import checked, parse
from train.data.work import Work, stamp

VERSION = 1
SELECT = pa.schema([("key", pa.string()), ("kept", pa.bool_()), ("reasons", pa.list_(pa.string()))])


@dataclass(frozen=True)
class SelectSettings:
    every: Thresholds = field(default_factory=Thresholds)
    sources: Mapping[str, Thresholds] = field(default_factory=dict[str, Thresholds])  # name of a source -> its own

    def of(self, source: str) -> Thresholds:
        return self.sources.get(source, self.every)


def read_settings(
    remembered: Mapping[str, Any], given: Sequence[str], sources: Sequence[str]
) -> tuple[SelectSettings, dict[str, Any]]:
    """Thresholds from `config.json` and `--set`: `entropy=2.5` for all, `posters.entropy=none` for one source.

    Returns them with what is to be remembered. Raises UsageError for an unknown threshold, source or value.
    """
    hints = types_of(Thresholds)
    values = dict(remembered)
    for setting in given:
        full, separator, text = setting.partition("=")
        source, _, key = full.strip().rpartition(".")
        if not separator:
            raise UsageError(f"--set needs key=value, got {setting!r}")
        if key not in hints:
            raise UsageError(f"--set {full}: no such threshold", hint=f"thresholds: {', '.join(hints)}")
        if source and source not in sources:
            raise UsageError(f"--set {full}: no source is named {source!r}", hint=f"sources: {', '.join(sources)}")
        if text.strip() == "default":
            values.pop(full.strip(), None)
        else:
            values[full.strip()] = parse(full, text.strip(), hints[key])
    own: dict[str, dict[str, Any]] = {"": {}}
    for full, value in values.items():
        source, _, key = full.rpartition(".")
        if key not in hints:
            raise UsageError(f"config.json: select has no threshold {full!r}", hint=f"thresholds: {', '.join(hints)}")
        own.setdefault(source, {})[key] = checked("config.json: select", full, value, hints[key])
    every = Thresholds(**own.pop(""))
    return SelectSettings(every, {source: replace(every, **fields) for source, fields in own.items()}), values


# ------------------------------------------------------------------------------------------------------------ the stage


@dataclass(frozen=True)
class Select:
    """Writes `select/<shard>`. `scored`: the filters whose scores are there."""

    work: Work
    settings: SelectSettings
    scored: tuple[str, ...]

    def stamp(self, shard: int) -> str:
        read = self._inputs(shard).values()
        return stamp(VERSION, {"scored": self.scored, **dataclasses.asdict(self.settings)}, *read)

    def _inputs(self, shard: int) -> dict[str, str]:
        return self.work.inputs(shard, ["scan", *(f"score/{name}" for name in self.scored)])

    def __call__(self, shard: int) -> None:
        known, read = self.stamp(shard), self._inputs(shard)
        if not self.work.done("select", shard, known):
            self.work.write("select", shard, self.table(shard), known, read)

    def foretell(self, shards: Sequence[int]) -> Funnel:
        """What would come of it. All scores are read, nothing is written."""
        return count(self.table(shard) for shard in shards)

    def table(self, shard: int) -> pa.Table:
        """The verdicts, not written. Raises LensError where a score is of another scan."""
        self._inputs(shard)
        scan = self.work.read("scan", shard, columns=["key", "source", "width", "height", "error"])
        scores = {name: self.work.read(f"score/{name}", shard) for name in self.scored}
        return select_rows(scan, scores, self.settings)


def scored_filters(work: Work, shards: Sequence[int]) -> tuple[str, ...]:
    """Filters scored for every shard, in the paper's order. Raises LensError for one that is scored for only some."""
    out: list[str] = []
    for name in JUDGES:
        done = set(work.shards(f"score/{name}")) & set(shards)
        if done and len(done) < len(shards):
            missing = min(set(shards) - done)
            raise LensError(
                f"{work.folder}: {name} is scored for {len(done)} of {len(shards)} shards (not for {missing})",
                hint=f"finish it first: lens train data score {work.folder}",
            )
        out += [name] if done else []
    return tuple(out)


def limits_of(settings: SelectSettings, name: str) -> list[str]:
    """What a filter lets through, as --set names it: "area at least 147,456". A source may have limits of its own."""
    limits = ((key, keeps, getattr(settings.every, key)) for key, keeps in FILTERS[name].limits.items())
    return [f"{key} {keeps} {value:,}" for key, keeps, value in limits if value is not None]


def not_applied(settings: SelectSettings, scored: Sequence[str]) -> list[str]:
    """Filters with a threshold and without scores: to be told, never passed over in silence."""
    everywhere = (settings.every, *settings.sources.values())

    def wanted(name: str) -> bool:
        fields = FILTERS[name].limits or (name,)
        return any(getattr(thresholds, field) not in (None, False) for thresholds in everywhere for field in fields)

    return [name for name in JUDGES if FILTERS[name].source != "scan" and name not in scored and wanted(name)]


def select_rows(scan: pa.Table, scores: Mapping[str, pa.Table], settings: SelectSettings) -> pa.Table:
    """key, kept, reasons (names of the filters that reject, in the paper's order), a row for every row of `scan`.

    A picture that cannot be read has the one reason "broken". Raises LensError where the scores are of other rows.
    """
    for name, table in scores.items():
        if not table["key"].equals(scan["key"]):
            raise LensError(
                f"the scores of {name} are not of these pictures", hint="score again: lens train data score"
            )
    rejected = np.zeros((scan.num_rows, len(JUDGES)), dtype=bool)
    sources = np.asarray(scan["source"].to_pylist(), dtype=object)
    for source in dict.fromkeys(sources.tolist()):
        index = np.flatnonzero(sources == source)
        thresholds = settings.of(source)
        here = {name: table.take(index) for name, table in scores.items()}
        verdicts = rejections(scan.take(index), here, thresholds)
        for name, verdict in verdicts.items():
            rejected[index, JUDGES.index(name)] = verdict
    rejected[rejected[:, 0], 1:] = False  # nothing else is known of what cannot be read
    reasons = [[JUDGES[i] for i in np.flatnonzero(row)] for row in rejected]
    return pa.table({"key": scan["key"], "kept": ~rejected.any(axis=1), "reasons": reasons}, schema=SELECT)


def rejections(scan: pa.Table, scores: Mapping[str, pa.Table], least: Thresholds) -> dict[str, np.ndarray]:
    """filter -> bool (N,). Numbers that are missing (NaN) reject nothing: "broken" has those pictures."""
    out: dict[str, np.ndarray] = {"broken": np.asarray(scan["error"].is_valid())}
    if least.broken and "broken" in scores:
        out["broken"] = out["broken"] | np.asarray(scores["broken"]["error"].is_valid())
    for name in JUDGES:
        limits = [(keeps, getattr(least, field)) for field, keeps in FILTERS[name].limits.items()]
        limits = [(keeps, at) for keeps, at in limits if at is not None]
        if limits and (FILTERS[name].source == "scan" or name in scores):
            values = values_of(name, scan, scores, least)
            out[name] = np.any([_OUTSIDE[keeps](values, at) for keeps, at in limits], axis=0)
    return out


_OUTSIDE: Mapping[str, Callable[[np.ndarray, float], np.ndarray]] = {
    "at least": np.less,
    "at most": np.greater,
    "below": np.greater_equal,
}


def values_of(name: str, scan: pa.Table, scores: Mapping[str, pa.Table], least: Thresholds) -> np.ndarray:
    """What a filter of JUDGES but "broken" measured: (N,) float64, NaN where unknown. Raises UsageError."""
    row = FILTERS[name]
    if row.source == "scan":
        width, height = (floats(scan[side]) for side in ("width", "height"))
        return width * height if name == "area" else np.maximum(width, height) / np.minimum(width, height)
    if row.holds == "classes":
        return probability(scores[name], name, getattr(least, f"{name}_labels"))
    return floats(scores[name]["score"])


def probability(table: pa.Table, name: str, labels: Sequence[str]) -> np.ndarray:
    """Sum the classes `labels`, (N,); NaN where there is no picture. Raises UsageError where none is known."""
    wanted = {label.lower() for label in labels}
    columns = [column for column in table.column_names if column != "key" and column.lower() in wanted]
    if not columns:
        known = ", ".join(column for column in table.column_names if column != "key")
        raise UsageError(
            f"{name}: the model knows none of the classes {', '.join(labels)}",
            hint=f"its classes: {known}. Name those that count: --set {name}_labels=…",
        )
    return np.sum([floats(table[column]) for column in columns], axis=0)


def floats(column: pa.ChunkedArray) -> np.ndarray:
    """(N,) float64, NaN for null."""
    return column.cast(pa.float64()).to_numpy()


@dataclass(frozen=True)
class Funnel:
    """How many pictures each filter took."""

    pictures: int
    kept: int
    first: Mapping[str, int]  # filter -> pictures that it is the first to reject, in the paper's order
    alone: Mapping[str, int]  # filter -> pictures that nothing else rejects: what would come back without it


def count(tables: Iterable[pa.Table]) -> Funnel:
    """Over tables of SELECT."""
    pictures = kept = 0
    first: Counter[str] = Counter()
    alone: Counter[str] = Counter()
    for table in tables:
        pictures += table.num_rows
        for reasons in table["reasons"].to_pylist():
            kept += not reasons
            first.update(reasons[:1])
            alone.update(reasons if len(reasons) == 1 else ())
    seen = [name for name in JUDGES if first[name] or alone[name]]
    return Funnel(pictures, kept, {name: first[name] for name in seen}, {name: alone[name] for name in seen})


def funnel(work: Work, shards: Sequence[int]) -> Funnel:
    return count(work.read("select", shard) for shard in shards)
