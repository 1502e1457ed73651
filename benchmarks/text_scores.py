"""Score pictures whose text is known to be right: what `lens eval score --scorer rapidocr` gives a perfect model.

    python -m benchmarks.text_scores [--pictures 40] [--suite longtext-en]

Words are drawn on plain and tinted grounds in two sizes, in the form of each suite: several lines (LongText), a line
(OneIG), quoted pieces in several places (CVTG). What is below 1 is the reader's fault, not a generator's.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from train.suites.metrics import Edges, estimate
from train.suites.prompts import SuitePrompt
from train.suites.scorers.text_scorers import COUNTINGS, RapidOcr, TextScorer

_WORDS = (
    "fresh bread every morning open daily until seven coffee garden market street music festival welcome library "
    "summer winter harvest river mountain festival tickets available today special offer handmade quality since"
).split()
_GROUNDS = ((255, 255, 255), (246, 240, 222), (222, 236, 246), (32, 40, 60))
SUITES = ("longtext-en", "oneig-en", "cvtg")


def sample(suite: str, number: int) -> tuple[SuitePrompt, Image.Image]:
    """One prompt and a picture that has exactly its text."""
    chance = random.Random(f"{suite} {number}")
    lines = [" ".join(chance.choices(_WORDS, k=chance.randint(2, 4))) for _ in range(1 if suite == "oneig-en" else 4)]
    lines = [line.capitalize() for line in lines]
    ground = _GROUNDS[number % len(_GROUNDS)]
    picture = Image.new("RGB", (640, 90 * len(lines) + 60), ground)
    draw, ink = ImageDraw.Draw(picture), (240, 236, 220) if sum(ground) < 300 else (24, 24, 34)
    for row, line in enumerate(lines):
        font = ImageFont.load_default(chance.choice((28, 36)))
        draw.text((20 + chance.randint(0, 40), 30 + 90 * row), line, fill=ink, font=font)
    quoted = " and ".join(f"'{line}'" for line in lines)
    prompt = SuitePrompt(
        id=str(number), kind="text", number=number, prompt=f"A board with {quoted}", texts=tuple(lines)
    )
    return prompt, picture


def measure(suite: str, pictures: int) -> Sequence[str]:
    """The suite's scores of perfect pictures, a line each."""
    scorer = TextScorer(RapidOcr(), COUNTINGS[suite])
    scorer.check()
    began, rows = time.process_time(), dict[str, list[dict[str, float]]]()
    first, _ = sample(suite, 0)
    for number in range(pictures):
        prompt, picture = sample(suite, number)
        rows[prompt.id] = [dict(scorer.score(picture, prompt).row)]
    seconds = (time.process_time() - began) / pictures
    edges = {"text": Edges(worst=scorer.nothing(first), best=scorer.perfect(first), images=1)}
    found = [(metric.name, estimate(metric, {"text": rows}, edges)) for metric in scorer.metrics]
    return [f"{name:<34}{value}   {seconds:.1f} s of a core a picture" for name, value in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=40)
    parser.add_argument("--suite", choices=SUITES, nargs="+", default=list(SUITES))
    words = parser.parse_args()
    for suite in words.suite:
        for line in measure(suite, words.pictures):
            print(line, flush=True)


if __name__ == "__main__":
    main()
