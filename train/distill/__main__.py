"""`torchrun … -m train.distill --recipe NAME`: the options of `lens train distill`, on every rank."""

from __future__ import annotations

import argparse
from pathlib import Path

from train.distill.config import RECIPES, choose
from train.distill.run import run
from train.run.distributed import launch
from train.run.metrics import on_stderr


def main() -> None:
    """Read the options and distil."""
    parser = argparse.ArgumentParser(prog="train.distill", description="Distil under torchrun.")
    parser.add_argument("--recipe", default="nano-smoke", choices=sorted(RECIPES))
    parser.add_argument("--run-dir", type=Path, default=None)
    parser.add_argument("--data", type=Path, default=None, help="work folder of packed pictures")
    parser.add_argument("--random", action="store_true", help="noise instead of data, to time a step")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    words = parser.parse_args()

    def distil() -> None:
        run(choose(words.recipe, words.run_dir, words.set, data=words.data, random=words.random), on_stderr)

    launch(distil)


main()
