"""The paper's Figure 4 in miniature: train on dense, brief and mixed captions, and see what each draws better.

    python -m benchmarks.caption_ablation --out runs/captions [--start backend/nano] [--steps 200] [--seeds 3]

Every arm sees as many pictures as the others, from the same start, with the same learning rate falling to nothing;
only the captions differ. Each is then judged by `lens eval nano` on the same prompts and starting noise, once worded
briefly and once densely. From nothing Lens-Nano takes days on two cores, so an arm goes on from a model that has seen
all kinds of captions: this compares the last stretch of a training, not a whole one. Intervals over pictures know that
the seeds' pictures of one prompt are alike. Results are kept in --out, and each run's talk beside it, in a .log.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from train.evals.nano import EvalComparison, EvalFolder, EvalReport
from train.evals.nano_prompts import PROMPT_KINDS
from train.run import status

ARMS = {"dense": "1,0,0", "brief": "0,0,1", "mixed": "0.5,0,0.5"}  # shares of dense, partly dense and brief captions
WORDINGS = ("brief", "dense")
_T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # Student's t for the 95 % interval of a mean of so many runs
_LENS = (sys.executable, "-c", "from lens_cli.app import main; main()")


@dataclass(frozen=True)
class Job:
    """One arm with one seed."""

    arm: str
    seed: int
    words: argparse.Namespace

    @property
    def folder(self) -> Path:
        return self.words.out / f"{self.arm}-{self.seed}"

    def results(self, wording: str) -> Path:
        return self.folder / f"eval-{wording}"

    def run(self) -> None:
        """Train, export, evaluate; what is there already is not done again. Raises CalledProcessError."""
        words = self.words
        stage = {
            "steps": words.steps, "decay_steps": words.steps, "square_share": 0.5,
            "learning_rate": words.learning_rate, "time_offset": 0,
        }  # fmt: skip
        mix = {
            "captions": ARMS[self.arm], "layouts": "none", "coloured_share": 0.82, "placed_share": 0.8,
            "orderly": "false", "flat_share": 0.85,
        }  # fmt: skip
        fields = {
            "seed": self.seed, "start_from": words.start, "stages.0.steps": 0, "stages.2.steps": 0,
            **{f"stages.1.{key}": value for key, value in stage.items()},
            **{f"data.mixes.1.{key}": value for key, value in mix.items()},
            "data.align.weight": 0,  # its map would begin anew, and pull at a network that is past it
            "data.per_round": words.scenes, "data.passes": 99, "optim.warmup": 20, "optim.ema_decay": 0.98,
            "saving.validate_every": words.steps, "saving.preview_every": 10**9, "saving.save_every": words.steps,
            "saving.keep": 1,
        }  # fmt: skip
        model = self.folder / "export"
        if not (model / "transformer").exists():
            sets = [f"--set={key}={value}" for key, value in fields.items()]
            self._lens("train", "pretrain", "--recipe", "nano", "--run-dir", str(self.folder), *sets)
            self._lens("train", "export", str(self.folder), "--out", str(model), "--dtype", "float32")
        for wording in WORDINGS:
            self._lens(
                "eval", "nano", "-m", str(model / "transformer"), "--prompts", wording, "--limit", str(words.limit),
                "--guidance", str(words.guidance), "--out", str(self.results(wording)), "-q",
                *(f"--kind={kind}" for kind in words.kinds),
            )  # fmt: skip

    def _lens(self, *arguments: str) -> None:
        threads = max(1, (os.cpu_count() or 1) // self.words.jobs)
        with (self.folder.parent / f"{self.folder.name}.log").open("ab") as log:
            subprocess.run(
                (*_LENS, *arguments), check=True, stdout=log, stderr=log,
                env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            )  # fmt: skip

    def report(self, wording: str) -> EvalReport:
        """What was judged."""
        return EvalReport(results=EvalFolder(self.results(wording)).read())

    @property
    def validation(self) -> float:
        """Validation loss at the end, on the usual mixture of captions, the same for all arms."""
        (run,) = status.find(self.folder)
        loss = run.last("validation")
        assert loss is not None, "it validates at its last step"
        return loss


def spread(values: list[float]) -> str:
    """Mean of several runs with its 95 % interval by Student's t; nothing is known from one."""
    mean = statistics.fmean(values)
    if len(values) not in _T_95:
        return f"{mean:.4f}"
    half = _T_95[len(values)] * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:.4f} ± {half:.4f}"


def together(seeds: list[EvalReport]) -> EvalReport:
    """All seeds of an arm as one report: the n-th seed's picture counts as the n-th picture of a prompt."""
    return EvalReport(results=[replace(r, index=n) for n, report in enumerate(seeds) for r in report.results])


def table(arms: dict[str, list[Job]]) -> Iterator[str]:
    """What came out, as lines of text."""
    yield "validation loss on the usual mixture of captions; mean of the seeds, Student's 95 % interval"
    yield from (f"  {arm:<6} {spread([job.validation for job in jobs])}" for arm, jobs in arms.items())
    for wording in WORDINGS:
        seeds = {arm: [job.report(wording) for job in jobs] for arm, jobs in arms.items()}
        reports = {arm: together(of) for arm, of in seeds.items()}
        yield f"lens eval nano --prompts {wording}; mean of the kinds, then all pictures with Wilson's 95 % interval"
        for arm, of in seeds.items():
            yield f"  {arm:<6} {spread([report.overall for report in of])}   {reports[arm].micro.row('')}"
        for one, other in itertools.combinations(arms, 2):
            yield f"  {other} against {one}: {EvalComparison.of(reports[one], reports[other]).micro_row()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs and their results")
    parser.add_argument("--start", default="backend/nano", help="run or model that every arm goes on from")
    parser.add_argument("--steps", type=int, default=200, help="of 16 pictures")
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--scenes", type=int, default=512, help="drawn for a run; seen as often as its steps need")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--limit", type=int, default=70, help="prompts of each wording")
    parser.add_argument("--kinds", nargs="*", default=[], choices=PROMPT_KINDS, help="of prompts; default: all")
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, which share out the cores")
    words = parser.parse_args()
    words.out.mkdir(parents=True, exist_ok=True)
    arms = {arm: [Job(arm, seed, words) for seed in range(words.seeds)] for arm in ARMS}
    # Seed after seed: what is finished early compares all arms.
    order = list(itertools.chain(*zip(*arms.values(), strict=True)))
    with ThreadPoolExecutor(words.jobs) as pool:
        for job, _ in zip(order, pool.map(Job.run, order), strict=True):
            print(f"{job.folder.name}: validation loss {job.validation:.4f}", flush=True)
    print("\n".join(table(arms)))


if __name__ == "__main__":
    main()
