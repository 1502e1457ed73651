"""Kill a pre-training run with SIGKILL at random moments, again and again, and compare it with one left alone.

    python benchmarks/kill_resume.py [--kills 10] [--steps 150] [--background]

Prints one line a kill and a verdict; exits with 1 where any number of the log or any weight differs in a single bit.
The run is small (tests/train/ranks.py) and its data are noise, so that it is the bookkeeping that is measured.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from tests.train import ranks
from train import pretrain, sharded
from train.config import PretrainConfig
from train.distributed import Ranks

TIMES = ("seconds", "pictures_per_s", "tflops", "eta_s")


def config(run_dir: Path, steps: int, background: bool) -> PretrainConfig:
    return replace(ranks.config(run_dir, steps=steps), save_every=3, async_save=background)


def curve(run: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


def weights(run: Path) -> dict[str, torch.Tensor]:
    found = sharded.latest(run, Ranks(torch.device("cpu")))
    assert found is not None
    return {part + name: t for part in ("model.", "ema.") for name, t in sharded.read_whole(found, part[:-1]).items()}


def killed(run: Path, steps: int, background: bool, after: float) -> str:
    """Start the run, let it train for `after` seconds, kill it; says where it stood."""
    code = f"from benchmarks.kill_resume import *; pretrain.run(config(Path({str(run)!r}), {steps}, {background}))"
    log = run / "metrics.jsonl"
    before = log.stat().st_mtime_ns if log.exists() else 0
    child = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    while child.poll() is None and not (log.exists() and log.stat().st_mtime_ns > before):
        time.sleep(0.005)
    time.sleep(after)
    child.kill()
    code_of = child.wait()
    lines = len(log.read_text().splitlines())
    return f"{'killed' if code_of < 0 else 'was through'} after {after:.2f} s, {lines} lines in the log"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--background", action="store_true", help="write checkpoints in the background")
    parser.add_argument("--seed", type=int, default=0)
    words = parser.parse_args()
    rng = random.Random(words.seed)
    with tempfile.TemporaryDirectory() as folder:
        whole, cut = Path(folder) / "whole", Path(folder) / "cut"
        began = time.monotonic()
        pretrain.run(config(whole, words.steps, words.background))
        took = time.monotonic() - began
        for number in range(words.kills):
            print(number + 1, killed(cut, words.steps, words.background, rng.uniform(0, took / words.kills)))
        pretrain.run(config(cut, words.steps, words.background))
        ours, theirs = weights(cut), weights(whole)
        same = curve(cut) == curve(whole) and all(torch.equal(ours[name], theirs[name]) for name in theirs)
        verdict = "the same, bit for bit" if same else "DIFFERENT"
        print(f"{len(curve(whole))} lines and {len(theirs)} tensors: {verdict}")
    sys.exit(not same)


if __name__ == "__main__":
    main()
