"""Who judges pictures, and how it is asked: one frozen dataclass for each of the three judges.

Light ring: standard library only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from backend.errors import UsageError
from train.config import within


@dataclass(frozen=True, kw_only=True)
class RulesJudge:
    """The verifier of Lens-Nano's drawn world: no network, and right in what it can see."""

    kind: Literal["rules"] = "rules"
    workers: int = 2  # processes; 0: in this one, in turn with the drawing

    def __post_init__(self) -> None:
        within(self, 0, 256, "workers")


@dataclass(frozen=True, kw_only=True)
class EndpointJudge:
    """A vision model behind an OpenAI-compatible address."""

    kind: Literal["endpoint"] = "endpoint"
    base_url: str = "http://127.0.0.1:8000/v1"
    model: str = ""  # empty: it must be named before the run
    key_variable: str = "LENS_JUDGE_KEY"  # environment variable that holds the key; the key is in no config
    # together: one call a picture, evidence before each verdict (the paper: one call; it prints no instructions).
    # apart: a call a rubric, P(yes) from the answer's log-probabilities where the endpoint has them: smoother, and
    # larger judges keep their spread longer.
    calls: Literal["together", "apart"] = "together"
    at_once: int = 16  # pictures
    attempts: int = 2  # of an answer that is no verdict; a busy server is asked again beside that
    seed: int = 0  # of the rubrics' order and of the answers
    timeout: float = 180.0  # seconds without an answer
    max_tokens: int = 2048  # of an answer to all rubrics

    def __post_init__(self) -> None:
        within(self, 1, 1024, "at_once")
        within(self, 1, 10, "attempts")
        within(self, 1, 3600, "timeout")
        within(self, 16, None, "max_tokens")


@dataclass(frozen=True, kw_only=True)
class ServedReward:
    """One reward of a score server, and how its score becomes a share of yes."""

    name: str
    metric: str = ""  # of those that the reward gives; empty: the one with the reward's own name
    low: float = 0.0  # this score and those below it count 0 …
    high: float = 1.0  # … this one and those above it 1, between them linearly
    timeout: float = 120.0  # seconds

    def __post_init__(self) -> None:
        within(self, 0.1, 3600, "timeout")
        if not self.low < self.high:
            raise UsageError(f"scorer {self.name}: low={self.low:g} is not below high={self.high:g}")


@dataclass(frozen=True, kw_only=True)
class ScoreServer:
    """A server that speaks `POST /score` (UniRL's reward service)."""

    kind: Literal["scores"] = "scores"
    url: str = "http://127.0.0.1:8080"
    scorers: tuple[ServedReward, ...] = (ServedReward(name="clip", low=0.15, high=0.45),)
    at_once: int = 16  # pictures
    attempts: int = 3  # where the server is busy

    def __post_init__(self) -> None:
        within(self, 1, 1024, "at_once")
        within(self, 1, 10, "attempts")
        if not self.scorers:
            raise UsageError("a score server needs at least one scorer")


JudgeConfig = RulesJudge | EndpointJudge | ScoreServer


@dataclass(frozen=True, kw_only=True)
class Judging:
    """When a judge that fails stops the run. Nothing is lost: pictures and verdicts are on the disk."""

    most_failing: float = 0.2  # share of an epoch's calls; refusals are not among them
    pauses: tuple[float, ...] = (30.0, 120.0, 600.0)  # seconds before the missing ones are asked for again; then: stop

    def __post_init__(self) -> None:
        within(self, 0, 1, "most_failing")
        within(self, 0, 1e6, "pauses")
