"""A small run on a tiny model of random weights, and a judge whose verdicts are a function of the picture."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from backend.picture.images import pixel_sha256
from tests.train.changed import changed
from train.judge.judge import Question
from train.losses.rewards import Verdict
from train.rl.config import RLConfig, nano_smoke

TIMED = ("seconds", "seconds_roll", "seconds_judge", "seconds_train")
# For a run that is begun again and again.
LITTLE: dict[str, Any] = {"rollout__groups": 2, "evaluate__prompts": 1}


def plan(run_dir: Path, model: Path, **fields: Any) -> RLConfig:
    """Keys of nested fields have two underscores for the dot."""
    config = nano_smoke(run_dir)
    small = {
        "model": str(model), "rollout.base": 64, "rollout.groups": 3, "rollout.ratios": ("1:1", "4:3"),
        "machine.compute": "float32", "machine.micro_batch": 5, "epochs": 3, "nft.reference_every": 3,
        "nft.train_flat": True, "evaluate.every": 2,
    }  # fmt: skip
    return changed(config, {**small, **{name.replace("__", "."): value for name, value in fields.items()}})


class Dice:
    """Says of each picture what its pixels decide; `before` is told of every question and may raise or kill."""

    identity = "dice"

    def __init__(self, before: Callable[[int], Verdict | None] = lambda asked: None) -> None:
        self.asked, self.before, self._lock = 0, before, threading.Lock()

    def kinds(self, question: Question) -> tuple[str, ...]:
        return question.kinds

    def submit(self, picture: Image.Image, question: Question) -> Future[Verdict]:
        with self._lock:
            self.asked += 1
        future: Future[Verdict] = Future()
        said = self.before(self.asked)
        bits = int(pixel_sha256(picture)[:8], 16)
        future.set_result(said or Verdict(tuple(float(bits >> i & 1) for i in range(len(question.rubrics)))))
        return future

    def close(self) -> None:
        pass


class Brightness(Dice):
    """Answers with the brightness of a picture's colours: a little other picture has a little other verdict."""

    identity = "brightness"

    def submit(self, picture: Image.Image, question: Question) -> Future[Verdict]:
        future: Future[Verdict] = Future()
        means = np.asarray(picture, dtype=np.float64).mean((0, 1)) / 255
        future.set_result(Verdict(tuple(float(means[i % 3]) for i in range(len(question.rubrics)))))
        return future


def rows(run_dir: Path) -> list[dict[str, float]]:
    """The log, without what a clock tells."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMED} for line in lines]
