"""What `lens eval export`, `score`, `verify` and `report` do with a run's folder: nothing is drawn.

Light ring at module scope.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backend.errors import CancelledError, FileError, PartialBatchError, UsageError
from backend.foreign import documents
from lens_cli.terminal.console import Talk
from lens_cli.work.interrupt import Interrupt

if TYPE_CHECKING:
    from train.suites.folder import RunFolder
    from train.suites.prompts import SuitePrompt
    from train.suites.report import RunReport
    from train.suites.scorers.scorer import Scorer
    from train.suites.scorers.table import ScorerSettings
    from train.suites.table import Suite

OFFICIAL, IMPORTED = "official", "imported.json"
SHOWN = 12  # faults of an export that are printed


@dataclass(frozen=True, kw_only=True)
class OfficialChoice:
    """Where the official evaluator is, or its results."""

    repo: Path | None
    python: str
    results: Path | None
    model: str | None  # OneIG's results have a row for each


def open_run(path: Path, data: Path | None) -> tuple[RunFolder, Suite, tuple[SuitePrompt, ...]]:
    """A run, its suite and all prompts of it. Raises UsageError, FileError."""
    from train.suites.download import fetched_dir
    from train.suites.folder import RunFolder
    from train.suites.prompts import read_prompts
    from train.suites.table import suite_of

    run = RunFolder(path)
    suite = suite_of(str(run.protocol()["suite"]))
    return run, suite, read_prompts(suite, data, fetched_dir(suite))


def data_folder(suite: Suite, data: Path | None) -> Path | None:
    """Where a suite's files are. None: only in the package, or nowhere."""
    from train.suites.download import fetched_dir

    return data if data is not None else fetched_dir(suite)


def export_run(path: Path, to: Path, *, data: Path | None, link: bool, model: str | None, talk: Talk) -> None:
    """Write the official layout. Raises UsageError, FileError."""
    from train.suites.layouts import LAYOUTS, export
    from train.suites.report import chosen_prompts

    run, suite, prompts = open_run(path, data)
    chosen = chosen_prompts(run.protocol(), prompts)
    done = export(run, chosen, LAYOUTS[suite.layout], to, link=link, model=model or "")
    total = done.made + len(done.unmade)
    talk.say(f"{done.made:,} of {total:,} pictures in {done.files:,} files, as {suite.title}'s evaluator walks them")
    for state in sorted(set(done.unmade.values())):
        talk.say(f"{sum(value == state for value in done.unmade.values()):,} {state}: they are not in it")
    talk.data(to)
    unmade = [[*key, state] for key, state in done.unmade.items()]
    talk.result({"to": str(to), "layout": suite.layout, "made": done.made, "unmade": unmade, "files": done.files})


def verify_export(path: Path, *, data: Path | None, talk: Talk) -> None:
    """Hold an export against what its evaluator would read. Raises FileError (exit 1) where anything is wrong."""
    from train.suites.download import fetched_dir
    from train.suites.layouts import read_about
    from train.suites.listings import check
    from train.suites.prompts import read_prompts
    from train.suites.table import suite_of

    suite = suite_of(str(read_about(path)["suite"]))
    found = check(path, read_prompts(suite, data, fetched_dir(suite)))
    talk.data(f"{suite.title}: the evaluator reads {found.read:,} of {found.expected:,} pictures")
    if found.unmade:
        talk.data(f"{found.unmade:,} were refused, lost or failed, and are told in the export")
    for fault in found.faults[:SHOWN]:
        talk.data(fault.row())
    if len(found.faults) > SHOWN:
        talk.data(f"… and {len(found.faults) - SHOWN:,} more")
    data_ = {"suite": suite.name, "expected": found.expected, "read": found.read, "unmade": found.unmade}
    faults = [vars(fault) for fault in found.faults]
    if found.faults:
        error = FileError(f"{path} has {len(found.faults):,} faults: its score would be wrong", hint="export it again")
        if talk.json:
            talk.fail(error, {**data_, "faults": faults})
            import typer

            raise typer.Exit(error.exit_code)
        raise error
    talk.data("no faults")
    talk.result({**data_, "faults": []})


def score_run(
    path: Path, names: Sequence[str], settings: ScorerSettings, official: OfficialChoice, *, data: Path | None,
    export_to: Path | None, talk: Talk,
) -> None:  # fmt: skip
    """Let scorers look at a run's pictures; what they said before is not asked again.

    Raises CancelledError on Ctrl-C, and what scorers raise; everything said is kept.
    """
    from train.suites.folder import RunFolder
    from train.suites.report import chosen_prompts
    from train.suites.scorers.table import make_scorer
    from train.suites.scores import score
    from train.suites.table import suite_of

    suite = suite_of(str(RunFolder(path).protocol()["suite"]))
    _check_names(names, suite, settings)
    run, suite, prompts = open_run(path, data)
    protocol = run.protocol()
    chosen, images = chosen_prompts(protocol, prompts), int(protocol["images"])
    settings = replace(settings, data=data_folder(suite, data), say=talk.say)
    failed, looked = 0, False
    for name in names:
        if name == OFFICIAL:
            looked |= _official(run, suite, chosen, images, official, data, export_to, talk)
            continue
        looked = True
        scorer = make_scorer(name, suite, settings)
        count, none = 0, 0

        def on_score(key: Any, row: Mapping[str, float], why: str) -> None:
            nonlocal count, none
            count += 1
            if not row:
                none += 1
                talk.say(f"{key[0]}, picture {key[1]}: not scored: {why}")
            elif count % 50 == 0:
                talk.say(f"{count:,} pictures scored")

        try:
            with Interrupt("stopping after this picture; Ctrl-C again stops at once") as interrupt:
                said = score(run, chosen, images, scorer, on_score=on_score, stop=interrupt.stop)
                if interrupt.pressed:
                    raise CancelledError("stopped; what was scored is kept")
        finally:
            scorer.close()
        failed += none
        talk.say(f"{scorer.name}: {len(said.rows):,} pictures scored ({scorer.identity})")
    if not looked:  # commands were printed, and that is all
        talk.result({"printed": True})
        return
    found = one_report(run, suite, prompts, settings)
    from train.suites.report import table

    for line in table(suite, [found]):
        talk.data(line)
    talk.result({"report": found.data()})
    if failed:
        raise PartialBatchError(f"{failed:,} pictures were not scored", hint="the same command asks about them again")


def _check_names(names: Sequence[str], suite: Suite, settings: ScorerSettings) -> None:
    """Raises UsageError for no scorer, and what `check_scorer` does for one that cannot be made."""
    from train.suites.scorers.table import check_scorer, scorers_for

    if not names:
        fitting = ", ".join(row.name for row in scorers_for(suite))
        raise UsageError("which scorer?", hint=f"--scorer NAME: {fitting}, official")
    for name in names:
        if name != OFFICIAL:
            check_scorer(name, suite, settings)


def _official(
    run: RunFolder, suite: Suite, prompts: Sequence[SuitePrompt], images: int, choice: OfficialChoice,
    data: Path | None, export_to: Path | None, talk: Talk,
) -> bool:  # fmt: skip
    """Print the official commands; carry them out with --repo; read results with --results, or after that.

    Returns whether there are new results.
    """
    import json

    from backend.disk import write_atomic
    from train.suites import official
    from train.suites.layouts import ABOUT, LAYOUTS, export, read_about

    results, oneig = choice.results, suite.reader == "oneig"
    if results is None:
        target = export_to or run.path / "export"
        if (target / ABOUT).is_file():  # ours, and perhaps of an earlier state of the run
            shutil.rmtree(target)
        export(run, prompts, LAYOUTS[suite.layout], target, link=True)
        model = str(read_about(target)["model"])
        place = data_folder(suite, data) or Path("DATA")
        out = run.path / "official"
        at = official.Places(
            export=target, out=out, repo=choice.repo or Path("REPO"), python=choice.python, data=place, model=model
        )
        found = official.steps(suite, at, images)
        if choice.repo is None:
            for step in found:
                talk.data(official.as_shell(step, at.repo))
            talk.say("in a checkout of the official repository, with its own environment; --repo DIR --python PY runs "
                     "them, --results PATH reads what they wrote")  # fmt: skip
            return False
        out.mkdir(parents=True, exist_ok=True)
        official.run_steps(found, choice.repo, talk.say)
        results = choice.repo / "results" if oneig else out
    if oneig:
        aspects = official.read_oneig(suite, results, choice.model or "lens")
        if not aspects:
            raise UsageError(
                f"{results} has no table of {choice.model or 'lens'}", hint="--model-name NAME of its rows"
            )
        write_atomic(run.path / IMPORTED, json.dumps(aspects).encode())
        talk.say(f"read {', '.join(aspects)}")
        return True
    _keep_results(run, suite, official.read_results(suite, results, prompts), results, talk)
    return True


def _keep_results(run: RunFolder, suite: Suite, found: Mapping[Any, Any], source: Path, talk: Talk) -> None:
    from backend.cache.lines import JsonLines
    from train.suites.scores import score_path

    samples = run.samples()
    name = f"{suite.name}-official"
    digest = hashlib.sha256(repr(sorted(found.items())).encode()).hexdigest()[:12]
    lines = JsonLines(score_path(run, name))
    kept = 0
    for key, (row, seen) in found.items():
        if key in samples:
            line = {"id": key[0], "index": key[1], "pixels": samples[key].pixels, "scorer": f"{name} {digest}"}
            lines.append({**line, "row": row, "seen": seen})
            kept += 1
    talk.say(f"{kept:,} results read from {source}")


def one_report(
    run: RunFolder, suite: Suite, prompts: Sequence[SuitePrompt], settings: ScorerSettings, name: str = ""
) -> RunReport:
    """A run's report, whoever scored it. Raises UsageError, FileError."""

    from train.suites.official import scorer_of_file
    from train.suites.report import report, score_names
    from train.suites.scores import read_scores

    samples, scorers = run.samples(), dict[str, "Scorer"]()
    for file in score_names(run):
        rows = read_scores(run, file, None, samples).rows
        numbers = [name for row in list(rows.values())[:1] for name in row]
        scorer = scorer_of_file(file, suite, settings, numbers)
        if scorer is not None:
            scorers[file] = scorer
    imported = dict[str, float]()
    if (run.path / IMPORTED).is_file():
        try:
            said = documents.parse_json(documents.read_bytes(run.path / IMPORTED, 4096))
            imported = {str(key): float(value) for key, value in said.items()}
        except (ValueError, AttributeError, TypeError) as error:
            raise FileError(f"{run.path / IMPORTED} is damaged", hint="read the results in again") from error
    try:
        return report(run, suite, prompts, scorers, name, imported)
    finally:
        for scorer in scorers.values():
            scorer.close()


def report_runs(
    paths: Sequence[Path], *, data: Path | None, compare: str | None, baseline: Path | None, settings: ScorerSettings,
    talk: Talk,
) -> None:  # fmt: skip
    """Print runs of one suite side by side. A folder of several runs counts as these. Raises UsageError."""
    from train.suites.folder import PROTOCOL
    from train.suites.metrics import difference
    from train.suites.report import table

    if compare not in (None, "paper"):
        raise UsageError(f"--compare {compare!r}: there is only the paper", hint="--compare paper; --baseline RUN")
    places = list[Path]()
    for path in ([baseline] if baseline is not None else []) + list(paths):
        inside = sorted(p.parent for p in path.glob(f"*/{PROTOCOL}")) if not (path / PROTOCOL).exists() else []
        # Without a reasoner first: the others are compared with it.
        places += sorted(inside, key=lambda p: p.name != "off") or [path]
    reports, suites = list["RunReport"](), set[str]()
    suite: Suite | None = None
    for place in dict.fromkeys(places):
        run, suite, prompts = open_run(place, data)
        suites.add(suite.name)
        reports.append(one_report(run, suite, prompts, replace(settings, data=data_folder(suite, data)), str(place)))
    if len(suites) != 1 or suite is None:
        raise UsageError(f"runs of {', '.join(sorted(suites))} cannot stand in one report", hint="one suite at a time")
    for line in table(suite, reports, compare=compare == "paper"):
        talk.data(line)
    first = {s.metric.name: s for _, metrics in reports[0].scorers.values() for s in metrics}
    deltas = list[dict[str, Any]]()
    for other in reports[1:]:
        for _, metrics in other.scorers.values():
            for one in metrics:
                before = first.get(one.metric.name)
                delta = None if before is None else difference(one.metric, before.rows, one.rows, one.edges)
                if delta is not None:
                    pair = {"before": reports[0].name, "after": other.name, "metric": one.metric.name}
                    deltas.append({**pair, **delta.data()})
    talk.result({"suite": suite.name, "runs": [one.data() for one in reports], "differences": deltas})
