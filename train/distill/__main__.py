"""`torchrun … -m train.distill --recipe NAME`: the options of `lens train distill`, on every rank."""

from __future__ import annotations

from train.distill.config import RECIPES, choose
from train.distill.run import run
from train.run.distributed import launch, stage_options
from train.run.metrics import on_stderr


def main() -> None:
    """Read the options and distil."""
    words = stage_options("train.distill", "Distil", RECIPES, default="nano-smoke", data=True).parse_args()

    def distil() -> None:
        run(choose(words.recipe, words.run_dir, words.set, data=words.data, random=words.random), on_stderr)

    launch(distil)


main()
