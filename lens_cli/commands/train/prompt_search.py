"""`lens prompt-search`: find a better system prompt for the reasoner, without training anything."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from lens_cli import options

app = typer.Typer(no_args_is_help=True, help="Search a better system prompt for the reasoner.")

Run = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of the search.")]
NewRun = Annotated[Path, typer.Argument(metavar="RUN", help="Folder to make.")]
_ROLES, _SIZES = "Who works", "How much"
Prompt = Annotated[
    str | None,
    typer.Option("--seed-prompt", metavar="NAME|FILE", help="The prompt to begin with \\[default: the reasoner's]."),
]
Requests = Annotated[
    str,
    typer.Option(
        "--requests",
        metavar="FILE",
        help="JSON Lines of `lens train rl prompts`; nano: of Lens-Nano's "
        "world; nano-requests: of it in other words, languages, sums.",
    ),
]
Model = Annotated[
    str | None,
    typer.Option("--model", "-m", help="Who draws \\[default: nano].", rich_help_panel=_ROLES,
                 autocompletion=options.complete_model),
]  # fmt: skip
Steps = Annotated[int | None, typer.Option("--steps", min=1, help="Its sampler steps.", rich_help_panel=_ROLES)]
Base = Annotated[int | None, typer.Option("--base", min=64, help="Its base resolution.", rich_help_panel=_ROLES)]
Generator = Annotated[
    Literal["local", "endpoint"],
    typer.Option("--generator", help="endpoint: any OpenAI-compatible images address.", rich_help_panel=_ROLES),
]
Reasoner = Annotated[
    Literal["local", "api"], typer.Option("--reasoner", help="Who rewrites under the prompts.", rich_help_panel=_ROLES)
]
Judge = Annotated[
    Literal["rules", "endpoint", "scores"],
    typer.Option("--judge", help="rules: of Lens-Nano's world; endpoint: a vision model; scores: a score server.",
                 rich_help_panel=_ROLES),
]  # fmt: skip
Writer = Annotated[
    Literal["guidelines", "endpoint", "local", "manual"],
    typer.Option("--writer", help="Who writes the next prompt: a library of sentences, a model, or you.",
                 rich_help_panel=_ROLES),
]  # fmt: skip
Strategy = Annotated[
    Literal["lens", "gepa"],
    typer.Option("--strategy", help="gepa: that package's proposals, our gate.", rich_help_panel=_ROLES),
]
Train = Annotated[int | None, typer.Option("--train", min=1, help="Requests \\[160].", rich_help_panel=_SIZES)]
Validation = Annotated[
    int | None, typer.Option("--validation", min=1, help="Requests that decide \\[256].", rich_help_panel=_SIZES)
]
Test = Annotated[
    int | None, typer.Option("--test", min=1, help="Requests that confirm, once \\[256].", rich_help_panel=_SIZES)
]
Seeds = Annotated[int | None, typer.Option("--seeds", min=1, help="Pictures a request \\[2].", rich_help_panel=_SIZES)]
Candidates = Annotated[
    int | None, typer.Option("--candidates", min=1, help="That are tried at most \\[10].", rich_help_panel=_SIZES)
]
Budget = Annotated[
    str | None,
    typer.Option("--budget", metavar="LIMITS", help="pictures=4000,minutes=360,dollars=20; any of them.",
                 rich_help_panel=_SIZES),
]  # fmt: skip
Quick = Annotated[
    bool,
    typer.Option("--quick", help="A small search: proves large gains only.", rich_help_panel=_SIZES),
]
Set = Annotated[
    list[str] | None, typer.Option("--set", help="key=value, repeatable: judge.model=NAME, writer.base_url=URL, …")
]
Against = Annotated[
    list[Path] | None, typer.Option("--benchmark", help="A file of prompts that must not be searched on. Repeatable.")
]
Knows = Annotated[
    bool, typer.Option("--i-know-this-is-the-test-set", help="Search on a benchmark's prompts; the report says so.")
]
Fork = Annotated[Path | None, typer.Option("--fork", metavar="RUN", help="Go on from that search with other settings.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop; makes and spends nothing.")]
Force = Annotated[bool, typer.Option("--force", help="Take the winner although it was not confirmed.")]
Candidate = Annotated[
    str | None, typer.Argument(metavar="[CANDIDATE]", help="c0003 \\[default: what the search says].")
]
Other = Annotated[str | None, typer.Argument(metavar="[B]", help="Against this one.")]
Name = Annotated[str | None, typer.Option("--name", help="How it is called from now on \\[default: the run's name].")]
To = Annotated[Path, typer.Option("-o", "--out", help="The file to write.")]
Page = Annotated[Path | None, typer.Option("-o", "--out", help="The page \\[default: RUN/report/report.html].")]


@app.command("init")
def init(
    run: NewRun, *, seed_prompt: Prompt = None, requests: Requests = "nano", model: Model = None, steps: Steps = None,
    base: Base = None, generator: Generator = "local", reasoner: Reasoner = "local", judge: Judge = "rules",
    writer: Writer = "guidelines", strategy: Strategy = "lens", train: Train = None, validation: Validation = None,
    test: Test = None, seeds: Seeds = None, candidates: Candidates = None, budget: Budget = None, quick: Quick = False,
    set_: Set = None, benchmark: Against = None, i_know_this_is_the_test_set: Knows = False, fork: Fork = None,
    dry_run: DryRun = False, json: options.Json = False, quiet: options.Quiet = False,
) -> None:  # fmt: skip
    """Make a search, measure the noise of this setup, and say what it can find and what it costs.

    lens prompt-search init runs/a --quick · lens prompt-search init runs/b -m lens-turbo --requests set.jsonl --judge
    endpoint --set judge.model=NAME --writer endpoint --set writer.model=NAME --budget pictures=4000
    """
    from lens_cli.work.train.prompt_search import Typed, begin

    talk = options.talk_for("prompt-search init", json=json, quiet=quiet)
    typed = Typed(
        prompt=seed_prompt, requests=requests, model=model, steps=steps, base=base, generator=generator,
        reasoner=reasoner, judge=judge, writer=writer, strategy=strategy, train=train, validation=validation, test=test,
        seeds=seeds, candidates=candidates, budget=budget, quick=quick, settings=tuple(set_ or ()),
        benchmarks=tuple(benchmark or ()), knows=i_know_this_is_the_test_set, fork=fork,
    )  # fmt: skip
    begin(run, typed, dry_run, talk)


@app.command("run")
def run(run: Run, *, json: options.Json = False, quiet: options.Quiet = False) -> None:
    """Search, or go on searching. Ctrl-C or a file RUN/STOP ends it after the picture at hand; nothing is lost."""
    from lens_cli.work.train.prompt_search import search

    search(run, options.talk_for("prompt-search run", json=json, quiet=quiet))


@app.command("status")
def status(run: Run, *, json: options.Json = False, quiet: options.Quiet = False) -> None:
    """Say how far a search is and what was decided."""
    from lens_cli.work.train.prompt_search import status as show

    show(run, options.talk_for("prompt-search status", json=json, quiet=quiet))


@app.command("report")
def report(run: Run, *, out: Page = None, json: options.Json = False, quiet: options.Quiet = False) -> None:
    """Write one HTML page: the verdict with its interval, plots, and the largest wins and losses side by side."""
    from lens_cli.work.train.prompt_search import report as write

    write(run, out, options.talk_for("prompt-search report", json=json, quiet=quiet))


@app.command("diff")
def diff(
    run: Run, a: Candidate = None, b: Other = None, *, json: options.Json = False, quiet: options.Quiet = False
) -> None:  # fmt: skip
    """Show what a candidate changed: against its parent, or A against B; left out: the first prompt and the winner."""
    from lens_cli.work.train.prompt_search import diff as show

    show(run, a, b, options.talk_for("prompt-search diff", json=json, quiet=quiet))


@app.command("export")
def export(
    run: Run, candidate: Candidate = None, *, out: To, force: Force = False, json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:  # fmt: skip
    """Write the winner as a file for --system-prompt; without a confirmed gain that is the first prompt."""
    from lens_cli.work.train.prompt_search import export as write

    write(run, candidate, out, force, options.talk_for("prompt-search export", json=json, quiet=quiet))


@app.command("apply")
def apply(
    run: Run, candidate: Candidate = None, *, name: Name = None, force: Force = False, json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:  # fmt: skip
    """Put the winner into your own prompts: lens gen … --system-prompt NAME finds it there.

    Where nothing was shown to be better, nothing is changed, and it exits with 1.
    """
    from lens_cli.work.train.prompt_search import apply as do

    do(run, candidate, name, force, options.talk_for("prompt-search apply", json=json, quiet=quiet))
