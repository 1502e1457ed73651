"""What a judge is: pictures and questions in, verdicts out, one future each."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Protocol

from train.losses.rewards import Verdict

if TYPE_CHECKING:
    from PIL.Image import Image

    from train.evals.verifier.verify import Expectation


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked about the pictures of one prompt; yes is always the good answer."""

    prompt: str
    rubrics: tuple[str, ...]
    kinds: tuple[str, ...]  # of the rubrics, for the log
    overall: str | None = None  # the rubric of every picture; None: not asked
    expectation: Expectation | None = None  # what the rules compare with, an item a rubric; None: only a model can say

    @property
    def sha256(self) -> str:
        """Of all that decides the answers."""
        said = asdict(self)
        del said["kinds"]
        return hashlib.sha256(json.dumps(said, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


class Judge(Protocol):
    """Whoever answers. A call that fails is a verdict that is missing, with the reason; never a no."""

    @property
    def identity(self) -> str:
        """What decides its verdicts beside picture and question: answers of another identity are not taken over."""
        ...

    def kinds(self, question: Question) -> tuple[str, ...]:
        """Name the verdict's answers, in their order."""
        ...

    def submit(self, picture: Image, question: Question) -> Future[Verdict]:
        """Ask, and return at once. The future raises LensError for what no later call would mend (a wrong key)."""
        ...

    def close(self) -> None:
        """Let go of threads and processes; questions under way are given up."""
        ...
