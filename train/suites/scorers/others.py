"""Score by whoever else looks at pictures: a score server's rewards, and the rules of Lens-Nano's drawn world."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from train.suites.metrics import Metric, Row, mean_of_kinds, pooled
from train.suites.scorers.scorer import Score

if TYPE_CHECKING:
    from PIL import Image

    from train.judge.config import ScoreServer
    from train.judge.judge import Judge
    from train.suites.prompts import SuitePrompt


class ServedScores:
    """Rewards of a score server (`POST /score`), each a metric. `train.suites.scorers.scorer.Scorer`."""

    name = "served"

    def __init__(self, config: ScoreServer) -> None:
        """Raises UsageError for what is no address."""
        from train.judge.score_server import ScoreJudge

        self.rewards = tuple(scorer.name for scorer in config.scorers)
        self.judge: Judge = ScoreJudge(config)

    @property
    def identity(self) -> str:
        return self.judge.identity

    @property
    def metrics(self) -> Sequence[Metric]:
        return [Metric(name=f"served {name}", value=pooled(name), by_kind=True) for name in self.rewards]

    def applies(self, prompt: SuitePrompt) -> bool:
        return True

    def check(self) -> None:
        """Ask for the score of one empty picture. Raises UsageError for a reward that the server lacks."""
        from PIL import Image

        self._verdict(Image.new("RGB", (64, 64), "white"), "an empty picture")

    def score(self, picture: Image.Image, prompt: SuitePrompt) -> Score:
        verdict = self._verdict(picture, prompt.prompt)
        if verdict.missing is not None:
            return Score(row={}, why=str(verdict.missing))
        pairs = zip(self.rewards, verdict.answers, strict=True)
        row = {name: value for name, value in pairs if value is not None}
        # Half an answer is none: a metric's coverage is that of its scorer.
        return Score(row=row if len(row) == len(self.rewards) else {}, why="" if row else "no reward answered")

    def nothing(self, prompt: SuitePrompt) -> Row:
        return dict.fromkeys(self.rewards, 0.0)

    def perfect(self, prompt: SuitePrompt) -> Row:
        return dict.fromkeys(self.rewards, 1.0)

    def close(self) -> None:
        self.judge.close()

    def _verdict(self, picture: Image.Image, prompt: str) -> Any:
        from train.judge.judge import Question

        return self.judge.submit(picture, Question(prompt=prompt, rubrics=(), kinds=())).result()


class NanoRules:
    """The rule-based verifier of Lens-Nano's world. `train.suites.scorers.scorer.Scorer`."""

    name = "nano-rules"
    metrics: Sequence[Metric] = (
        Metric(name="nano-rules", value=mean_of_kinds("right"), by_kind=True, note="mean of kinds"),
        Metric(name="nano-rules, pictures", value=pooled("right")),
    )

    @property
    def identity(self) -> str:
        from train.evals.verifier.verify import VERSION

        return f"{self.name} {VERSION}"

    def applies(self, prompt: SuitePrompt) -> bool:
        return True

    def check(self) -> None:
        """`lens eval nano --prove-verifier` is its proof."""

    def score(self, picture: Image.Image, prompt: SuitePrompt) -> Score:
        from train.evals.verifier.verify import Expectation, Wanted, verify

        said = prompt.facts["expectation"]
        things = tuple(Wanted(**thing) for thing in said["things"])
        verdict = verify(picture, Expectation(things=things, relation=said["relation"]))
        return Score(row={"right": float(verdict.right)}, seen=verdict.reason)

    def nothing(self, prompt: SuitePrompt) -> Row:
        return {"right": 0.0}

    def perfect(self, prompt: SuitePrompt) -> Row:
        return {"right": 1.0}

    def close(self) -> None:
        pass
