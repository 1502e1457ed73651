"""What a scorer is: one picture and its prompt in, a few numbers and what was seen out.

A scorer never makes up a number: where nobody could say (a refusal, an answer that cannot be read), there is none, and
the picture counts as not scored, which the coverage shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from train.suites.metrics import Metric, Row

if TYPE_CHECKING:
    from PIL import Image

    from train.suites.prompts import SuitePrompt


@dataclass(frozen=True, kw_only=True)
class Score:
    """What a scorer says of one picture."""

    row: Row  # empty: nobody could say
    seen: Any = field(default=None)  # what it was taken from, as JSON: a text, detections, answers
    why: str = ""  # where nobody could say


class Scorer(Protocol):
    """One way to score the pictures of a suite."""

    @property
    def name(self) -> str:
        """The name that reports print: of a metric that is not the official one, never the official one's."""
        ...

    @property
    def identity(self) -> str:
        """What decides its numbers beside picture and prompt: those of another identity are not taken over."""
        ...

    @property
    def metrics(self) -> Sequence[Metric]: ...

    def applies(self, prompt: SuitePrompt) -> bool:
        """Whether it says anything about pictures of this prompt."""
        ...

    def check(self) -> None:
        """Prove, before anything is scored, that it does not say yes to everything. Raises LensError."""
        ...

    def score(self, picture: Image.Image, prompt: SuitePrompt) -> Score:
        """Raises LensError for what no other picture would mend."""
        ...

    def nothing(self, prompt: SuitePrompt) -> Row:
        """The numbers of a picture that was not made: the worst there are."""
        ...

    def perfect(self, prompt: SuitePrompt) -> Row:
        """The numbers of a picture that is all that was asked for: the best there are."""
        ...

    def close(self) -> None:
        """Let go of models, threads and processes."""
        ...
