"""The configuration of a prompt search: frozen dataclasses, written once into the run's folder.

Light ring: standard library only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Literal

from backend.errors import UsageError
from train.config import within
from train.judge.config import EndpointJudge, JudgeConfig, Judging, RulesJudge, ScoreServer
from train.search.rules import GateRules

VERSION = 1  # of a run's folder


@dataclass(frozen=True, kw_only=True)
class LocalModel:
    """Pictures by a model of this tool."""

    kind: Literal["local"] = "local"
    model: str = "nano"  # a name of the registry or a path
    steps: int | None = None  # None: as the model is served
    guidance: float | None = None
    base: int | None = None
    device: str | None = None


@dataclass(frozen=True, kw_only=True)
class ImagesEndpoint:
    """Pictures by a model behind an OpenAI-compatible images endpoint (`POST /images/generations`)."""

    kind: Literal["endpoint"] = "endpoint"
    base_url: str = "http://127.0.0.1:8000/v1"
    model: str = ""
    size: str = "1024x1024"
    key_variable: str = "LENS_IMAGES_KEY"  # environment variable that holds the key; the key is in no config
    price: float = 0.0  # dollars a picture
    timeout: float = 300.0  # seconds

    def __post_init__(self) -> None:
        within(self, 0, 1e3, "price")
        within(self, 1, 3600, "timeout")
        if not re.fullmatch(r"[0-9]{2,5}x[0-9]{2,5}", self.size):
            raise UsageError(f"generator.size={self.size!r} is no size", hint="such as 1024x1024")


GeneratorConfig = LocalModel | ImagesEndpoint


@dataclass(frozen=True, kw_only=True)
class Guidelines:
    """Puts prompts together from a library of sentences, chosen by the failures; needs no model."""

    kind: Literal["guidelines"] = "guidelines"
    library: str = ""  # a TOML file; empty: prompts/guidelines.toml


@dataclass(frozen=True, kw_only=True)
class WriterEndpoint:
    """A language model behind an OpenAI-compatible address; the paper's is GPT-5.5."""

    kind: Literal["endpoint"] = "endpoint"
    base_url: str = "http://127.0.0.1:8000/v1"
    model: str = ""
    key_variable: str = "LENS_WRITER_KEY"
    temperature: float = 1.0
    timeout: float = 600.0
    max_tokens: int = 16_384  # of thought and answer
    price_in: float = 0.0  # dollars a million tokens
    price_out: float = 0.0

    def __post_init__(self) -> None:
        within(self, 0, 2, "temperature")
        within(self, 1, 3600, "timeout")
        within(self, 256, 1_000_000, "max_tokens")
        within(self, 0, 1e6, "price_in", "price_out")


@dataclass(frozen=True, kw_only=True)
class LocalWriter:
    """The GPT-OSS of a model of this tool, through llama.cpp."""

    kind: Literal["local"] = "local"
    model: str = "lens"  # a name of the registry or a path; its language model as one GGUF file
    temperature: float = 0.7
    think_tokens: int = 2048
    answer_tokens: int = 2048

    def __post_init__(self) -> None:
        within(self, 0, 2, "temperature")
        within(self, 0, 16_384, "think_tokens")
        within(self, 64, 16_384, "answer_tokens")


@dataclass(frozen=True, kw_only=True)
class ManualWriter:
    """A person: the search stops, shows the failures, and goes on once next.md has been written."""

    kind: Literal["manual"] = "manual"


WriterConfig = Guidelines | WriterEndpoint | LocalWriter | ManualWriter


@dataclass(frozen=True, kw_only=True)
class Reasoner:
    """Who rewrites under the prompts that are searched."""

    mode: Literal["local", "api"] = "local"  # the generator's own language model, or the settings' endpoint
    model: str = ""  # local: whose language model; empty: the generator's
    price_in: float = 0.0  # dollars a million tokens, of an endpoint
    price_out: float = 0.0

    def __post_init__(self) -> None:
        within(self, 0, 1e6, "price_in", "price_out")


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How many prompts each split has, and how many pictures each prompt."""

    train: int = 160
    validation: int = 256
    test: int = 256
    seeds: int = 2
    batch: int = 24  # train prompts whose failures are analysed, and that the gate looks at

    def __post_init__(self) -> None:
        within(self, 1, 100_000, "train", "validation", "test")
        within(self, 1, 64, "seeds")
        within(self, 1, 10_000, "batch")
        if self.batch > self.train:
            raise UsageError(f"sizes.batch={self.batch} is more than sizes.train={self.train}")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a search may spend in all, over every time it is run; None: no limit."""

    pictures: int | None = None
    minutes: float | None = None
    dollars: float | None = None
    candidates: int = 10  # that a writer is asked for
    patience: int = 10  # candidates in a row without a promotion; then the search ends
    target: float = 1.0  # a validation score at which there is nothing left to do

    def __post_init__(self) -> None:
        within(self, 1, 1000, "candidates", "patience")
        within(self, 0, 1, "target")
        for name in ("pictures", "minutes", "dollars"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UsageError(f"a budget of {value:g} {name} buys nothing", hint="leave it out, or give more")


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """Everything that a search depends on, beside its prompts and its first system prompt."""

    generator: GeneratorConfig = LocalModel()
    reasoner: Reasoner = Reasoner()
    judge: JudgeConfig = field(default_factory=RulesJudge)
    judging: Judging = field(default_factory=Judging)
    writer: WriterConfig = Guidelines()
    strategy: Literal["lens", "gepa"] = "lens"
    sizes: Sizes = Sizes()
    limits: Limits = Limits()
    rules: GateRules = field(default_factory=GateRules)
    # Weight of a picture's reward that is given only where every rubric holds; the rest is the share that does.
    all_hold: float = 0.0
    probes: int = (
        100  # requests on which a candidate may refuse no more, and no less, than the first prompt; 0: no veto
    )
    pilot: int = 32  # validation prompts on which `init` measures the noise; 0: it is assumed
    longest: float = 1.5  # a candidate's words over the first prompt's …
    words: int = 600  # … but so many are always allowed
    seed: int = 0
    price_judge_in: float = 0.0  # dollars a million tokens of the judge's endpoint
    price_judge_out: float = 0.0

    def __post_init__(self) -> None:
        within(self, 0, 1, "all_hold")
        within(self, 0, 100, "probes")
        within(self, 0, 100_000, "pilot")
        within(self, 1, 100, "longest")
        within(self, 1, 20_000, "words")
        within(self, 0, 1e6, "price_judge_in", "price_judge_out")
        if self.limits.dollars is not None and not _prices(self):
            raise UsageError(
                "a budget of dollars needs prices, and none is given",
                hint="--set writer.price_in=… writer.price_out=… (dollars a million tokens), generator.price=…",
            )


def _prices(config: SearchConfig) -> float:
    parts = (config, config.generator, config.reasoner, config.writer)
    return sum(getattr(part, f.name) for part in parts for f in fields(part) if f.name.startswith("price"))


def quick(config: SearchConfig) -> SearchConfig:
    """A search of minutes that shows how it goes, and can prove large effects only."""
    sizes = replace(config.sizes, train=48, validation=48, test=48, seeds=1, batch=12)
    return replace(config, sizes=sizes, limits=replace(config.limits, candidates=4), probes=20, pilot=16)


GENERATORS: Mapping[str, type] = {"local": LocalModel, "endpoint": ImagesEndpoint}
WRITERS: Mapping[str, type] = {
    "guidelines": Guidelines, "endpoint": WriterEndpoint, "local": LocalWriter, "manual": ManualWriter,
}  # fmt: skip
JUDGES: Mapping[str, type] = {"rules": RulesJudge, "endpoint": EndpointJudge, "scores": ScoreServer}
