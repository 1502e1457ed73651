"""The scorers, a row each: for which suites, what they need, and how they are made."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from backend.errors import UsageError
from train.suites.scorers.scorer import Scorer
from train.suites.table import Suite

_LONGTEXT, _ONEIG = ("longtext-en", "longtext-zh"), ("oneig-en", "oneig-zh")


@dataclass(frozen=True, kw_only=True)
class ScorerSettings:
    """What a person says about a scorer."""

    base_url: str = "http://127.0.0.1:8000/v1"  # of a vision model
    model: str = ""  # its name there
    scores: str = "http://127.0.0.1:8080"  # a score server's address
    rewards: tuple[str, ...] = ()  # of the score server: NAME, NAME.METRIC, NAME=LOW..HIGH
    detector: str = "facebook/mask2former-swin-small-coco-instance"  # a folder or an id of the Hub
    clip: str = "openai/clip-vit-large-patch14"
    download: bool = False  # fetch those two where they are not here
    device: str = "auto"
    data: Path | None = None  # the suite's files
    say: Callable[[str], None] = lambda text: None


@dataclass(frozen=True, kw_only=True)
class ScorerRow:
    """One scorer."""

    name: str  # as a person types it; the metrics' names say more
    suites: tuple[str, ...]  # empty: any
    needs: str
    make: Callable[[Suite, ScorerSettings], Scorer]


def _rapidocr(suite: Suite, settings: ScorerSettings) -> Scorer:
    from train.suites.scorers.text_scorers import COUNTINGS, RapidOcr, TextScorer

    return TextScorer(RapidOcr(), COUNTINGS[suite.name])


def _vision_model(settings: ScorerSettings) -> Any:
    from train.suites.scorers.vision import VisionModel

    return VisionModel(settings.base_url, settings.model, settings.say)


def _vision(suite: Suite, settings: ScorerSettings) -> Scorer:
    from train.suites.scorers import vision

    model = _vision_model(settings)
    if suite.name in _ONEIG:
        if settings.data is None:
            raise UsageError("OneIG's questions are not part of lens", hint="--data DIR with Q_D/*.json in it")
        return vision.oneig_vision(model, suite, settings.data)
    if suite.name == "geneval2":
        return vision.SoftTifa(model)
    return vision.geneval_vision(model) if suite.name == "geneval" else vision.unigenbench_vision(model)


def _vision_text(suite: Suite, settings: ScorerSettings) -> Scorer:
    from train.suites.scorers.text_scorers import COUNTINGS, TextScorer
    from train.suites.scorers.vision import VisionReader

    return TextScorer(VisionReader(_vision_model(settings)), COUNTINGS[suite.name])


def _rules(suite: Suite, settings: ScorerSettings) -> Scorer:
    from train.suites.scorers.detector import GenevalRules, load_models

    load = partial(load_models, settings.clip, settings.detector, download=settings.download, device=settings.device)
    return GenevalRules(load)


def _clip(suite: Suite, settings: ScorerSettings) -> Scorer:
    from train.suites.scorers.detector import CvtgClip, load_models

    return CvtgClip(partial(load_models, settings.clip, None, download=settings.download, device=settings.device))


def _served(suite: Suite, settings: ScorerSettings) -> Scorer:
    from train.judge.config import ScoreServer
    from train.suites.scorers.others import ServedScores

    rewards = tuple(read_reward(text) for text in settings.rewards)
    return ServedScores(ScoreServer(url=settings.scores, scorers=rewards))


def read_reward(text: str) -> Any:
    """`NAME`, `NAME.METRIC`, either with `=LOW..HIGH`: the scores that count 0 and 1. Raises UsageError."""
    from train.judge.config import ServedReward

    name, _, scale = text.partition("=")
    name, _, metric = name.partition(".")
    try:
        low, high = (float(end) for end in scale.split("..")) if scale else (0.0, 1.0)
    except ValueError:
        raise UsageError(f"--reward {text!r}: {scale!r} is no LOW..HIGH", hint="such as hpsv2=0.2..0.35") from None
    if not name:
        raise UsageError(f"--reward {text!r} names no reward")
    return ServedReward(name=name, metric=metric, low=low, high=high)


def _nano(suite: Suite, settings: ScorerSettings) -> Scorer:
    from train.suites.scorers.others import NanoRules

    return NanoRules()


_ENDPOINT = "a vision model: --base-url, --model-name"
_ROWS = (
    ScorerRow(name="geneval-rules", suites=("geneval",), needs="Mask2Former and CLIP (transformers)", make=_rules),
    ScorerRow(name="vision", suites=("geneval", *_ONEIG, "geneval2", "unigenbench"), needs=_ENDPOINT, make=_vision),
    ScorerRow(name="vision-text", suites=(*_LONGTEXT, *_ONEIG, "cvtg"), needs=_ENDPOINT, make=_vision_text),
    ScorerRow(
        name="rapidocr", suites=(*_LONGTEXT, *_ONEIG, "cvtg"), needs="the CPU; pip install 'lens[eval]'", make=_rapidocr
    ),
    ScorerRow(name="cvtg-clip", suites=("cvtg",), needs="CLIP (transformers)", make=_clip),
    ScorerRow(name="nano-rules", suites=("nano",), needs="nothing", make=_nano),
    ScorerRow(name="served", suites=(), needs="a score server: --scores, --reward", make=_served),
)
SCORERS: Mapping[str, ScorerRow] = {row.name: row for row in _ROWS}


def scorers_for(suite: Suite) -> list[ScorerRow]:
    """Those that say something about a suite."""
    return [row for row in _ROWS if not row.suites or suite.name in row.suites]


def check_scorer(name: str, suite: Suite, settings: ScorerSettings) -> None:
    """Refuse what can be refused before anything is read. Raises UsageError for an unknown scorer, one of other suites,
    and one of which something was not said."""
    fitting = [row.name for row in scorers_for(suite)]
    row = SCORERS.get(name)
    if row is None or row.name not in fitting:
        near = difflib.get_close_matches(name, fitting, n=1)
        what = "is none of" if row is None else "says nothing about"
        hint = f"did you mean {near[0]}? " if near else ""
        raise UsageError(
            f"the scorer {name!r} {what} {'the scorers' if row is None else suite.name}",
            hint=f"{hint}For {suite.name} there are {', '.join(fitting)}, official",
        )
    if row.needs == _ENDPOINT and not settings.model:
        raise UsageError(f"{name} needs a vision model", hint="--model-name NAME, and --base-url URL of its endpoint")
    if row.make is _served and not settings.rewards:
        raise UsageError("which of the score server's rewards?", hint="--reward clip, or --reward hpsv2=0.2..0.35")


def make_scorer(name: str, suite: Suite, settings: ScorerSettings) -> Scorer:
    """Raises what `check_scorer` does, and what making it raises."""
    check_scorer(name, suite, settings)
    return SCORERS[name].make(suite, settings)
