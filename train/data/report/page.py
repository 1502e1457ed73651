"""The report: one HTML file with the funnel, histograms, pictures near each threshold, duplicates beside what they are
copies of, and lengths of captions.

Read shard by shard: counts go into fixed bins, and of every filter only the pictures nearest to its threshold are
kept, so memory does not grow with the corpus.

Heavy ring: pyarrow, numpy, Pillow, matplotlib, Jinja2.
"""

from __future__ import annotations

import base64
import heapq
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from backend.disk import write_atomic
from backend.errors import FileError, human_bytes
from backend.fields import check_ranges, within
from train.data import select
from train.data.captions.checks import count_words
from train.data.filters import DRAWN, Bins, Filter, Thresholds
from train.data.pictures import Unreadable, decode
from train.data.report import charts, totals
from train.data.scan import planned, read_plan
from train.data.settings import read_section, read_sections
from train.data.work import Work, open_picture

PAPER_WORDS = 109  # mean length of the paper's captions (figure 3c)
_PLACE = ["key", "source", "path", "member", "offset", "nbytes"]


@dataclass(frozen=True, kw_only=True)
class ReportSettings:
    near: int = within(12, 0, 1000)  # pictures on either side of each threshold, and pairs of each kind of duplicate
    side: int = within(160, 16, 4096)  # pixels: long side of a shown picture

    def __post_init__(self) -> None:
        check_ranges(self)


def edges_of(bins: Bins) -> np.ndarray:
    """(count + 1,) float64, ascending."""
    return (np.geomspace if bins.log else np.linspace)(bins.first, bins.last, bins.count + 1)


@dataclass
class Findings:
    """What one pass over all shards adds up to."""

    settings: select.SelectSettings
    near: int
    filters: tuple[Filter, ...]  # that are drawn
    nbytes: int = 0
    by_source: Counter[str] = field(default_factory=Counter)
    kept_by_source: Counter[str] = field(default_factory=Counter)
    bins: dict[str, np.ndarray] = field(default_factory=dict)  # filter -> (2, bins): kept, dropped by any filter
    # (filter, limit, whether below it) -> heap of (-distance, count, value, dropped by this filter, row)
    nearest: dict[tuple[str, str, bool], list[Any]] = field(default_factory=dict)
    errors: Counter[str] = field(default_factory=Counter)
    example: dict[str, str] = field(default_factory=dict)  # error -> a key
    words: Counter[int] = field(default_factory=Counter)  # of captions
    seen: int = 0  # orders equal distances

    def add(self, scan: pa.Table, scores: dict[str, pa.Table], verdicts: pa.Table) -> None:
        kept = verdicts["kept"].to_numpy()
        names = np.asarray(scan["source"].to_pylist(), dtype=object)
        self.nbytes += int(np.nansum(select.floats(scan["nbytes"])))
        self.by_source.update(names.tolist())
        self.kept_by_source.update(names[kept].tolist())
        for key, error in zip(scan["key"].to_pylist(), _errors(scan, scores), strict=True):
            if error is not None:
                self.errors[error] += 1
                self.example.setdefault(error, key)
        for source in dict.fromkeys(names.tolist()):
            index = np.flatnonzero(names == source)
            here = {name: table.take(index) for name, table in scores.items()}
            self._add_source(scan.take(index), here, kept[index], self.settings.of(source))

    def _add_source(self, scan: pa.Table, scores: dict[str, pa.Table], kept: np.ndarray, least: Thresholds) -> None:
        rejected = select.rejections(scan, scores, least)
        for row in self.filters:
            assert row.bins is not None
            values, edges = select.values_of(row.name, scan, scores, least), edges_of(row.bins)
            known = np.isfinite(values)
            inside = np.clip(values, edges[0], edges[-1])
            counts = [np.histogram(inside[known & side], edges)[0] for side in (kept, ~kept)]
            self.bins[row.name] = self.bins.get(row.name, 0) + np.stack(counts)
            for limit in row.limits:
                at = getattr(least, limit)
                if at is not None:
                    self._add_near(row.name, limit, at, values, known, scan, rejected[row.name])

    def _add_near(
        self,
        name: str,
        limit: str,
        at: float,
        values: np.ndarray,
        known: np.ndarray,
        scan: pa.Table,
        rejected: np.ndarray,
    ) -> None:
        for below in (True, False):
            index = np.flatnonzero(known & ((values < at) == below))
            heap = self.nearest.setdefault((name, limit, below), [])
            for i in index[np.argsort(np.abs(values[index] - at), kind="stable")[: self.near]].tolist():
                self.seen += 1
                row = scan.select(_PLACE).slice(i, 1).to_pylist()[0]
                entry = (-abs(values[i] - at), -self.seen, float(values[i]), bool(rejected[i]), row)
                heapq.heappush(heap, entry) if len(heap) < self.near else heapq.heappushpop(heap, entry)

    def add_captions(self, captions: pa.Table) -> None:
        self.words.update(count_words(text) for text in captions["caption"].to_pylist() if text)


def _errors(scan: pa.Table, scores: dict[str, pa.Table]) -> list[str | None]:
    """Why each picture is unreadable; None: it is not."""
    found = scan["error"].to_pylist()
    if "broken" in scores:
        found = [a or b for a, b in zip(found, scores["broken"]["error"].to_pylist(), strict=True)]
    return [None if text is None else text[:100] for text in found]


# ------------------------------------------------------------------------------------------------------------- writing


def write_report(work: Work, path: Path, settings: ReportSettings) -> None:
    """Gather, draw, write. Raises LensError where nothing was selected yet, or with other scores."""
    shards = planned(work)
    behind = [stage for stage in ("dedup", "caption", "bucket", "pack") if _state(work, stage, shards) == "behind"]
    for shard in shards:
        work.sha256("select", shard)
    sections = read_sections(work.folder)
    thresholds, _ = select.read_settings(read_section(work.folder, "select"), (), ())
    scored = select.scored_filters(work, shards)
    used = tuple(row for row in DRAWN if row.source == "scan" or row.name in scored)
    gathered = Findings(thresholds, settings.near, used)
    captioned = _state(work, "caption", shards) == "done"
    for shard in shards:
        scan = work.read("scan", shard)
        scores = {name: work.read(f"score/{name}", shard) for name in scored}
        gathered.add(scan, scores, work.read("select", shard))
        gathered.add_captions(work.read("caption", shard, columns=["caption"]) if captioned else scan)
    funnel = select.funnel(work, shards)
    page = _page(work, shards, gathered, funnel, settings, "written for them" if captioned else "found beside them")
    page["behind"] = behind
    page["not_applied"] = select.not_applied(thresholds, scored)
    page["settings"] = json.dumps(sections, indent=1, ensure_ascii=False)
    write_atomic(path, _template().render(page).encode())


def _template() -> Any:
    import jinja2

    source = Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
    # Keys, captions and errors come from strangers' files.
    return jinja2.Environment(autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined).from_string(source)


def _page(
    work: Work, shards: Sequence[int], gathered: Findings, funnel: select.Funnel, settings: ReportSettings, origin: str
) -> dict[str, Any]:
    duplicates = _duplicates(work, shards, settings)
    dropped = sum(row["count"] for row in duplicates)
    rows = list(_funnel_rows(funnel, {"duplicates": dropped} | _lost_later(work, shards)))
    steps = [("all", funnel.pictures), *((row["name"], row["left"]) for row in rows)]
    sources = [
        {"name": name, "pictures": count, "kept": gathered.kept_by_source[name]}
        for name, count in gathered.by_source.items()
    ]
    return {
        "title": f"{work.folder.name}: data report",
        "pictures": funnel.pictures,
        "kept": funnel.kept,
        "left": funnel.kept - dropped,
        "packed": totals.packed(work, shards).pictures if _state(work, "pack", shards) == "done" else None,
        "size": human_bytes(gathered.nbytes),
        "funnel": rows,
        "funnel_chart": charts.bars([n for n, _ in steps], [v for _, v in steps], "pictures left"),
        "sources": sources,
        "charts": [_chart(row, gathered) for row in gathered.filters],
        "near": list(_near(gathered, settings)),
        "captions": _captions(gathered, origin),
        "duplicates": duplicates,
        "buckets_chart": _buckets(work, shards),
        "errors": [
            {"name": name, "count": count, "key": gathered.example[name]}
            for name, count in gathered.errors.most_common(20)
        ],
        "notes": list(_notes(work, shards)),
    }


def _funnel_rows(funnel: select.Funnel, later: Mapping[str, int]) -> Iterator[dict[str, Any]]:
    """`later`: what the stages after `select` took, in their order."""
    left = funnel.pictures
    for name, taken in funnel.first.items():
        left -= taken
        yield {"name": name, "taken": taken, "alone": funnel.alone[name], "left": left}
    for name, taken in later.items():
        if taken:
            left -= taken
            yield {"name": name, "taken": taken, "alone": None, "left": left}


def _lost_later(work: Work, shards: Sequence[int]) -> dict[str, int]:
    """Why pictures that are no duplicates do not reach the tars -> how many, of the stages that are up to date."""
    if _state(work, "bucket", shards) != "done":
        return {}
    without = totals.buckets(work, shards).without
    lost = {f"bucket: {reason}": count for reason, count in without.most_common()}
    if _state(work, "pack", shards) == "done":  # whose index lists the pictures without a bucket again
        packed = totals.packed(work, shards).without - without
        lost |= {f"pack: {reason}": count for reason, count in packed.most_common()}
    return lost


def _chart(row: Filter, gathered: Findings) -> str:
    assert row.bins is not None
    lines: dict[str, float] = {}
    for limit in row.limits:
        every = getattr(gathered.settings.every, limit)
        if every is not None:
            lines[f"{every:g}"] = every
        for source, own in gathered.settings.sources.items():
            at = getattr(own, limit)
            if at is not None and at != every:
                lines[f"{source}: {at:g}"] = at
    kept, dropped = gathered.bins[row.name]
    return charts.histogram(edges_of(row.bins), kept, dropped, row.label, log=row.bins.log, lines=lines)


def _near(gathered: Findings, settings: ReportSettings) -> Iterator[dict[str, Any]]:
    for filtered in gathered.filters:
        for limit in filtered.limits:
            found = [
                entry for below in (True, False) for entry in gathered.nearest.get((filtered.name, limit, below), [])
            ]
            shown = []
            for _, _, value, dropped, row in sorted(found, key=lambda entry: (entry[2], entry[4]["key"])):
                jpeg = _thumbnail(row, settings.side)
                if jpeg is not None:
                    shown.append({"jpeg": jpeg, "value": _figures(value), "dropped": dropped, "key": row["key"]})
            if shown:
                at = getattr(gathered.settings.every, limit)
                title = filtered.label + (f" ({limit})" if len(filtered.limits) > 1 else "")
                title += f", threshold {_figures(at)}" if at is not None else ""
                yield {"title": title, "veil": filtered.veil, "pictures": shown}


def _figures(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _thumbnail(row: dict[str, Any], side: int) -> str | None:
    """Base64 of a small JPEG; None where the picture does not decode (the report lists it elsewhere)."""
    try:
        image = decode(open_picture(row))
    except (FileError, Unreadable):
        return None
    image.thumbnail((side, side))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=80)
    return base64.b64encode(out.getvalue()).decode()


def _captions(gathered: Findings, origin: str) -> dict[str, Any]:
    count = sum(gathered.words.values())
    if not count:
        return {"count": 0}
    lengths, weights = np.asarray(list(gathered.words)), np.asarray(list(gathered.words.values()))
    edges = np.arange(0, 311, 10)
    counts = np.histogram(np.clip(lengths, 0, 309), edges, weights=weights)[0]
    mean = float((lengths * weights).sum() / weights.sum())
    lines = {f"paper: {PAPER_WORDS}": float(PAPER_WORDS), f"here: {mean:.0f}": mean}
    chart = charts.histogram(
        edges, counts, np.zeros_like(counts), "words of a caption (the last bin: and more)", lines=lines
    )
    return {"count": count, "mean": mean, "origin": origin, "chart": chart}


def _state(work: Work, stage: str, shards: Sequence[int]) -> str:
    """ "done" for all shards; "behind": begun, but not for all, or of other tables than there are now; "none"."""
    if all(work.changed(stage, shard) is None for shard in shards):
        return "done"
    return "behind" if any(work.mark(stage, shard) is not None for shard in shards) else "none"


def _duplicates(work: Work, shards: Sequence[int], settings: ReportSettings) -> list[dict[str, Any]]:
    """Count each kind and show a few beside what they are copies of; nothing where `dedup` is not up to date."""
    if _state(work, "dedup", shards) != "done":
        return []
    kinds: Counter[str] = Counter()
    pairs: dict[str, list[tuple[str, str]]] = {}
    for shard in shards:
        table = work.read("dedup", shard)
        for row in table.filter(table["duplicate_of"].is_valid()).to_pylist():
            kinds[row["kind"]] += 1
            some = pairs.setdefault(row["kind"], [])
            if row["kind"] != "exact" and len(some) < settings.near:  # of equal files there is nothing to judge
                some.append((row["key"], row["duplicate_of"]))
    wanted = {key for some in pairs.values() for pair in some for key in pair}
    places: dict[str, dict[str, Any]] = {}
    for shard in shards if wanted else ():
        rows = work.read("scan", shard, columns=_PLACE)
        found = rows.filter(pa.array([key in wanted for key in rows["key"].to_pylist()], pa.bool_()))
        places |= {row["key"]: row for row in found.to_pylist()}
    shown = {key: _thumbnail(places[key], settings.side) for key in wanted}
    return [
        {
            "name": name,
            "count": count,
            "pairs": [
                {"key": key, "of": of, "jpeg": shown[key], "of_jpeg": shown[of]}
                for key, of in pairs[name]
                if shown[key] and shown[of]
            ],
        }
        for name, count in kinds.most_common()
    ]


def _buckets(work: Work, shards: Sequence[int]) -> str | None:
    """None where `bucket` is not up to date."""
    sizes: Counter[tuple[int, int]] = Counter()
    for shard in shards if _state(work, "bucket", shards) == "done" else ():
        table = work.read("bucket", shard, columns=["width", "height"])
        both = zip(table["width"].to_pylist(), table["height"].to_pylist(), strict=True)
        sizes.update((w, h) for w, h in both if w is not None)
    if not sizes:
        return None
    ordered = sorted(sizes, key=lambda size: (size[0] * size[1], size[0]))
    return charts.bars([f"{w}x{h}" for w, h in ordered], [sizes[size] for size in ordered], "pictures")


def _notes(work: Work, shards: Sequence[int]) -> Iterator[str]:
    plan = read_plan(work)["listing"].to_pylist()
    for number in sorted({plan[shard] for shard in shards}):
        note = (work.read("list", number, columns=["name"]).schema.metadata or {}).get(b"note")
        if note:
            yield note.decode()
