"""The words of Lens-Nano's world, from the captions themselves: what the model's `vocabulary.json` says.

python -m train.world.vocabulary MODEL_FOLDER          # writes the file into it; `lens train nano` does it too
"""

from __future__ import annotations

import json
import random
import re
import sys
from pathlib import Path

from backend.disk import write_atomic
from backend.wishes.vocabulary import NAME
from train.world import scene_text
from train.world.grid import sample_on_grid
from train.world.scenes import (
    COLOURS,
    CONTAINERS,
    GROUNDS,
    HILL_COLOURS,
    PLAIN,
    RELATIONS,
    SIZES,
    SKIES,
    STYLES,
    sample_scene,
)
from train.world.things import KINDS

NOTES = {
    "styles": "all but the first arrive seldom: nine of ten pictures of its training were flat",
    "things": "the words on a sign come out in pictures of 256x256, at other sizes seldom",
}
# Of 50 words, right: 43 at 256x256; 21 at 224x224, 7 at 320x256, 3 at 336x176, 2 at 320x320. Of ten: 3 at 288x224, 2 at
# 224x304, 1 at 352x176, 0 at 304x224.
LETTERS_AT = ("256x256",)
SCENES = 2_000  # of each of the two ways to draw them: the last new word comes within the first half (tested)
_WORD = re.compile(r"[^\W\d_]+(?:-[^\W\d_]+)*")
_QUOTED = re.compile(r"\"[^\"]*\"")


def caption_words(scenes: int = SCENES) -> set[str]:
    """Every word of brief and dense captions of so many scenes, in small letters, without those on signs."""
    found: set[str] = set()
    for number in range(scenes):
        rng = random.Random(f"vocabulary {number}")
        for scene in (sample_scene(rng), sample_on_grid(rng, 16, aspect=1.0, weights=None, flat_share=0.5)):
            for text in (scene_text.brief(scene, rng), scene_text.dense(scene, rng)):
                found.update(_WORD.findall(_QUOTED.sub(" ", text).lower()))
    return found


def vocabulary() -> dict[str, object]:
    """What a person is shown, by category, and every word that is known."""
    grounds = [name for name in GROUNDS if name != "hill"] + [f"{colour} hill" for colour in HILL_COLOURS]
    lists = {
        "things": [*KINDS, *(scene_text.kind_name(kind) for kind in CONTAINERS if kind not in KINDS), "sign"],
        "colours": [*COLOURS],
        "backgrounds": [*PLAIN],
        "grounds": grounds,
        "skies": [*SKIES],
        "relations": [*RELATIONS],
        "counts": [*scene_text.NUMBERS[1:]],
        "sizes": [*SIZES],
        "styles": [scene_text.style_name(style) for style in STYLES],
    }
    return {"lists": lists, "notes": NOTES, "letters_at": LETTERS_AT, "words": sorted(caption_words())}


def write_vocabulary(folder: Path) -> Path:
    """Write the file into a model's folder, and return it."""
    path = folder / NAME
    write_atomic(path, (json.dumps(vocabulary(), indent=1) + "\n").encode())
    return path


if __name__ == "__main__":
    print(write_vocabulary(Path(sys.argv[1])))
