"""A run's scores as a person reads them: the protocol first, then every score with its interval, how many of the
pictures it rests on, and what it would be if each missing picture counted as the worst there is.

Several runs of one suite stand side by side, each against the first; `--compare paper` adds the paper's rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from backend.errors import UsageError
from train.suites import paper
from train.suites.folder import FAILED, MADE, MISSING, NO_REWRITE, REFUSED, SCORES, Key, RunFolder, Sample
from train.suites.metrics import Edges, Estimate, Metric, Row, difference, estimate
from train.suites.prompts import SuitePrompt, fingerprint
from train.suites.scorers.scorer import Scorer
from train.suites.scorers.text_scorers import TextScorer
from train.suites.scores import read_scores
from train.suites.table import Suite

SATURATED = 0.90  # GenEval: above it differences are those of its detector (GenEval 2 reports up to 17.7 points)
WIDTH = 80


@dataclass(frozen=True, kw_only=True)
class ScoredMetric:
    """One score of one run."""

    metric: Metric
    official: Estimate | None  # over the pictures that were scored; None: none was
    zeroed: Estimate | None  # the others counted as the worst
    scored: int
    wanted: int
    kinds: Mapping[str, Estimate]
    edges: Mapping[str, Edges] = field(repr=False)
    rows: Mapping[str, Mapping[str, Sequence[Row]]] = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class RunReport:
    """All scores of one run."""

    name: str  # of its folder
    protocol: Mapping[str, Any]
    states: Mapping[str, int]  # state -> pictures
    rewrites: Mapping[str, int]  # what became of rewrites -> pictures
    scorers: Mapping[str, tuple[str, tuple[ScoredMetric, ...]]]  # name -> (identity, its metrics)
    seconds: float  # median to draw a picture
    imported: Mapping[str, float] = field(default_factory=dict[str, float])  # official numbers that were read in

    def data(self) -> dict[str, Any]:
        return {
            "run": self.name, "protocol": dict(self.protocol), "states": dict(self.states),
            "rewrites": dict(self.rewrites), "seconds_a_picture": self.seconds, "imported": dict(self.imported),
            "scores": [
                {
                    "metric": one.metric.name, "scorer": identity, "official_style": one.metric.official,
                    "score": None if one.official is None else one.official.data(),
                    "failure_as_zero": None if one.zeroed is None else one.zeroed.data(),
                    "scored": one.scored, "wanted": one.wanted,
                    "kinds": {kind: value.data() for kind, value in one.kinds.items()},
                }
                for identity, metrics in self.scorers.values() for one in metrics
            ],
        }  # fmt: skip


def report(
    run: RunFolder, suite: Suite, prompts: Sequence[SuitePrompt], scorers: Mapping[str, Scorer], name: str = "",
    imported: Mapping[str, float] | None = None,
) -> RunReport:  # fmt: skip
    """Read a run's scores. `scorers`: by the names of the run's score files. Raises UsageError where the prompts are
    not those that were drawn."""
    protocol, samples = run.protocol(), run.samples()
    chosen = chosen_prompts(protocol, prompts)
    images = int(protocol["images"])
    states = run.states(chosen, images)
    found: dict[str, tuple[str, tuple[ScoredMetric, ...]]] = {}
    for scorer_name, scorer in scorers.items():
        said = read_scores(run, scorer_name, None, samples)
        applied = [prompt for prompt in chosen if scorer.applies(prompt)]
        extra = scorer.carried(applied, images, states, said.seen) if isinstance(scorer, TextScorer) else {}
        metrics = tuple(
            _scored(metric, scorer, applied, images, states, said.rows, extra if metric.official else {})
            for metric in scorer.metrics
        )
        found[scorer_name] = (said.identity, metrics)
    counted = {state: sum(value == state for value in states.values()) for state in
               (MADE, REFUSED, NO_REWRITE, FAILED, MISSING)}  # fmt: skip
    return RunReport(
        name=name or run.path.name, protocol=protocol, states=counted, scorers=found, imported=imported or {},
        rewrites=_rewrites(samples), seconds=_median([s.seconds for s in samples.values() if s.seconds]),
    )  # fmt: skip


def chosen_prompts(protocol: Mapping[str, Any], prompts: Sequence[SuitePrompt]) -> list[SuitePrompt]:
    """The prompts that a run was for. Raises UsageError where they have become others."""
    wanted = protocol.get("prompts", {})
    ids = set(wanted.get("ids", ()))
    chosen = [prompt for prompt in prompts if prompt.id in ids]
    if fingerprint(chosen) != wanted.get("sha256"):
        raise UsageError(
            "the prompts are not those that this run was drawn from", hint="--data with the files of that time"
        )
    return chosen


def score_names(run: RunFolder) -> list[str]:
    """The scorers that have said something of a run."""
    return sorted(path.stem for path in (run.path / SCORES).glob("*.jsonl"))


def _scored(
    metric: Metric, scorer: Scorer, prompts: Sequence[SuitePrompt], images: int, states: Mapping[Key, str],
    said: Mapping[Key, Row], extra: Mapping[str, Sequence[Row]],
) -> ScoredMetric:  # fmt: skip
    """`extra`: what an official evaluator counts for prompts without a picture, by id."""
    known: dict[str, dict[str, list[Row]]] = {}
    edges: dict[str, Edges] = {}
    zeroed: dict[str, dict[str, list[Row]]] = {}
    count = 0
    for prompt in prompts:
        keys = [(prompt.id, index) for index in range(images)]
        if prompt.kind not in edges:
            edges[prompt.kind] = Edges(worst=scorer.nothing(prompt), best=scorer.perfect(prompt), images=images)
        there = [said[key] for key in keys if key in said and states[key] == MADE]
        count += len(there)
        known.setdefault(prompt.kind, {})[prompt.id] = there or [*extra.get(prompt.id, ())]
        gone = [scorer.nothing(prompt)] * (images - len(there))
        zeroed.setdefault(prompt.kind, {})[prompt.id] = [*there, *gone]
    kinds = {kind: estimate(metric, {kind: known[kind]}, edges) for kind in known} if metric.by_kind else {}
    return ScoredMetric(
        metric=metric, official=estimate(metric, known, edges), zeroed=estimate(metric, zeroed, edges), scored=count,
        edges=edges,
        wanted=len(prompts) * images, kinds={kind: one for kind, one in kinds.items() if one is not None}, rows=known,
    )  # fmt: skip


def _rewrites(samples: Mapping[Key, Sample]) -> dict[str, int]:
    found: dict[str, int] = {}
    for sample in samples.values():
        found[sample.rewrite] = found.get(sample.rewrite, 0) + 1
    return found


def _median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    return ordered[len(ordered) // 2] if ordered else 0.0


# --------------------------------------------------------------------------------------------------------------- text


def table(suite: Suite, reports: Sequence[RunReport], *, compare: bool = False) -> list[str]:
    """Runs of one suite as lines of text, 80 columns; the first run is what the others are compared with."""
    lines = list[str]()
    for one in reports:
        lines += [f"{suite.title} · {one.name}", *_protocol(one), ""]
        for identity, metrics in one.scorers.values():
            lines += [f"  scorer {identity}"[:WIDTH], f"  {'':<34}{'score':<24}{'scored':<12}failures as 0"]
            for scored in metrics:
                lines += _metric(scored)
            lines.append("")
        lines += _partial(suite, one)
    for other in reports[1:]:
        lines += _differences(reports[0], other)
    lines += _paper(suite, reports[-1]) if compare else []
    if suite.name == "geneval" and any(_high(one) for one in reports):
        lines.append("GenEval is saturated: above 0.90 differences are its detector's as much as the models'.")
    return lines


def _protocol(one: RunReport) -> list[str]:
    p = one.protocol
    reasoner = p.get("reasoner") or {}
    who = "off: the suite's own words were drawn"
    if reasoner:
        who = f"{reasoner.get('mode')}, {reasoner.get('model')}, temperature {reasoner.get('temperature')}"
    prompt = reasoner.get("system_prompt")
    weights = " ".join(f"{part} {sha[:8]}" for part, sha in sorted(p.get("weights", {}).items()))
    ids = p.get("prompts", {})
    lines = [
        f"  model      {p.get('model')}; {weights}",
        f"  rewriter   {who}",
        *([f"  its prompt {prompt}, SHA-256 {str(reasoner.get('instructions_sha256'))[:16]}"] if prompt else []),
        *([f"  rewrites   {p.get('rewrites')} a prompt; refused: {p.get('on_refusal')}"] if reasoner else []),
        f"  drawn      {p.get('width')}x{p.get('height')}, {p.get('steps')} steps, guidance {p.get('guidance')}, "
        f"{p.get('sampler')}, dtype {p.get('dtype')}",
        f"  seeds      {p.get('seed')} + a hash of suite and prompt + 0..{int(p['images']) - 1}",
        f"  prompts    {len(ids.get('ids', ()))} of {ids.get('total')}, SHA-256 {str(ids.get('sha256'))[:16]}",
    ]
    more = [f"LoRAs {' '.join(str(sha)[:8] + f'={scale:g}' for sha, scale in p['loras'])}"] if p.get("loras") else []
    more += [f"strength of reward tuning {p['rl_strength']:g}"] if p.get("rl_strength") is not None else []
    more += [f"negative prompt {p['negative_prompt']!r}"] if p.get("negative_prompt") else []
    lines += [f"  with       {', '.join(more)}"] if more else []
    made = one.states.get(MADE, 0)
    gone = ", ".join(f"{count} {state}" for state, count in one.states.items() if state != MADE and count)
    lines.append(f"  pictures   {made} of {sum(one.states.values())}{f' ({gone})' if gone else ''}, "
                 f"median {one.seconds:.2f} s")  # fmt: skip
    drawn_raw = sum(one.rewrites.get(why, 0) for why in (REFUSED, NO_REWRITE))
    if drawn_raw:
        why = ", ".join(f"{one.rewrites[w]} {w}" for w in (REFUSED, NO_REWRITE) if one.rewrites.get(w))
        lines.append(f"  note       {drawn_raw} pictures had no rewrite: {why}")
    return lines


def _metric(scored: ScoredMetric) -> list[str]:
    share = f"{scored.scored}/{scored.wanted}"
    name = scored.metric.name if len(scored.metric.name) <= 32 else scored.metric.name[:31] + "…"
    if scored.official is None:
        return [f"  {name:<34}{'–':<24}{share:<12}"]
    zeroed = "" if scored.zeroed is None else f"{scored.zeroed.value:.3f}"
    lines = [f"  {name:<34}{scored.official!s:<24}{share:<12}{zeroed}"]
    lines += [f"    {kind[:30]:<32}{value}" for kind, value in scored.kinds.items() if len(scored.kinds) > 1]
    return lines


def _partial(suite: Suite, one: RunReport) -> list[str]:
    """OneIG's overall score is the mean of five; of fewer there is none."""
    if not suite.aspects:
        return []
    if len(one.imported) == suite.aspects:
        mean = sum(one.imported.values()) / suite.aspects
        parts = ", ".join(f"{name} {value:.3f}" for name, value in one.imported.items())
        return [f"  overall {mean:.3f}: the mean of {parts} (official results, read in)", ""]
    ours = [dimension for dimension, sign in (("alignment", "alignment"), ("text", "text-")) if
            any(sign in s.metric.name for _, metrics in one.scorers.values() for s in metrics)]  # fmt: skip
    count = len({*ours, *one.imported})
    return [f"  partial: {count} of {suite.aspects} dimensions, so there is no overall score", ""]


def _differences(before: RunReport, after: RunReport) -> list[str]:
    lines = [f"{after.name} less {before.name}, same prompts and seeds, failures left out"]
    for name, (_, metrics) in after.scorers.items():
        others = {one.metric.name: one for one in before.scorers.get(name, ("", ()))[1]}
        same = before.scorers.get(name, ("", ()))[0] == after.scorers[name][0]
        for one in metrics:
            other = others.get(one.metric.name)
            delta = None if other is None else difference(one.metric, other.rows, one.rows, one.edges)
            if delta is not None:
                note = "" if same else "  by different scorers"
                lines.append(f"  {one.metric.name[:32]:<34}{delta.signed()}  {delta.prompts} prompts{note}")
    if len(lines) == 1:
        lines.append("  no scorer has looked at both")
    return [*lines, ""]


def _paper(suite: Suite, one: RunReport) -> list[str]:
    columns = [(s.metric.paper, s.metric) for _, metrics in one.scorers.values() for s in metrics if s.metric.paper]
    columns = list({name: metric for name, metric in columns}.items())
    known = {name for row in paper.MODELS.values() for name in row}
    if not columns:
        columns = [(name, None) for name in sorted(known) if name.startswith(suite.name)]
    if not columns:
        return [f"the paper has no number of {suite.title}"]
    lines = ["the paper (its sizes, seeds and pictures a prompt are not stated), official scorers",
             f"  {'':<26}" + "".join(f"{name!s:<15}" for name, _ in columns)]  # fmt: skip
    mine = paper.peer(str(one.protocol.get("model")), bool(one.protocol.get("reasoner")))
    for model, row in paper.MODELS.items():
        cells = [f"{row[name]:.3f}" if name in row else "–" for name, _ in columns]  # pyright: ignore[reportArgumentType]
        if any(cell != "–" for cell in cells):
            lines.append(f"{'>' if model == mine else ' '} {model:<26}" + "".join(f"{cell:<15}" for cell in cells))
    others = sorted({metric.name for _, metric in columns if metric is not None})
    if others:
        lines.append(f"  not the official scorer: {', '.join(others)}"[:200])
    return [*lines, ""]


def _high(one: RunReport) -> bool:
    found = [s.official for _, metrics in one.scorers.values() for s in metrics]
    return any(score is not None and score.value > SATURATED for score in found)
