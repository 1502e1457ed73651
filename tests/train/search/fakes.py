"""A search whose world is arithmetic: system prompts with a known effect, pictures of a few pixels, a judge that draws
its answers from them.

Every request has a difficulty; a picture's eleven rubrics hold with a probability around it, alike within one picture
(beta-binomial, correlation .35: what was assumed for a vision model). A system prompt that says `lift=0.06` raises it
by so much. All is a function of texts and seeds, so that a search can be compared with itself; what it does not do is
draw: its pictures say nothing about real ones.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from prompts import SystemPrompt
from train.judge.judge import Question
from train.losses.rewards import Missing, Verdict
from train.rl.prompts.prompt_set import Rubric
from train.search import folder as folders
from train.search.config import Limits, SearchConfig, Sizes
from train.search.evaluator import Parts, Rewrite
from train.search.requests import Request, split_requests
from train.search.rules import GateRules
from train.search.writers.task import Proposal, Task

FIRST_PROMPT = "Rewrite the request as it is. Refuse what the policy forbids."
RUBRICS = 11
ALIKE = 0.35  # correlation of the rubrics of one picture


def digest(*parts: object) -> bytes:
    return hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()


def unit(*parts: object) -> float:
    return int.from_bytes(digest(*parts)[:7]) / 2**56


def beta_binomial(rng: np.random.Generator, mean: np.ndarray, count: int = RUBRICS) -> np.ndarray:
    """Rubrics that hold of `count`, of pictures whose mean probabilities are given."""
    weight = (1 - ALIKE) / ALIKE
    return rng.binomial(count, rng.beta(mean * weight, (1 - mean) * weight))


class FakeRewriter:
    """Says who asked: prompts that differ give pictures that differ. `harsh` in a prompt refuses all probes."""

    identity = "fake rewriter"

    def __init__(self) -> None:
        self.asked: list[str] = []

    def rewrite(self, request: str, system: SystemPrompt) -> Rewrite:
        self.asked.append(request)
        if "harsh" in system.body:
            return Rewrite(refused="gore")
        lift = re.search(r"lift=(-?[0-9.]+[0-9])", system.body)
        return Rewrite(prompt=f"{request} | {lift.group(1) if lift else 0} {system.sha256[:12]}")


class FakeGenerator:
    """Eight by eight pixels that are a hash; the first one tells the lift."""

    identity = "fake generator"

    def __init__(self, log: Path | None = None, before: Callable[[], None] = lambda: None) -> None:
        self.drawn: list[tuple[str, int]] = []
        self.log, self.before = log, before

    def draw(self, prompt: str, seed: int) -> Image.Image:
        self.before()
        self.drawn.append((prompt, seed))
        if self.log is not None:
            with self.log.open("a") as file:
                file.write(f"{folders.text_sha256(folders.canonical([self.identity, prompt, seed]))}\n")
        lift = float(prompt.rpartition("| ")[2].split()[0]) if "| " in prompt else -0.05
        data = (digest(prompt, seed) * 6)[:189]
        return Image.frombytes("RGB", (8, 8), bytes([round(lift * 100) + 128, 0, 0]) + data)


class FakeJudge:
    """Beta-binomial around the request's difficulty and the picture's lift; at random, of equal prompts."""

    def __init__(
        self, seed: int = 0, *, low: float = 0.2, high: float = 0.5,
        missing: Callable[[Question], bool] = lambda question: False,
    ) -> None:  # fmt: skip
        """`low`, `high`: between these lies a request's mean without any lift."""
        self.seed, self.low, self.high, self.missing, self.asked = seed, low, high, missing, 0

    @property
    def identity(self) -> str:
        return f"fake judge {self.seed}"

    def kinds(self, question: Question) -> tuple[str, ...]:
        return question.kinds

    def submit(self, picture: Image.Image, question: Question) -> Future[Verdict]:
        self.asked += 1
        found: Future[Verdict] = Future()
        if self.missing(question):
            found.set_result(Verdict(missing=Missing.TIMEOUT))
            return found
        pixels = picture.tobytes()
        rng = np.random.default_rng(int.from_bytes(digest(self.seed, pixels.hex(), question.prompt)[:8]))
        level = self.low + (self.high - self.low) * unit("difficulty", question.prompt) + (pixels[0] - 128) / 100
        holding = int(beta_binomial(rng, np.array(min(0.98, max(0.02, level)))))
        answers = [1.0] * holding + [0.0] * (RUBRICS - holding)
        rng.shuffle(answers)
        found.set_result(Verdict(tuple(answers)))
        return found

    def close(self) -> None:
        pass


class FakeWriter:
    """The candidates that it was given, one after another; then new ones without effect."""

    identity = "fake writer"

    def __init__(self, texts: Sequence[str] = ()) -> None:
        self.texts, self.tasks = list(texts), list[Task]()

    def write(self, task: Task) -> Proposal:
        self.tasks.append(task)
        place = task.iteration if task.attempt == 0 else len(self.texts)
        own = self.texts[place] if place < len(self.texts) else plain(f"{task.iteration} {task.attempt}")
        return Proposal(text=own, changes=f"try {task.iteration}")


def plain(name: object, lift: float = 0.0) -> str:
    """A candidate with an effect."""
    words = " ".join(digest(name, place).hex()[:6] for place in range(20))
    return f"Rewrite it anew: {words}. lift={lift:.2f} Refuse what the policy forbids."


def requests(count: int) -> tuple[Request, ...]:
    rubrics = tuple(
        Rubric(kind=("item", "count", "color")[n % 3], text=f"Does rubric {n} hold?") for n in range(RUBRICS)
    )
    return tuple(
        Request(
            id=f"r{n:04d}", prompt=f"thing number {n} of the set", category=f"c{n % 5}", item=f"i{n}", rubrics=rubrics
        )
        for n in range(count)
    )  # fmt: skip


def config(**changes: Any) -> SearchConfig:
    """A small search; `changes` name fields of the config."""
    small = SearchConfig(
        sizes=Sizes(train=12, validation=20, test=20, seeds=2, batch=6), limits=Limits(candidates=4), probes=4,
        rules=GateRules(block=8),
    )  # fmt: skip
    return replace(small, **changes)


def make(path: Path, made: SearchConfig | None = None, *, first: str = FIRST_PROMPT, **frozen: Any) -> Path:
    """The folder of a new search."""
    made = made or config()
    sizes = made.sizes
    chosen = split_requests(requests(sizes.train + sizes.validation + sizes.test), sizes, made.seed)
    known = {"contract": "complete", "locked": ["Refuse what the policy forbids."], **frozen}
    folders.create(path, made, chosen, known, first)
    return path


def parts(**changes: Any) -> Parts:
    return Parts(**({"rewriter": FakeRewriter(), "generator": FakeGenerator(), "judge": FakeJudge()} | changes))
