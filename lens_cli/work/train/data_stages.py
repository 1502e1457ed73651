"""The heavy half of `lens train data`: one function a stage, wired to the engine and to the two streams.

`order` is what `run` goes through. A stage's function takes a Call, remembers its settings in WORK/config.json, runs
the shards that are not done, and says what came of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from backend.errors import UsageError
from lens_cli.terminal.console import Talk, human_bytes
from lens_cli.work.train.data_call import Call, run_stage
from train.data import scan as scanning
from train.data import score as scoring
from train.data import select as selecting
from train.data.settings import read_section, section, write_section
from train.data.sources import PictureSource, find_source, parse_source

# --------------------------------------------------------------------------------------------------------------- stages


def scan(call: Call, given: Sequence[str]) -> None:
    sources = _sources(call, given)
    settings, remembered = section(scanning.ScanSettings, "scan", call.folder, call.given)
    if call.dry_run:
        from lens_cli.work.train.data_dry_run import explain_sources

        explain_sources(call, sources, settings)
        return
    write_section(call.folder, "sources", {source.name: source.path for source in sources})
    write_section(call.folder, "scan", remembered)
    shards, notes = scanning.make_plan(call.work, sources, settings, call.engine, call.workers)
    for note in notes:
        call.talk.warn(note)
    stage = scanning.Scan(call.work, settings.max_pixels)
    todo = [s for s in shards if not call.work.done("scan", s, stage.stamp(s))]
    run_stage(call, "scan", stage, todo, call.workers)
    totals = scanning.totals(call.work)
    call.talk.say(
        f"scan: {totals['pictures']:,} pictures in {totals['shards']:,} shards, {human_bytes(totals['bytes'])}; "
        f"{totals['unreadable']:,} unreadable; {totals['captions']:,} with a caption"
        + (f" ({totals['captions_unusable']:,} captions cannot be used)" if totals["captions_unusable"] else "")
    )
    call.talk.result(totals)


def _sources(call: Call, given: Sequence[str]) -> list[PictureSource]:
    """Those of the command line, else those of last time."""
    if given:
        return [parse_source(text) for text in given]
    remembered = read_section(call.folder, "sources")
    if not remembered:
        raise UsageError("no pictures were named", hint=f"lens train data scan {call.folder} PICTURES/")
    return [find_source(str(path), name) for name, path in remembered.items()]


def score(call: Call) -> None:
    settings, remembered = section(scoring.ScoreSettings, "score", call.folder, call.given)
    limit = section(scanning.ScanSettings, "scan", call.folder)[0].max_pixels
    shards = scanning.planned(call.work)
    classic = scoring.Score(call.work, settings.filters, max_pixels=limit)
    if call.dry_run:
        from lens_cli.work.train.data_dry_run import explain_score

        explain_score(call, settings, [s for s in shards if classic.missing(s)], limit)
        return
    models = scoring.find_models(settings)
    write_section(call.folder, "score", remembered)
    run_stage(call, "score", classic, [s for s in shards if classic.missing(s)], call.workers)
    if models:
        from train.data.scores.learned import describe

        for model in models:
            call.talk.say(describe(model))
        learned = replace(classic, classic=(), models=models, batch=settings.batch, device=settings.device)
        todo = [s for s in shards if learned.missing(s)]
        if call.engine == "local":
            run_stage(call, "score (models)", learned, todo, _model_workers(call.workers, settings.device))
        else:
            share = 0.0 if settings.device == "cpu" else 1 / _A_GPU
            run_stage(call, "score (models)", learned, todo, call.workers, gpus=share)
    names = [*settings.filters, *(model.filter for model in models)]
    call.talk.say(f"score: {', '.join(names)} for {len(shards):,} shards")
    call.talk.result({"filters": names, "shards": len(shards)})


_A_GPU = 4  # processes that share one, as one process cannot decode as fast as a GPU scores


def _model_workers(asked: int | None, device: str) -> int:
    """Processes that each hold the models; on the CPU the one process that there is, whose threads have all cores.

    Raises UsageError for a device that is not here.
    """
    from train.data.scores.learned import pick_device

    kind = pick_device(device).type  # before anything starts
    if asked is not None:
        return asked
    import torch

    return 0 if kind == "cpu" else _A_GPU * (torch.cuda.device_count() if device == "auto" else 1)


def select(call: Call) -> None:
    sources = list(read_section(call.folder, "sources"))
    settings, remembered = selecting.read_settings(read_section(call.folder, "select"), call.given, sources)
    shards = scanning.planned(call.work)
    scored = selecting.scored_filters(call.work, shards)
    for name in selecting.not_applied(settings, scored):
        call.talk.warn(f"{name} is not applied: it was not scored")
    stage = selecting.Select(call.work, settings, scored)
    if call.dry_run:
        from lens_cli.work.train.data_dry_run import explain_select

        explain_select(call, stage, shards)
        return
    write_section(call.folder, "select", remembered)
    run_stage(
        call, "select", stage, [s for s in shards if not call.work.done("select", s, stage.stamp(s))], call.workers
    )
    funnel = selecting.funnel(call.work, shards)
    call.talk.say(f"select: {funnel.kept:,} of {funnel.pictures:,} pictures kept")
    for name, taken in funnel.first.items():
        call.talk.say(f"  {name:<10} {taken:>10,} dropped, {funnel.alone[name]:,} by it alone")
    call.talk.result({"pictures": funnel.pictures, "kept": funnel.kept, "dropped": funnel.first, "alone": funnel.alone})


def report(call: Call) -> None:
    from train.data.report.page import ReportSettings, write_report

    settings, remembered = section(ReportSettings, "report", call.folder, call.given)
    path = call.folder / "report.html"
    if call.dry_run:
        call.talk.say(f"report: would write {path} from {len(scanning.planned(call.work)):,} shards")
        return
    write_section(call.folder, "report", remembered)
    write_report(call.work, path, settings)
    call.talk.data(path)
    call.talk.result({"path": str(path)})


# ------------------------------------------------------------------------------------------------------------------ run


# Stages after `scan`, in their order. Those that need what the work folder was not given (an endpoint for captions) say
# so and do nothing.
def order() -> dict[str, Callable[[Call], None]]:
    from lens_cli.work.train import data_packing  # imports this module

    later = {
        "dedup": data_packing.find_duplicates,
        "caption": data_packing.caption_if_told,
        "bucket": data_packing.bucket,
        "pack": data_packing.pack,
    }
    return {"score": score, "select": select, **later, "report": report}


class _Among(Talk):
    """The voice of a stage among others: of all answers in JSON only the last may go to stdout."""

    def result(self, data: dict[str, Any]) -> None:
        pass


def run_all(call: Call, given: Sequence[str]) -> None:
    """`scan` and then `order`; `--set stage.key=value` goes to its stage. With --dry-run: what `scan` can tell."""
    settings: dict[str, list[str]] = {"scan": []}
    settings |= {name: [] for name in order()}
    for text in call.given:
        stage, dot, rest = text.partition(".")
        if not dot or stage not in settings:
            raise UsageError(f"--set {text}: not stage.key=value", hint=f"stages: {', '.join(settings)}")
        settings[stage].append(rest)
    inner = replace(call, talk=_Among(**vars(call.talk)))
    scan(replace(inner, given=tuple(settings["scan"])), given)
    if not call.dry_run:
        for name, stage in order().items():
            stage(replace(inner, given=tuple(settings[name])))
    call.talk.result({"work": str(call.folder)})
