"""`torchrun … -m train.rl --recipe paper --run-dir RUN --set …`: the options of `lens train rl`, on every rank."""

from __future__ import annotations

import argparse
from pathlib import Path

from train.rl.config import RECIPES, choose
from train.rl.run import run
from train.run.distributed import launch
from train.run.metrics import on_stderr


def main() -> None:
    """Read the options and tune."""
    parser = argparse.ArgumentParser(prog="train.rl", description="Reinforcement learning under torchrun.")
    parser.add_argument("--recipe", required=True, choices=sorted(RECIPES))
    parser.add_argument("--run-dir", type=Path, default=None, help="a folder that all machines see")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    words = parser.parse_args()
    launch(lambda: run(choose(words.recipe, words.run_dir, words.set), on_stderr))


main()
