"""How often a prompt search promotes what is no better, and how often it finds what is: by simulation, and for real.

    python -m benchmarks.search_error [--searches 400] [--real 20] [--kills 20]

The simulation has no pictures: 11 rubrics a picture, alike within it (beta-binomial, correlation .35), requests of
different difficulty, 256 x 2 of them on validation, a batch of 24 x 2 before. "False": a search in which no candidate
is better promotes one. "Right": the third of ten candidates gains .06, and it is promoted. Every rule sees the same
searches; the prompt in force and its scores are shared by the candidates, as in a search. The last row is
`train.search.gate` itself, with its race, and how many pictures that saves.

`--real`: whole searches of ten candidates through `train.search.run`, on disk, with a fake generator and a judge whose
answers do not depend on the system prompt. `--kills`: one search, killed with SIGKILL so often at random, beside
one left alone. Where temporary files lie decides how long these take: TMPDIR=/dev/shm.
"""

from __future__ import annotations

import argparse
import math
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.train.search import fakes
from train.evals.stats import wilson
from train.search import gate
from train.search.config import Limits, Sizes
from train.search.folder import SearchFolder
from train.search.rules import GateRules
from train.search.run import FIRST, run
from train.search.statistics import level, sign_flip, student_t

VALIDATION, BATCH, SEEDS, GAIN, PLANTED = 256, 24, 2, 0.06, 2
Rule = Callable[[np.ndarray, int, int], bool]  # (differences, number of the validated candidate, planned) -> promote


def bound(confidence: float) -> Rule:
    """A one-sided lower bound of the mean above 0, for each candidate by itself."""
    t = student_t(confidence, VALIDATION - 1)
    return lambda d, number, planned: d.mean() > t * d.std(ddof=1) / math.sqrt(len(d))


RULES: Mapping[str, Rule] = {
    "90 % bound each": bound(0.90),
    "95 % bound each": bound(0.95),
    ".05 / planned (Bonferroni)": lambda d, number, planned: sign_flip(d.tolist()) <= 0.05 / planned,
    ".05 / (k (k + 1))": lambda d, number, planned: sign_flip(d.tolist()) <= level(number, 0.05),
}


@dataclass
class World:
    """All scores of one search, drawn before anything is decided; (candidate, request) means over the seeds."""

    validation: np.ndarray  # of the first prompt, and of every candidate after it
    batches: np.ndarray  # of every candidate on its batch
    against: np.ndarray  # of the prompt in force on that batch, where its gain is 0 …
    against_better: np.ndarray  # … and where it is GAIN

    @classmethod
    def draw(cls, rng: np.random.Generator, candidates: int, planted: bool) -> World:
        def scores(mean: np.ndarray) -> np.ndarray:
            clipped = np.repeat(mean[..., None].clip(0.02, 0.98), SEEDS, -1)
            return fakes.beta_binomial(rng, clipped).mean(-1) / fakes.RUBRICS

        lift = np.zeros((candidates + 1, 1))
        if planted:
            lift[PLANTED + 1] = GAIN
        difficulty, easy = rng.uniform(0.5, 0.92, VALIDATION), rng.uniform(0.5, 0.92, (candidates, BATCH))
        return cls(
            validation=scores(difficulty[None] + lift), batches=scores(easy + lift[1:]), against=scores(easy),
            against_better=scores(easy + GAIN),
        )  # fmt: skip


def promoted(world: World, rule: Rule | GateRules) -> tuple[list[int], int]:
    """(candidates that were promoted, pictures on validation) of one search."""
    current, number, found, pictures = 0, 0, list[int](), 0
    candidates = len(world.batches)
    for candidate in range(candidates):
        better = current == PLANTED + 1
        before = (world.against_better if better else world.against)[candidate]
        if not gate.passes_batch((world.batches[candidate] - before).tolist()):
            continue
        number += 1
        d = world.validation[candidate + 1] - world.validation[current]
        if isinstance(rule, GateRules):
            racing, ruling = gate.Racing(rule, number, VALIDATION), None
            for first, end in gate.blocks(VALIDATION, rule.block):
                pictures += SEEDS * (end - first)
                if (ruling := racing.add(d[first:end].tolist())) is not None:
                    break
            won = ruling is not None and ruling.outcome == "promoted"
        else:
            pictures += SEEDS * VALIDATION
            won = rule(d, number, candidates)
        if won:
            current = candidate + 1
            found.append(candidate)
    return found, pictures


def simulate(searches: int) -> None:
    """The table."""
    print(f"{searches} searches a cell{'':>16} false, 5   false, 10   false, 20   right, 10   pictures")
    rules: dict[str, Rule | GateRules] = {**RULES, "with the race (lens)": GateRules()}
    for name, rule in rules.items():
        cells: list[str] = []
        pictures = 0
        for candidates, planted in ((5, False), (10, False), (20, False), (10, True)):
            rng = np.random.default_rng([candidates, planted])  # every rule sees the same searches
            count = 0
            for _ in range(searches):
                found, drawn = promoted(World.draw(rng, candidates, planted), rule)
                count += PLANTED in found if planted else bool(found)
                pictures += drawn if (candidates, planted) == (10, False) else 0
            low, high = wilson(count, searches)
            cells.append(f"{count / searches:.3f} [{low:.2f},{high:.2f}]")
        print(f"{name:<28} {' '.join(cells)} {pictures / searches:7,.0f}", flush=True)


def real(searches: int) -> int:
    """How many of so many whole searches promote a candidate that is no better."""
    wrong = 0
    for number in range(searches):
        with tempfile.TemporaryDirectory() as temporary:
            made = fakes.config(sizes=Sizes(), limits=Limits(candidates=10), probes=0, seed=number, rules=GateRules())
            path = fakes.make(Path(temporary) / "run", made)
            began = time.monotonic()
            with SearchFolder(path) as folder:
                parts = fakes.parts(judge=fakes.FakeJudge(number, low=0.5, high=0.92))
                outcome = run(folder, parts, fakes.FakeWriter([fakes.plain(f"{number} {k}") for k in range(10)]))
            wrong += outcome.winner != FIRST
            print(f"{number + 1}: {outcome.verdict()} {time.monotonic() - began:.0f} s", flush=True)
    print(f"{wrong} of {searches} real searches promote a candidate that is no better")
    return wrong


def child(path: Path, log: Path) -> None:
    """One search with pictures that take a hundredth of a second: what is killed."""
    with SearchFolder(path) as folder:
        generator = fakes.FakeGenerator(log, before=lambda: time.sleep(0.01))
        run(folder, fakes.parts(generator=generator), fakes.FakeWriter([fakes.plain("good", 0.4)]))


def kills(count: int) -> bool:
    """Whether a search that is killed so often ends as one that is not, without drawing again what was on the disk."""
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as temporary:
        whole, cut = (fakes.make(Path(temporary) / name) for name in ("whole", "cut"))
        child(whole, Path(temporary) / "log")
        total = len((Path(temporary) / "log").read_text().split())
        again = 0
        for number in range(count + 1):
            there = {path.stem for path in (cut / "pictures").rglob("*.png")}
            log = Path(temporary) / f"log-{number}"
            code = f"from benchmarks.search_error import *; child(Path({str(cut)!r}), Path({str(log)!r}))"
            process = subprocess.Popen([sys.executable, "-c", code])
            if number < count:
                after = rng.randint(1, max(1, int(1.6 * total / count)))  # pictures: four fifths of all, on average
                while process.poll() is None and (not log.exists() or log.read_bytes().count(b"\n") < after):
                    time.sleep(0.002)
                time.sleep(rng.uniform(0, 0.03))
                process.kill()
            process.wait()
            drawn = set(log.read_text().split()) if log.exists() else set()
            again += len(drawn & there)
            print(
                f"{number + 1}: code {process.returncode}, {len(drawn)} pictures, {len(drawn & there)} again",
                flush=True,
            )
        same = all(
            (whole / name).read_bytes() == (cut / name).read_bytes() for name in ("events.jsonl", "samples.jsonl")
        )
    print(
        f"{count} kills: events and samples {'the same, byte for byte' if same else 'DIFFER'}, {again} pictures again"
    )
    return same and not again


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--searches", type=int, default=400)
    parser.add_argument("--real", type=int, default=0)
    parser.add_argument("--kills", type=int, default=0)
    words = parser.parse_args()
    if words.searches:
        simulate(words.searches)
    failed = bool(words.real) and real(words.real) > words.real // 20
    failed |= bool(words.kills) and not kills(words.kills)
    sys.exit(failed)


if __name__ == "__main__":
    main()
