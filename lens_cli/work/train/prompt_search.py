"""What `lens prompt-search` does behind its flags. stdout is data, stderr is talk.

Light ring at module scope.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backend.disk import make_folder, write_atomic
from backend.errors import LensError, UsageError, counted, shown
from backend.paths import prompts_dir
from lens_cli.terminal.console import Talk
from lens_cli.terminal.wrap import tell_rows
from lens_cli.work.interrupt import Interrupt
from train.search.config import GENERATORS, JUDGES, WRITERS, LocalModel, SearchConfig
from train.search.config import quick as made_quick

if TYPE_CHECKING:
    from train.search.begin import Start
    from train.search.folder import SearchFolder
    from train.search.plan import Noise, Power

LABEL = 12  # columns of a plan's labels
STOPPING = "stopping after this picture; the same command goes on. Ctrl-C again stops at once"


@dataclass(frozen=True, kw_only=True)
class Typed:
    """What was typed for a new search; None: the default."""

    prompt: str | None
    requests: str
    model: str | None
    steps: int | None
    base: int | None
    generator: str
    reasoner: str
    judge: str
    writer: str
    strategy: str
    train: int | None
    validation: int | None
    test: int | None
    seeds: int | None
    candidates: int | None
    budget: str | None
    quick: bool
    settings: tuple[str, ...]
    benchmarks: tuple[Path, ...]
    knows: bool
    fork: Path | None

    def over(self, config: SearchConfig) -> SearchConfig:
        """The config with everything that was typed. Raises UsageError."""
        from train.overrides import set_fields

        if self.quick:
            config = made_quick(config)
        sizes = {name: getattr(self, name) for name in ("train", "validation", "test", "seeds")}
        given = {name: value for name, value in sizes.items() if value is not None}
        if given:
            batch = min(config.sizes.batch, given.get("train", config.sizes.train))
            config = replace(config, sizes=replace(config.sizes, **given, batch=batch))
        limits: dict[str, Any] = dict(_budget(self.budget))
        if self.candidates is not None:
            limits |= {"candidates": self.candidates, "patience": self.candidates}
        plain = [text for text in self.settings if not text.partition("=")[0].strip().startswith("limits.")]
        # Prices before the budget that needs them.
        config = set_fields(config, plain)
        return set_fields(replace(config, limits=replace(config.limits, **limits)), [*self.settings])

    def config(self) -> SearchConfig:
        """The config of a search that begins from nothing. Raises UsageError."""
        local = LocalModel(model=self.model or "nano", steps=self.steps, base=self.base)
        if self.generator != "local" and (self.model or self.steps or self.base):
            raise UsageError("--model, --steps and --base are for --generator local", hint="--set generator.model=NAME")
        base = SearchConfig()
        return self.over(
            replace(
                base,
                generator=local if self.generator == "local" else GENERATORS[self.generator](),
                reasoner=replace(base.reasoner, mode=self.reasoner),
                judge=JUDGES[self.judge](),
                writer=WRITERS[self.writer](),
                strategy=self.strategy,
            )
        )  # fmt: skip


def _budget(text: str | None) -> dict[str, float]:
    """`pictures=4000,minutes=60` -> fields of the limits. Raises UsageError."""
    found: dict[str, float] = {}
    for part in (text or "").split(","):
        if not part.strip():
            continue
        name, separator, value = (piece.strip() for piece in part.partition("="))
        if name == "hours":
            name, value = "minutes", f"{_number(value, part) * 60}"
        if not separator or name not in ("pictures", "minutes", "dollars"):
            raise UsageError(f"--budget {shown(part)} is no limit", hint="pictures=4000,minutes=60,dollars=5")
        number = _number(value, part)
        found[name] = int(number) if name == "pictures" else number
    if text is not None and not found:
        raise UsageError("--budget is empty", hint="pictures=4000,minutes=60,dollars=5")
    return found


def _number(value: str, part: str) -> float:
    try:
        return float(value.replace("_", ""))
    except ValueError:
        raise UsageError(f"--budget {shown(part)}: {shown(value)} is no number") from None


# --------------------------------------------------------------------------------------------------------------- begin


def begin(path: Path, typed: Typed, dry_run: bool, talk: Talk) -> None:
    """Prepare, say what it can find, make the folder, measure; the folder on stdout. Raises LensError."""
    from train.search.begin import counts, create, measure, prepare, prepare_fork
    from train.search.evaluator import Evaluator
    from train.search.folder import SearchFolder
    from train.search.parts import opened
    from train.search.plan import assumed_power, power_of
    from train.search.spending import Spending

    if typed.fork is not None:
        start = prepare_fork(typed.fork, typed.over)
    else:
        start = prepare(
            typed.config(), prompt=typed.prompt, source=typed.requests, against=typed.benchmarks, knows=typed.knows
        )
    power = assumed_power(start.config, start.validated_before)
    tell_rows(_plan_lines(start, power, counts(start.requests)), LABEL, talk)
    for warning in start.warnings:
        talk.warn(warning)
    if dry_run:
        talk.result(_plan_data(start, power, None))
        return
    config = start.config
    with Interrupt(STOPPING) as interrupt:
        # The parts come first: a model or a key that is not there leaves no folder behind.
        spending = Spending(path / "spent.jsonl", config.limits)
        with opened(config, spending, path, say=talk.detail, stop=interrupt.stop) as o:
            create(path, start, o.parts)
            noise = None
            if config.pilot and not start.fork:
                talk.say(f"measuring on {min(config.pilot, config.sizes.validation)} requests …")
                with SearchFolder(path) as folder:
                    evaluator = Evaluator(folder, o.parts, spending, say=talk.say, stop=interrupt.stop)
                    noise = measure(folder, evaluator, spending)
                    _contradictions(evaluator, config, talk)
    if noise is not None:
        power = power_of(config, noise.spread, measured=True, validated_before=start.validated_before)
        tell_rows([*noise.lines(), *power.lines(), *_duration(start, noise)], LABEL, talk)
    talk.data(path)
    talk.say(f"then: lens prompt-search run {path}")
    talk.result({"run": str(path), **_plan_data(start, power, noise)})


def _contradictions(evaluator: Any, config: SearchConfig, talk: Talk) -> None:
    from train.judge.config import EndpointJudge
    from train.search.begin import contradictions

    if isinstance(config.judge, EndpointJudge):
        changed, compared = contradictions(evaluator, config.judge, talk.detail)
        if compared:
            talk.say(f"judge       contradicts itself in {changed} of {compared} answers when asked again")


def _plan_lines(start: Start, power: Power, requests: str) -> list[str]:
    from train.search.plan import costs

    config, needs = start.config, costs(start.config)
    words = len(start.prompt.split())
    locked = f", locked parts: {len(start.locked)}" if start.locked else ""
    limits = config.limits
    budget = [f"{limits.pictures:,} pictures"] if limits.pictures is not None else []
    budget += [f"{limits.minutes:g} minutes"] if limits.minutes is not None else []
    budget += [f"${limits.dollars:,.2f}"] if limits.dollars is not None else []
    return [
        f"requests    {requests}; {counted(config.sizes.seeds, 'picture')} each",
        f"begins with {words} words{locked}; writer {config.writer.kind}, judge {config.judge.kind}",
        f"pictures    about {needs.usual:,}: {needs.baselines:,} for the first prompt and none, {2 * needs.gate} at "
        f"the gate for each of {counted(limits.candidates, 'candidate')}, {needs.validation} to validate one "
        f"(losers leave earlier), {needs.confirmation:,} for the confirmation",
        f"budget      {', '.join(budget) or 'none: it ends with its candidates'}",
        *power.lines(),
        f"certainty   a search promotes a candidate that is no better with a chance of at most {config.rules.alpha:g}",
    ]


def _duration(start: Start, noise: Noise) -> list[str]:
    from lens_cli.work.train.status import duration
    from train.search.plan import costs

    needs = costs(start.config)
    return [f"time        about {duration(needs.usual * noise.seconds)}, without the writer's"]


def _plan_data(start: Start, power: Power, noise: Noise | None) -> dict[str, Any]:
    from train.overrides import as_json
    from train.search.plan import costs

    return {
        "config": as_json(start.config), "pictures": costs(start.config).data(), "power": power.data(),
        "locked": list(start.locked), "validated_before": start.validated_before,
        "noise": None if noise is None else vars(noise),
    }  # fmt: skip


# ----------------------------------------------------------------------------------------------------------------- run


def search(path: Path, talk: Talk) -> None:
    """Search to the end; the verdict on stdout. Raises CancelledError, PersonAsked and other LensErrors."""
    from lens_cli.terminal.search_view import SearchView
    from train.search.folder import SearchFolder
    from train.search.parts import opened
    from train.search.run import run
    from train.search.spending import Spending

    with Interrupt(STOPPING) as interrupt, SearchFolder(path) as folder:
        spending = Spending(path / "spent.jsonl", folder.config.limits)
        with opened(folder.config, spending, path, say=talk.detail, stop=interrupt.stop) as open_:
            writer = open_.writer
            if folder.config.strategy == "gepa":
                from train.search.writers.gepa import GepaWriter

                writer = GepaWriter(writer, path / "gepa.jsonl", folder.config.seed)
            with SearchView(talk, folder, spending) as view:
                outcome = run(
                    folder, open_.parts, writer, say=view.say, on_event=view.event, on_sample=view.sample,
                    stop=interrupt.stop, spending=spending,
                )  # fmt: skip
    talk.data(outcome.verdict())
    talk.say(f"ended: {outcome.why}. {spending.words()}")
    talk.say(f"then: lens prompt-search report {path} · lens prompt-search apply {path}")
    talk.result({**outcome.data(), "spending": spending.data()})


def status(path: Path, talk: Talk) -> None:
    """Candidates as a table on stdout. Raises LensError."""
    from train.search.folder import SearchFolder
    from train.search.report.findings import findings
    from train.search.spending import Spending

    with SearchFolder(path, read_only=True) as folder:
        found, spending = findings(folder), Spending(path / "spent.jsonl", folder.config.limits)
    if found.baselines is not None:
        base = found.baselines
        talk.data(f"first prompt {base['first']:.3f}, no rewriting {base['none']:.3f} on {base['prompts']} requests")
    for c in found.candidates:
        gain = "" if c.mean is None else f"{c.mean:+.3f}"
        interval = "" if c.low is None or c.high is None else f"[{c.low:+.3f}, {c.high:+.3f}]"
        talk.data(f"{c.name:<8} {gain:>6} {interval:<16} {c.prompts or '':>4}  {c.outcome}".rstrip())
    talk.data(found.verdict)
    talk.say(spending.words())
    talk.result(found.data())


def report(path: Path, out: Path | None, talk: Talk) -> None:
    """The page's path on stdout. Raises LensError."""
    from train.search.folder import SearchFolder
    from train.search.report.findings import findings
    from train.search.report.page import write_report

    with SearchFolder(path, read_only=True) as folder:
        page = write_report(folder, out)
        found = findings(folder)
    talk.data(page)
    talk.result({"path": str(page), **found.data()})


def diff(path: Path, a: str | None, b: str | None, talk: Talk) -> None:
    """Lines on stdout as `diff` has them. Raises LensError."""
    from train.search.folder import SearchFolder
    from train.search.report.findings import findings
    from train.search.report.page import diff as lines_of
    from train.search.run import FIRST

    with SearchFolder(path, read_only=True) as folder:
        if a is None:
            outcome = findings(folder).outcome
            a, b = FIRST, _winner(folder) if outcome is None else outcome.winner
        elif b is None:
            parent = next(
                (r["parent"] for r in folder.events.rows if r["event"] == "candidate" and r["name"] == a), FIRST
            )
            a, b = parent, a
        a, b = a or FIRST, b or FIRST
        texts = [_text(folder, name) for name in (a, b)]
    talk.say(f"{a} -> {b}")
    found = list(lines_of(*texts))
    for kind, line in found:
        if kind != "same" or len(found) < 80:
            talk.data(line)
    talk.result({"from": a, "to": b, "lines": [line for _, line in found]})


def _winner(folder: SearchFolder) -> str:
    """The prompt in force."""
    promoted = [r["name"] for r in folder.events.rows if r["event"] == "ruling" and r["outcome"] == "promoted"]
    return promoted[-1] if promoted else "c0000"


def _text(folder: SearchFolder, name: str) -> str:
    """Raises UsageError for a name that is none of the search's."""
    from train.search.folder import candidates

    known = list(candidates(folder.path))
    if name not in known:
        raise UsageError(f"there is no candidate {shown(name)}", hint=f"there are {', '.join(known)}")
    return folder.text_of(name)


# -------------------------------------------------------------------------------------------------------- using it


def _chosen(path: Path, candidate: str | None, force: bool, talk: Talk) -> tuple[str, bytes, str]:
    """(the candidate's name, its file for the prompt loader, the verdict). Raises UsageError where nothing was
    confirmed and something was asked for."""
    from train.search.folder import SearchFolder
    from train.search.report.findings import findings

    with SearchFolder(path, read_only=True) as folder:
        found = findings(folder)
        best = "c0000" if found.outcome is None else found.outcome.best
        name = candidate or (_winner(folder) if force else best)
        if name not in (best, "c0000") and not force:
            raise UsageError(
                f"{name} was not confirmed to be better: {found.verdict}", hint="--force takes it all the same"
            )
        if candidate is None and not force and name == "c0000":
            talk.warn(f"this is the first prompt: {found.verdict}")
        text, contract = _text(folder, name), folder.frozen["contract"]
    purpose = f"found by a prompt search ({name}). {found.verdict}" if name != "c0000" else "a search's first prompt"
    head = f"---\npurpose: {' '.join(purpose.split())}\ncontract: {contract}\nversion: 1\n---\n"
    return name, f"{head}{text}\n".encode(), found.verdict


def export(path: Path, candidate: str | None, out: Path, force: bool, talk: Talk) -> None:
    """The file's path on stdout. Raises LensError."""
    name, data, verdict = _chosen(path, candidate, force, talk)
    make_folder(out.absolute().parent)
    write_atomic(out, data)
    talk.data(out)
    talk.result({"path": str(out), "candidate": name, "verdict": verdict})


def _refuse_without_winner(path: Path) -> None:
    """Raises LensError where a search has found nothing that could be put into use, with what can be done about it."""
    from train.search.folder import SearchFolder
    from train.search.report.findings import findings

    with SearchFolder(path, read_only=True) as folder:
        found = findings(folder)
    said = shlex.quote(str(path))
    if found.outcome is None:
        hint = f"lens prompt-search run {said} goes on"
    elif found.outcome.best != "c0000":
        return
    elif found.outcome.winner != "c0000":
        hint = f"it was ahead on validation: lens prompt-search diff {said}, and apply {said} --force takes it"
    else:
        hint = f"another search may: lens prompt-search init RUN; why not this one: lens prompt-search report {said}"
    raise LensError(f"there is no winner to apply, and nothing was changed: {found.verdict}", hint=hint)


def apply(path: Path, candidate: str | None, name: str | None, force: bool, talk: Talk) -> None:
    """Write it into the person's own prompts; its name on stdout. Raises LensError."""
    import prompts

    called = name or re.sub(r"[^a-z0-9-]+", "-", path.resolve().name.lower()).strip("-")
    if not prompts.is_name(called):
        raise UsageError(f"a prompt cannot be called {shown(called)}", hint="--name: small letters, digits, hyphens")
    if called in prompts.names():
        raise UsageError(f"{called} is one of the package's own prompts", hint="--name another")
    if candidate is None and not force:
        _refuse_without_winner(path)
    chosen, data, verdict = _chosen(path, candidate, force, talk)
    folder = prompts_dir()
    make_folder(folder)
    target = folder / f"{called}.md"
    if target.exists() and target.read_bytes() != data:
        talk.warn(f"{target} is replaced")
    write_atomic(target, data)
    talk.data(called)
    talk.say(f"lens gen … --system-prompt {called}   (it lies in {target})")
    talk.result({"name": called, "path": str(target), "candidate": chosen, "verdict": verdict})
