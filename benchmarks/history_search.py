"""How long the history takes to answer with 100,000 pictures in it.

    python -m benchmarks.history_search [PICTURES]

Prompts are twelve words of 24, so that one word fits about four pictures in ten. 300 pictures are rated.
"""

from __future__ import annotations

import random
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from backend.picture.history import History

WORDS = (
    "red blue green fish cat castle forest moon river boat star house tree lamp child bird snow night field paper "
    "cloud mountain sea city"
).split()
GROUP = 1000  # pictures a transaction


def record(rng: random.Random, number: int) -> dict[str, Any]:
    return {
        "id": uuid.UUID(int=rng.getrandbits(128)).hex, "parent_id": None, "created": "2026-11-30T10:00:00+00:00",
        "prompt": f"{' '.join(rng.choices(WORDS, k=12))} number{number}", "negative_prompt": "", "width": 256,
        "height": 192, "seed": number, "steps": 20, "guidance": 3.0, "model": {"name": "nano"},
        "pixel_sha256": f"{rng.getrandbits(256):064x}", "timings": {"denoise": 1.5},
        "sigmas": [k / 21 for k in range(21)],
    }  # fmt: skip


def main(pictures: int) -> None:
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as folder, History(Path(folder) / "history.db") as history:
        began = time.perf_counter()
        for first in range(0, pictures, GROUP):
            history.add_all((record(rng, number), None) for number in range(first, min(first + GROUP, pictures)))
        print(f"{pictures:,} entered in {time.perf_counter() - began:.1f} s; {history.path.stat().st_size >> 20} MB")
        for entry in history.search(limit=6000)[::20]:
            history.rate(entry.id, 3)
        one = history.search("number777", limit=1)[0]
        asked: dict[str, Callable[[], Any]] = {
            "everything": lambda: history.search(),
            "a common word": lambda: history.search("red"),
            "two words": lambda: history.search("red fish"),
            "the beginning of a word": lambda: history.search("nu"),
            "a rare word": lambda: history.search("number777"),
            "no picture's word": lambda: history.search("whale"),
            "a common word of the model of all": lambda: history.search("red", model="nano"),
            "a common word of no model": lambda: history.search("red", model="lens"),
            "a common word, rated as none": lambda: history.search("red", rating=4),
            "the rated ones": lambda: history.search(rating=3),
            "an id's beginning": lambda: history.find(one.id[:12]),
            "enter one": lambda: history.add(record(rng, pictures), None),
        }
        for name, ask in asked.items():
            took = [_milliseconds(ask) for _ in range(9)]
            print(f"{name:<35} median {statistics.median(took):6.1f} ms, worst {max(took):6.1f}")


def _milliseconds(ask: Callable[[], Any]) -> float:
    began = time.perf_counter()
    ask()
    return (time.perf_counter() - began) * 1e3


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
