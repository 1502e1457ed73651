"""The official evaluators: the exact commands in an environment of their own, and their results read back.

They need CUDA, old libraries and models of tens of gigabytes, so that lens does not import them. Where their published
scripts are at fault the commands go around it: LongText's summary is given the file that was written, OneIG's modules
are called with the grid that its shell scripts leave empty, CVTG's evaluator does not go through a mirror.
"""

from __future__ import annotations

import csv
import io
import re
import shlex
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backend.errors import FileError, LensError, UsageError, os_reason, shown
from backend.foreign import documents
from train.suites.folder import Key
from train.suites.layouts import read_about
from train.suites.metrics import Metric, Row, mean_of_kinds, pooled
from train.suites.prompts import SuitePrompt, read_text
from train.suites.scorers.scorer import Score, Scorer
from train.suites.scorers.table import ScorerSettings, scorers_for
from train.suites.scorers.text_scorers import COUNTINGS
from train.suites.table import Suite

if TYPE_CHECKING:
    from PIL import Image

ONEIG_ASPECTS = ("alignment", "text", "reasoning", "style", "diversity")


@dataclass(frozen=True, kw_only=True)
class Step:
    """One command of an official evaluation."""

    argv: tuple[str, ...]
    folder: str  # within the official repository where it runs; "." is its top


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where an official evaluation finds things, and what it is started with."""

    export: Path
    out: Path
    repo: Path  # a checkout of the official repository
    python: str  # of its own environment
    data: Path  # the suite's published files
    model: str  # OneIG's folder of pictures


def steps(suite: Suite, at: Places, images: int) -> list[Step]:
    """The commands. Raises UsageError for a suite that has no evaluator of its own."""
    export, out, mode = str(at.export.absolute()), at.out.absolute(), suite.language
    if suite.reader == "geneval":
        results = str(out / "results.jsonl")
        first = ("evaluation/evaluate_images.py", export, "--outfile", results, "--model-path", "models")
        return [
            Step(argv=(at.python, *first), folder="."),
            Step(argv=(at.python, "summary_scores.py", results), folder="evaluation"),  # reads object_names.txt there
        ]
    if suite.reader == "longtext":
        script = ("-m", "torch.distributed.run", "--nproc_per_node=1", "evaluate_text_reward.py")
        words = ("--sample_dir", export, "--output_dir", str(out), "--mode", mode)
        summary = ("summary_scores.py", str(out / "results_chunk0.jsonl"), "--mode", mode)
        return [
            Step(argv=(at.python, *script, *words), folder="textbench"),
            Step(argv=(at.python, *summary), folder="textbench"),
        ]
    if suite.reader == "oneig":
        return _oneig_steps(suite, at, round(images**0.5))
    if suite.reader == "cvtg":
        words = ("--benchmark_dir", str(at.data.absolute()), "--result_dir", export, "--output_file",
                 str(out / "cvtg.json"), "--no_hf_mirror")  # fmt: skip
        return [Step(argv=(at.python, "unified_metrics_eval.py", *words), folder=".")]
    if suite.reader == "geneval2":
        data, pictures = str((at.data / suite.files[0]).absolute()), str(Path(export) / "pictures.json")
        words = ("--benchmark_data", data, "--image_filepath_data", pictures, "--method", "soft_tifa_gm")
        script = str((at.repo / "evaluation.py").absolute())
        return [Step(argv=(at.python, script, *words, "--output_file", str(out / "gm.json")), folder=export)]
    raise UsageError(f"lens knows no official command of {suite.name}", hint="lens eval export, and its own README")


def _oneig_steps(suite: Suite, at: Places, side: int) -> list[Step]:
    """One module after another: the shell scripts set IMAGE_GRIDS and pass IMAGE_GRID, which is empty."""
    images, mode = at.export.absolute() / "images", suite.language.upper()
    common = ("--mode", mode, "--model_names", at.model, "--image_grid", f"{side},{side}")
    kinds = ["anime", "human", "object", *(["multilingualism"] if suite.language == "zh" else [])]
    every = [*kinds[:3], "text", "reasoning", *kinds[3:]]

    def step(module: str, place: Path, *more: str) -> Step:
        argv = (at.python, "-m", f"scripts.{module}", "--image_dirname", str(place), *common, *more)
        return Step(argv=argv, folder=".")

    return [
        step("alignment.alignment_score", images, "--class_items", *kinds),
        step("text.text_score", images / "text"),
        step("reasoning.reasoning_score", images / "reasoning"),
        step("style.style_score", images / "anime"),
        step("diversity.diversity_score", images, "--class_items", *every),
    ]


def as_shell(step: Step, repo: Path) -> str:
    """A line to paste."""
    folder = step.folder if Path(step.folder).is_absolute() else str(repo / step.folder)
    return f"cd {shlex.quote(folder)} && {shlex.join(step.argv)}"


def run_steps(found: Sequence[Step], repo: Path, say: Callable[[str], None]) -> None:
    """Carry them out. Raises UsageError where there is no such checkout, LensError where a command fails."""
    if not repo.is_dir():
        raise UsageError(f"--repo {repo} is no folder", hint="a checkout of the official repository")
    for step in found:
        say(as_shell(step, repo))
        folder = Path(step.folder) if Path(step.folder).is_absolute() else repo / step.folder
        try:
            code = subprocess.run(step.argv, cwd=folder, stdin=subprocess.DEVNULL).returncode
        except OSError as error:
            raise UsageError(f"cannot start {step.argv[0]} in {folder}: {os_reason(error)}") from error
        if code:
            raise LensError(f"the official evaluator ended with {code}: {shlex.join(step.argv)[:120]}")


# ------------------------------------------------------------------------------------------------------- results back


@dataclass(frozen=True, kw_only=True)
class Imported:
    """A scorer whose numbers come from the official evaluator's results. `train.suites.scorers.scorer.Scorer`."""

    name: str
    identity: str
    metrics: Sequence[Metric]
    empty: Callable[[SuitePrompt], Row]
    full: Callable[[SuitePrompt], Row]

    def applies(self, prompt: SuitePrompt) -> bool:
        return True

    def check(self) -> None:
        """The official evaluator was asked already."""

    def score(self, picture: Image.Image, prompt: SuitePrompt) -> Score:
        """Raises UsageError: its results are read in, not made here."""
        raise UsageError(f"{self.name} is read from results", hint="lens eval score RUN --scorer official --results …")

    def nothing(self, prompt: SuitePrompt) -> Row:
        return self.empty(prompt)

    def perfect(self, prompt: SuitePrompt) -> Row:
        return self.full(prompt)

    def close(self) -> None:
        pass


def imported_scorer(name: str, suite: Suite) -> Scorer | None:
    """The scorer of results that were read in; None: `name` is none."""
    if name != f"{suite.name}-official":
        return None
    if suite.reader == "geneval":
        metrics = (
            Metric(
                name="GenEval (official)", value=mean_of_kinds("right"), official=True, by_kind=True, paper="geneval"
            ),
            Metric(name="GenEval (official), pictures", value=pooled("right"), official=True),
        )
        return Imported(
            name=name,
            identity="official",
            metrics=metrics,
            empty=lambda prompt: {"right": 0.0},
            full=lambda prompt: {"right": 1.0},
        )
    if suite.reader == "longtext":
        counting = COUNTINGS[suite.name]
        metrics = counting.metrics("LongText (official)")
        return Imported(
            name=name,
            identity="official",
            metrics=metrics,
            empty=lambda p: counting.count(p, []),
            full=counting.perfect,
        )
    return None


def scorer_of_file(name: str, suite: Suite, settings: ScorerSettings, numbers: Sequence[str]) -> Scorer | None:
    """The scorer whose file in a run is called `name`, to read it: it loads nothing. None: this version has none such.

    `numbers`: the names in the file's lines. Raises what making it raises.
    """
    if (official := imported_scorer(name, suite)) is not None:
        return official
    for row in scorers_for(suite):
        if row.name == "served" and name != "served":
            continue
        of = replace(settings, rewards=tuple(numbers)) if row.name == "served" else settings
        try:
            scorer = row.make(suite, of)
        except UsageError:
            if name.endswith("vision"):
                raise
            continue
        if scorer.name == name:
            return scorer
        scorer.close()
    return None


def read_results(suite: Suite, path: Path, prompts: Sequence[SuitePrompt]) -> dict[Key, tuple[Row, Any]]:
    """Per picture what the official evaluator wrote: GenEval's results.jsonl, LongText's results_chunk*.jsonl.

    Raises UsageError for suites whose results are not per picture, FileError for lines of another form.
    """
    by_id = {prompt.id: prompt for prompt in prompts}
    files = [path] if path.is_file() else sorted([*path.glob("results_chunk*.jsonl"), *path.glob("results.jsonl")])
    if not files:
        raise UsageError(f"{path} holds no results", hint="results.jsonl (GenEval), results_chunk0.jsonl (LongText)")
    found: dict[Key, tuple[Row, Any]] = {}
    for number, line in enumerate(line for file in files for line in read_text(file).splitlines() if line.strip()):
        try:
            said = documents.parse_json(line)
            key, row, seen = _result(suite, said, by_id)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise FileError(f"{path}: line {number + 1} is no result of {suite.name}: {shown(str(error))}") from None
        if key is not None:
            found[key] = (row, seen)
    return found


def _result(suite: Suite, said: Any, by_id: Mapping[str, SuitePrompt]) -> tuple[Key | None, Row, Any]:
    if suite.reader == "geneval":
        *_, own, _, name = Path(said["filename"]).parts
        key = (own, int(Path(name).stem))
        return (key if own in by_id else None), {"right": float(bool(said["correct"]))}, said.get("reason", "")
    if suite.reader == "longtext":
        own, repeat = re.fullmatch(r"(\d{4})_(\d+)", Path(said["image"]).stem).groups()  # pyright: ignore[reportOptionalMemberAccess]
        if own not in by_id:
            return None, {}, None
        text = str(said["ocr_results"])
        return (own, int(repeat) - 1), COUNTINGS[suite.name].count(by_id[own], [text]), text
    raise UsageError(
        f"results of {suite.name} are not read picture by picture", hint="geneval and longtext-… are; oneig-… in whole"
    )


def read_oneig(suite: Suite, folder: Path, model: str) -> dict[str, float]:
    """OneIG's results folder: aspect -> score, of the newest table of each that has a row for `model`."""
    found: dict[str, float] = {}
    for aspect in ONEIG_ASPECTS:
        for path in sorted(folder.glob(f"{aspect}_score_{suite.language.upper()}_*.csv")):
            table = list(csv.reader(io.StringIO(read_text(path))))
            for row in table[1:]:
                if row and row[0] == model:
                    try:
                        found[aspect] = float(row[-1])
                    except ValueError:
                        raise FileError(f"{path}: {shown(row[-1])} is no score") from None
    return found


def export_model(folder: Path) -> str:
    """The model's name in an export. Raises as `read_about`."""
    return str(read_about(folder)["model"])
