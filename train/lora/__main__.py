"""`torchrun … -m train.lora PICTURES -m MODEL`: the options of `lens train lora`, on every rank."""

from __future__ import annotations

from pathlib import Path

from backend.types import Quant
from train.lora.config import RECIPES, choose
from train.lora.run import run
from train.run.distributed import launch, stage_options
from train.run.metrics import on_stderr


def main() -> None:
    """Read the options and fine-tune."""
    parser = stage_options("train.lora", "Fine-tune", RECIPES)
    parser.add_argument("pictures", type=Path, help="folder of pictures; the caption of a.png is a.txt beside it")
    parser.add_argument("--model", "-m", default="nano")
    parser.add_argument("--quant", type=Quant, default=None)
    parser.add_argument("--full", action="store_true", help="train all weights instead of adapters")
    words = parser.parse_args()

    def tune() -> None:
        config = choose(
            words.pictures, words.model, words.run_dir, words.set, recipe=words.recipe, quant=words.quant,
            full=words.full,
        )  # fmt: skip
        run(config, on_stderr)

    launch(tune)


main()
