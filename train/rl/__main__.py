"""`torchrun … -m train.rl --recipe paper --run-dir RUN --set …`: the options of `lens train rl`, on every rank."""

from __future__ import annotations

from train.rl.config import RECIPES, choose
from train.rl.run import run
from train.run.distributed import launch, stage_options
from train.run.metrics import on_stderr


def main() -> None:
    """Read the options and tune."""
    words = stage_options("train.rl", "Tune by rewards", RECIPES, required=True).parse_args()
    launch(lambda: run(choose(words.recipe, words.run_dir, words.set), on_stderr))


main()
