"""`lens eval list`, `plan`, `generate`, `export`, `score`, `verify` and `report`: public suites of prompts."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from enum import StrEnum
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from backend.types import ReasonerMode
from backend.wish import Wish
from lens_cli import options

if TYPE_CHECKING:
    from lens_cli.work.suites.draw import SuiteChoice

_SUITE, _RUN, _SCORER = "Suite", "Run", "Scorer"


class Refusal(StrEnum):
    """What becomes of a prompt that the reasoner refuses or gives no usable answer for."""

    original = "original"
    skip = "skip"
    stop = "stop"


class Rewrites(StrEnum):
    """How many rewrites a prompt has."""

    one = "one"
    each = "each"


SuiteName = Annotated[str, typer.Argument(metavar="SUITE", help="A name from `lens eval list`.")]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="A folder that `lens eval generate` wrote.")]
Runs = Annotated[list[Path], typer.Argument(metavar="RUN…", help="Folders of runs, or of several runs, of one suite.")]
Data = Annotated[
    Path | None,
    typer.Option(
        "--data", help="The suite's published files: a folder, or the file of prompts.", rich_help_panel=_SUITE
    ),
]
Fetch = Annotated[
    bool, typer.Option("--fetch", help="Get the suite's files first; their licence is shown.", rich_help_panel=_SUITE)
]
Images = Annotated[
    int | None,
    typer.Option("--n", "-n", min=1, help="Pictures of each prompt. Default: the suite's.", rich_help_panel=_SUITE),
]
Limit = Annotated[
    int | None, typer.Option("--limit", min=1, help="So many prompts, of all kinds in turn.", rich_help_panel=_SUITE)
]
PerKind = Annotated[
    int | None, typer.Option("--per-kind", min=1, help="So many prompts of each kind.", rich_help_panel=_SUITE)
]
Kinds = Annotated[
    list[str] | None, typer.Option("--kind", help="Only this kind of prompt. Repeatable.", rich_help_panel=_SUITE)
]
ShardOf = Annotated[
    str | None,
    typer.Option("--shard", metavar="I/N", help="Only part I of N, for N machines.", rich_help_panel=_RUN),
]
Seed = Annotated[
    int, typer.Option("--seed", "-s", min=0, max=2**62, help="Added to every picture's own.", rich_help_panel=_RUN)
]
Reasoners = Annotated[
    list[ReasonerMode] | None,
    typer.Option(
        "--reasoner",
        help="Who rewrites each prompt first. Twice: a run of each, as --out's folders off, local, api.",
        rich_help_panel=_RUN,
    ),
]
RewritesOf = Annotated[
    Rewrites,
    typer.Option("--rewrites", help="One rewrite a prompt, or one for each picture of it.", rich_help_panel=_RUN),
]
OnRefusal = Annotated[
    Refusal,
    typer.Option(
        "--on-refusal", help="A refused prompt: draw it as it stands, skip it, or stop. Counted.", rich_help_panel=_RUN
    ),
]
Out = Annotated[Path | None, typer.Option("--out", help="The run's folder; again, it goes on.", rich_help_panel=_RUN)]
Size = Annotated[str | None, typer.Option("--size", metavar="WxH", help="Exact size in pixels.")]
Loras = Annotated[list[str] | None, typer.Option("--lora", metavar="NAME|PATH[=SCALE]", help="As `lens gen --lora`.")]
Scorers = Annotated[
    list[str] | None,
    typer.Option("--scorer", help="Who scores: see `lens eval list`; official. Repeatable.", rich_help_panel=_SCORER),
]
BaseUrl = Annotated[
    str, typer.Option("--base-url", help="A vision model's OpenAI-compatible address.", rich_help_panel=_SCORER)
]
ModelName = Annotated[str | None, typer.Option("--model-name", help="The model's name there.", rich_help_panel=_SCORER)]
Scores = Annotated[str, typer.Option("--scores", help="A score server's address.", rich_help_panel=_SCORER)]
Rewards = Annotated[
    list[str] | None,
    typer.Option(
        "--reward", metavar="NAME[=LOW..HIGH]", help="One of the score server's. Repeatable.", rich_help_panel=_SCORER
    ),
]
Detector = Annotated[
    str, typer.Option("--detector", help="Mask2Former: a folder, or an id of the Hub.", rich_help_panel=_SCORER)
]
Clip = Annotated[str, typer.Option("--clip", help="CLIP: a folder, or an id of the Hub.", rich_help_panel=_SCORER)]
Download = Annotated[
    bool, typer.Option("--download", help="Fetch those two where they are not here.", rich_help_panel=_SCORER)
]
Repo = Annotated[
    Path | None,
    typer.Option("--repo", help="official: run it in this checkout. Without: print it.", rich_help_panel=_SCORER),
]
Python = Annotated[
    str, typer.Option("--python", help="official: of the evaluator's own environment.", rich_help_panel=_SCORER)
]
Results = Annotated[
    Path | None,
    typer.Option("--results", help="official: read what the evaluator wrote here.", rich_help_panel=_SCORER),
]
Device = Annotated[
    str, typer.Option("--device", help="Of Mask2Former and CLIP: auto, cpu, cuda.", rich_help_panel=_SCORER)
]


def add_to(app: typer.Typer) -> None:
    """Give `lens eval` its commands about suites."""
    for name, command in (
        ("list", list_), ("plan", plan), ("generate", generate), ("export", export), ("score", score),
        ("verify", verify), ("report", report),
    ):  # fmt: skip
        app.command(name)(command)


def list_(*, json: options.Json = False, quiet: options.Quiet = False) -> None:
    """List the suites: prompts x pictures, where their data is, and who can score them."""
    from lens_cli.work.suites.draw import list_suites

    list_suites(options.talk_for("eval list", json=json, quiet=quiet))


def _choice(
    suite: SuiteName, *, wish: Wish, size: Size = None, lora: Loras = None, data: Data = None, fetch: Fetch = False,
    n: Images = None, limit: Limit = None, per_kind: PerKind = None, kind: Kinds = None, shard: ShardOf = None,
    reasoner: Reasoners = None, rewrites: RewritesOf = Rewrites.one, out: Out = None,
) -> SuiteChoice:  # fmt: skip
    """What a run is, as far as both who plans it and who draws it say."""
    from lens_cli.work.suites.draw import SuiteChoice

    wish = replace(wish, size=size, base=None if size else wish.base, loras=tuple(lora) if lora else None)
    return SuiteChoice(
        suite=suite, wish=wish, data=data, fetch=fetch, images=n, limit=limit, per_kind=per_kind,
        kinds=tuple(kind or ()), shard=shard, reasoners=tuple(dict.fromkeys(reasoner or [ReasonerMode.off])),
        rewrites=cast("Literal['one', 'each']", str(rewrites)), out=out,
    )  # fmt: skip


def _takes_choice(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command's function, in the place of its parameter `choice`, the options of `_choice`."""
    light = {"SuiteChoice": object}  # whose module is not imported for --help
    shared = inspect.signature(_choice, eval_str=True, locals=light).parameters
    own = inspect.signature(function, eval_str=True, locals=light).parameters

    @wraps(function)
    def run(**typed: Any) -> None:
        function(choice=_choice(**{name: typed.pop(name) for name in shared}), **typed)

    parameters = [one for item in own.values() for one in (shared.values() if item.name == "choice" else [item])]
    vars(run)["__signature__"] = inspect.Signature(
        [item.replace(kind=inspect.Parameter.KEYWORD_ONLY) for item in parameters]
    )
    return run


@options.takes_wish("eval", first=("model", "steps", "guidance", "base"))
@_takes_choice
def plan(
    *,
    choice: SuiteChoice,
    measure: Annotated[bool, typer.Option("--measure", help="Draw one picture twice and time it.")] = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Estimate a run: pictures, rewrites, time, disk, and the scorers' questions. Draws nothing without --measure.

    Examples: lens eval plan geneval -m lens · lens eval plan nano --measure --reasoner off --reasoner local
    """
    from lens_cli.work.suites.draw import plan_suite

    plan_suite(choice, measure, options.talk_for("eval plan", json=json, quiet=quiet))


@options.takes_wish("eval", first=("model", "steps", "guidance", "base"))
@_takes_choice
def generate(
    *,
    choice: SuiteChoice,
    seed: Seed = 0,
    on_refusal: OnRefusal = Refusal.original,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Draw a suite into a folder, once; score, export and report read it. The same command again goes on.

    Examples: lens eval generate geneval -m lens --out runs/geneval --reasoner off --reasoner api
    · lens eval generate nano --limit 70 --out runs/nano · lens eval generate oneig-en --fetch --out runs/oneig
    """
    from lens_cli.work.suites.draw import generate_suite

    refusal = cast("Literal['original', 'skip', 'stop']", str(on_refusal))
    talk = options.talk_for("eval generate", json=json, quiet=quiet)
    generate_suite(replace(choice, seed=seed, on_refusal=refusal), talk)


def export(
    run: Run,
    *,
    to: Annotated[Path, typer.Option("--to", help="A new or empty folder.")],
    data: Data = None,
    link: Annotated[
        bool, typer.Option("--link", help="Hard links in place of copies, where a file is as it is.")
    ] = False,
    model_name: Annotated[
        str | None, typer.Option("--model-name", help="OneIG's folder. Default: the model's.")
    ] = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Write a run's pictures in the layout that the suite's official evaluator walks. Draws nothing.

    Example: lens eval export runs/geneval --to geneval-images/
    """
    from lens_cli.work.suites.judge import export_run

    talk = options.talk_for("eval export", json=json, quiet=quiet)
    export_run(run, to, data=data, link=link, model=model_name, talk=talk)


def verify(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="What `lens eval export` wrote.")],
    *,
    data: Data = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Check an export by the rules of the official evaluator's own listing; exit 1 where its score would be wrong.

    Missing, extra, unreadable, black and unequal pictures are faults; what the run says it refused is not.
    """
    from lens_cli.work.suites.judge import verify_export

    verify_export(folder, data=data, talk=options.talk_for("eval verify", json=json, quiet=quiet))


def score(
    run: Run,
    *,
    scorer: Scorers = None,
    base_url: BaseUrl = "http://127.0.0.1:8000/v1",
    model_name: ModelName = None,
    scores: Scores = "http://127.0.0.1:8080",
    reward: Rewards = None,
    detector: Detector = "facebook/mask2former-swin-small-coco-instance",
    clip: Clip = "openai/clip-vit-large-patch14",
    download: Download = False,
    device: Device = "auto",
    repo: Repo = None,
    python: Python = "python",
    results: Results = None,
    data: Data = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Let scorers look at a run's pictures, once each, and print the report. The same command again goes on.

    Examples: lens eval score runs/longtext --scorer rapidocr · lens eval score runs/geneval --scorer vision
    --model-name qwen2.5-vl-7b · lens eval score runs/geneval --scorer official
    """
    from lens_cli.work.suites.judge import OfficialChoice, score_run
    from train.suites.scorers.table import ScorerSettings

    settings = ScorerSettings(
        base_url=base_url, model=model_name or "", scores=scores, rewards=tuple(reward or ()), detector=detector,
        clip=clip, download=download, device=device,
    )  # fmt: skip
    official = OfficialChoice(repo=repo, python=python, results=results, model=model_name)
    talk = options.talk_for("eval score", json=json, quiet=quiet)
    score_run(run, scorer or [], settings, official, data=data, export_to=None, talk=talk)


def report(
    runs: Runs,
    *,
    compare: Annotated[str | None, typer.Option("--compare", help="paper: its rows beside ours.")] = None,
    baseline: Annotated[
        Path | None, typer.Option("--baseline", help="A run that the others are compared with, prompt by prompt.")
    ] = None,
    data: Data = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Print runs side by side: protocol, scores with intervals, coverage, failures as zero, paired differences.

    Examples: lens eval report runs/geneval --compare paper · lens eval report runs/new --baseline runs/old
    """
    from lens_cli.work.suites.judge import report_runs
    from train.suites.scorers.table import ScorerSettings

    talk = options.talk_for("eval report", json=json, quiet=quiet)
    report_runs(runs, data=data, compare=compare, baseline=baseline, settings=ScorerSettings(), talk=talk)
