"""The report of a search: one HTML page with the verdict first, then what it rests on. Nothing in it is loaded or run.

Heavy ring: matplotlib (`pip install 'lens[train]'`), inside the function.
"""

from __future__ import annotations

import base64
import difflib
import html
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from backend.disk import write_atomic
from backend.errors import FileError, counted, optional_package
from train.search.checks import sentences
from train.search.evaluator import Sample, question_of, read_picture
from train.search.folder import SearchFolder
from train.search.plan import power_of
from train.search.report.findings import Candidate, Findings, findings
from train.search.requests import Request
from train.search.run import FIRST
from train.search.statistics import spread_of

SHOWN = 12  # largest wins, and as many losses
_SIDE = 192  # pixels of a picture in the page


def write_report(folder: SearchFolder, to: Path | None = None) -> Path:
    """Write report.html and report.json; returns the page's path. Raises LensError without matplotlib, FileError."""
    with optional_package(otherwise="--json, which has the numbers"):
        from train.search.report import charts
    found = findings(folder)
    page = to or folder.path / "report" / "report.html"
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"cannot write {page.parent}: {error.strerror}") from error
    parts = [_head(found), *_numbers(folder, found, charts), *_texts(folder, found), *_pictures(folder, found)]
    body = "\n".join(parts)
    title = html.escape(folder.path.resolve().name)
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    write_atomic(
        page,
        (
            f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
            f'content="width=device-width"><meta http-equiv="Content-Security-Policy" content="{policy}">'
            f"<title>Prompt search {title}</title><style>{_CSS}</style></head><body>\n{body}\n</body></html>\n"
        ).encode(),
    )
    write_atomic(page.with_suffix(".json"), json.dumps(found.data(), indent=1).encode())
    return page


_CSS = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222;"
    "background:#fff}h1{font-size:1.25rem}h2{font-size:1.05rem;margin-top:2.2rem}table{border-collapse:collapse;"
    "font-size:.85rem}td,th{padding:.25rem .6rem;text-align:left;border-bottom:1px solid #ddd;vertical-align:top}"
    "td.n{text-align:right;font-variant-numeric:tabular-nums}.stamp{background:#fff3d6;padding:.3rem .7rem}"
    "svg{max-width:100%;height:auto}pre{white-space:pre-wrap;background:#f6f6f6;padding:.7rem;font-size:.8rem}"
    ".add{background:#dcf3df}.del{background:#f9dcd6}.pair{display:grid;grid-template-columns:1fr 1fr;gap:.5rem 1rem;"
    "border-top:1px solid #ddd;padding:.7rem 0}.pair>p{grid-column:1/-1;margin:0}figure{margin:0}"
    "figure img{width:6rem;height:auto;margin-right:.3rem}figcaption{font-size:.8rem;color:#444}"
)


def _head(found: Findings) -> str:
    stamps = "".join(f'<p class="stamp">{html.escape(stamp)}</p>' for stamp in found.stamps)
    return f"<h1>{html.escape(found.verdict)}</h1>{stamps}"


def _numbers(folder: SearchFolder, found: Findings, charts: Any) -> Iterator[str]:
    sizes, config, frozen = folder.config.sizes, folder.config, folder.frozen
    told = [
        f"{sizes.train} train, {sizes.validation} validation, {sizes.test} test requests; "
        f"{counted(sizes.seeds, 'picture')} each",
        f"{found.spending['pictures']:,} pictures, {found.spending['seconds'] / 60:,.0f} minutes"
        + (f", ${found.spending['dollars']:,.2f}" if found.spending["dollars"] else ""),
        f"exact sign-flip test; the k-th validated candidate at {config.rules.alpha:g}/(k(k+1))",
        f"generator {_short(frozen.get('generator', ''))}", f"reasoner {_short(frozen.get('rewriter', ''))}",
        f"judge {_short(frozen.get('judge', ''))}",
    ]  # fmt: skip
    if found.outcome is not None:
        told.append(f"ended because {found.outcome.why}")
    if found.baselines is not None:
        base = found.baselines
        told.append(
            f"first prompt {base['first']:.3f}, no rewriting {base['none']:.3f}: {base['gain']:+.3f} "
            f"[{base['low']:+.3f}, {base['high']:+.3f}]"
        )
    yield f"<ul>{''.join(f'<li>{html.escape(line)}</li>' for line in told)}</ul>"
    yield f"<h2>Candidates</h2>{_table(found.candidates)}"
    validated = [
        (c.name, c.mean, c.low, c.high, c.outcome == "promoted")
        for c in found.candidates
        if c.mean is not None and c.low is not None and c.high is not None
    ]
    if validated:
        yield charts.effects(validated, "difference to the prompt in force on validation, with its 95 % interval")
    if found.baselines is not None and found.candidates:
        score, points = found.baselines["first"], [(0, found.baselines["first"], "first prompt")]
        for number, candidate in enumerate(found.candidates, 1):
            promoted = candidate.outcome == "promoted"
            score += (candidate.mean or 0.0) if promoted else 0.0
            points.append((number, score, candidate.name if promoted else ""))
        yield charts.steps(*(list(column) for column in zip(*points, strict=True)))
    if found.pairs:
        before, after = _sides(found)
        wins = sum(p.gain > 0 for p in found.pairs)
        losses = sum(p.gain < 0 for p in found.pairs)
        yield (
            f"<h2>{html.escape(before)} and {html.escape(after)}, {found.split} split</h2><p>{wins} requests won, "
            f"{losses} lost, {len(found.pairs) - wins - losses} the same. Everything holds in {found.strict[0]:.0%} of "
            f"the pictures before, in {found.strict[1]:.0%} after; refused {found.refused[0]} and {found.refused[1]}; "
            f"{found.unjudged} pictures without a verdict in the whole search.</p>"
        )
        yield charts.grouped(found.themes, (before, after), "share of rubrics that hold")
        yield charts.scatter(
            [_mean(p.before) for p in found.pairs], [_mean(p.after) for p in found.pairs], before, after
        )
        rows = [[s.score for s in p.before if s.score is not None] for p in found.pairs]
        if any(len(row) >= 2 for row in rows):
            power = power_of(config, spread_of(rows, sizes.seeds), measured=True)
            yield f"<pre>{html.escape(chr(10).join(power.lines()))}</pre>"


def _sides(found: Findings) -> tuple[str, str]:
    promoted = any(candidate.outcome == "promoted" for candidate in found.candidates)
    return ("first prompt", "winner") if promoted else ("no rewriting", "first prompt")


def _short(identity: str) -> str:
    return identity if len(identity) <= 160 else f"{identity[:160]}…"


def _mean(samples: Sequence[Sample]) -> float:
    scores = [sample.score for sample in samples if sample.score is not None]
    return sum(scores) / len(scores) if scores else 0.0


def _table(candidates: Sequence[Candidate]) -> str:
    def cell(value: float | None, form: str) -> str:
        return f'<td class="n">{"" if value is None else format(value, form)}</td>'

    rows = "".join(
        f"<tr><td>{html.escape(c.name)}</td><td>{html.escape(c.outcome)}</td>{cell(c.mean, '+.3f')}"
        f'<td class="n">{"" if c.low is None or c.high is None else f"[{c.low:+.3f}, {c.high:+.3f}]"}</td>'
        f"{cell(c.p, '.4f')}{cell(c.alpha, '.4f')}<td>{c.prompts or ''}</td><td>{html.escape(c.changes)}</td></tr>"
        for c in candidates
    )
    head = "".join(f"<th>{name}</th>" for name in ("", "outcome", "gain", "95 %", "p", "level", "requests", "change"))
    return f"<table><tr>{head}</tr>{rows}</table>"


def _texts(folder: SearchFolder, found: Findings) -> Iterator[str]:
    winner = FIRST if found.outcome is None else found.outcome.winner
    if winner == FIRST:
        yield f"<h2>The first prompt</h2><pre>{html.escape(folder.text_of(FIRST))}</pre>"
        return
    yield (
        "<h2>What changed</h2><pre>"
        + "\n".join(
            f'<span class="{kind}">{html.escape(line)}</span>'
            for kind, line in diff(folder.text_of(FIRST), folder.text_of(winner))
        )
        + "</pre>"
    )


def diff(before: str, after: str) -> Iterator[tuple[str, str]]:
    """(add, del or same; line) of two prompts, sentence by sentence where they are one long line."""
    old, new = (text.split("\n") if "\n" in text else sentences(text) for text in (before, after))
    for line in difflib.ndiff(old, new):
        if line[0] != "?":
            yield {"+": "add", "-": "del"}.get(line[0], "same"), line


def _pictures(folder: SearchFolder, found: Findings) -> Iterator[str]:
    """Contact sheets of the largest wins and losses."""
    ranked = sorted(found.pairs, key=lambda pair: (-pair.gain, pair.request.id))
    before, after = _sides(found)
    for title, chosen in (
        ("Largest wins", [p for p in ranked if p.gain > 0][:SHOWN]),
        ("Largest losses", [p for p in reversed(ranked) if p.gain < 0][:SHOWN]),
    ):
        if chosen:
            yield f"<h2>{title}</h2>"
        for pair in chosen:
            yield (
                f'<div class="pair"><p><b>{html.escape(pair.request.prompt)}</b> ({pair.gain:+.2f})</p>'
                f"{_figure(folder, pair.request, before, pair.before)}"
                f"{_figure(folder, pair.request, after, pair.after)}</div>"
            )


def _figure(folder: SearchFolder, request: Request, name: str, samples: Sequence[Sample]) -> str:
    images = "".join(filter(None, (_thumbnail(folder, sample) for sample in samples)))
    rubrics = question_of(request).rubrics
    failed = [
        rubric
        for rubric, answer in zip(rubrics, samples[0].answers if samples else (), strict=False)
        if answer is not None and answer < 0.5
    ]
    lacks = f"<br>fails: {html.escape('; '.join(failed))}" if failed else ""
    reason = f"<br>{html.escape(samples[0].reason)}" if samples and samples[0].reason else ""
    said = html.escape(samples[0].prompt) if samples else ""
    return f"<figure>{images}<figcaption>{html.escape(name)}: {said}{lacks}{reason}</figcaption></figure>"


def _thumbnail(folder: SearchFolder, sample: Sample) -> str | None:
    """None where there is no picture, or it is damaged: the numbers do not depend on it."""
    if not sample.picture:
        return None
    try:
        image = read_picture(folder.picture(sample.picture))
    except FileError:
        return None
    image.thumbnail((_SIDE, _SIDE))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=85)
    encoded = base64.b64encode(out.getvalue()).decode()
    return f'<img alt="score {sample.score}" src="data:image/jpeg;base64,{encoded}">'
