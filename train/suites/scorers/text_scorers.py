"""Score written text: a reader says what a picture's text is, `text_metrics` counts it.

Whoever reads makes another metric: `longtext-rapidocr` and `longtext-vision` are neither one another nor the official
score, which has Qwen2.5-VL-7B (LongText, OneIG) or PaddleOCR 2 (CVTG) as its reader.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from backend.errors import UsageError, optional_package
from train.suites.metrics import Metric, Row, oneig_text, pooled
from train.suites.scorers import text_metrics
from train.suites.scorers.scorer import Score

if TYPE_CHECKING:
    from PIL import Image

    from train.suites.prompts import SuitePrompt

VERSION = 1
LONGEST_READ = 20_000  # characters kept of what was read


class Reader(Protocol):
    """Who reads a picture's text."""

    @property
    def name(self) -> str: ...

    @property
    def identity(self) -> str: ...

    def read(self, picture: Image.Image, words: int) -> list[str] | None:
        """Lines; None: it would not say. `words`: how many are asked for, which bounds an answer. Raises LensError."""
        ...

    def close(self) -> None: ...


Count = Callable[["SuitePrompt", list[str]], Row]


@dataclass(frozen=True, kw_only=True)
class Counting:
    """How one suite counts what was read."""

    suite: str
    count: Count
    metrics: Callable[[str], tuple[Metric, ...]]  # from the scorer's name

    def perfect(self, prompt: SuitePrompt) -> Row:
        """What a picture with exactly the right text gives."""
        quoted = " ".join(text_metrics.cvtg_words(prompt.prompt)) if self.suite == "cvtg" else ""
        return self.count(prompt, [*prompt.texts, *([quoted] if quoted else [])])


def _longtext(language: str) -> Counting:
    def metrics(name: str) -> tuple[Metric, ...]:
        paper = "longtext-en" if language == "en" else None
        return (
            Metric(name=name, value=pooled("matched", "words"), official=True, paper=paper, by_kind=True),
            Metric(name=f"{name}, corrected", value=pooled("fair_matched", "fair_words"), note="text beyond it counts"),
        )

    def count(prompt: SuitePrompt, lines: list[str]) -> Row:
        return text_metrics.longtext(prompt.texts, "\n".join(lines), language)

    return Counting(suite=f"longtext-{language}", count=count, metrics=metrics)


def _oneig(language: str) -> Counting:
    most = 100.0 if language == "en" else 50.0

    def metrics(name: str) -> tuple[Metric, ...]:
        official = oneig_text(most, "edits", "exact", "matched", "words")
        return (
            Metric(name=name, value=official, official=True, note="1 - ED (1 - CR) (1 - WAC)"),
            Metric(name=f"{name}, words", value=pooled("matched", "words")),
            Metric(name=f"{name}, exact", value=pooled("exact")),
        )

    def count(prompt: SuitePrompt, lines: list[str]) -> Row:
        return text_metrics.oneig(prompt.texts[0] if prompt.texts else "", "\n".join(lines))

    return Counting(suite=f"oneig-{language}", count=count, metrics=metrics)


def _cvtg() -> Counting:
    def metrics(name: str) -> tuple[Metric, ...]:
        words, close = pooled("found", "words"), pooled("closeness", "words")
        fair, fair_close = pooled("fair_found", "fair_words"), pooled("fair_closeness", "fair_words")
        return (
            Metric(name=f"{name}, word accuracy", value=words, official=True, paper="cvtg-accuracy", by_kind=True),
            Metric(name=f"{name}, NED", value=close, official=True, paper="cvtg-ned", note="a similarity"),
            Metric(name=f"{name}, corrected accuracy", value=fair),
            Metric(name=f"{name}, corrected NED", value=fair_close),
        )

    def count(prompt: SuitePrompt, lines: list[str]) -> Row:
        return text_metrics.cvtg(prompt.prompt, prompt.texts, lines)

    return Counting(suite="cvtg", count=count, metrics=metrics)


COUNTINGS = {
    one.suite: one for one in (_longtext("en"), _longtext("zh"), _oneig("en"), _oneig("zh"), _cvtg())
}  # fmt: skip


@dataclass
class TextScorer:
    """A reader and a suite's way of counting. `train.suites.scorers.scorer.Scorer`."""

    reader: Reader
    counting: Counting

    @property
    def name(self) -> str:
        part = self.counting.suite.split("-")[0]
        return f"{'oneig-text' if part == 'oneig' else part}-{self.reader.name}"

    @property
    def identity(self) -> str:
        return f"{self.name} {VERSION} {self.reader.identity}"

    @property
    def metrics(self) -> Sequence[Metric]:
        return self.counting.metrics(self.name)

    def applies(self, prompt: SuitePrompt) -> bool:
        """Of OneIG the prompts that ask for text alone. Raises UsageError where their texts are not here."""
        if self.counting.suite.startswith("oneig"):
            if prompt.kind == "text" and not prompt.texts:
                raise UsageError(
                    f"the text of {prompt.id} is not here", hint="--data with text_content.csv beside the prompts"
                )
            return prompt.kind == "text"
        return True

    def check(self) -> None:
        """Prove on drawn words that the reader reads, and on an empty picture that it makes nothing up.

        Raises UsageError.
        """
        from PIL import Image

        picture = sample_text("LENS")
        seen = " ".join(self.reader.read(picture, 1) or []).lower()
        empty = text_metrics.without_no_text(
            "\n".join(self.reader.read(Image.new("RGB", (256, 256), "white"), 1) or [])
        )
        if "lens" not in seen or len(empty.split()) > 3:
            raise UsageError(
                f"{self.name} reads {seen[:40]!r} where LENS is written, and {empty[:40]!r} where nothing is",
                hint="nothing was scored: another model, or an address that can see pictures",
            )

    def score(self, picture: Image.Image, prompt: SuitePrompt) -> Score:
        lines = self.reader.read(picture, len(" ".join(prompt.texts).split()) or 30)
        if lines is None:
            return Score(row={}, why="the reader gave no answer")
        return Score(row=self.counting.count(prompt, lines), seen="\n".join(lines)[:LONGEST_READ])

    def carried(
        self, prompts: Sequence[SuitePrompt], images: int, states: Mapping[tuple[str, int], str],
        seen: Mapping[tuple[str, int], Any],
    ) -> dict[str, list[Row]]:  # fmt: skip
        """What OneIG's evaluator counts for prompts none of whose pictures was made: it holds the texts that it read
        for the prompt before against them. Empty for the other suites."""
        found, before = dict[str, list[Row]](), list[str]()
        for prompt in prompts if self.counting.suite.startswith("oneig") else ():
            keys = [(prompt.id, index) for index in range(images)]
            if any(states[key] == "made" for key in keys):
                before = [str(seen[key]) for key in keys if key in seen]
            elif before:
                found[prompt.id] = [self.counting.count(prompt, text.splitlines()) for text in before]
        return found

    def nothing(self, prompt: SuitePrompt) -> Row:
        return self.counting.count(prompt, [])

    def perfect(self, prompt: SuitePrompt) -> Row:
        return self.counting.perfect(prompt)

    def close(self) -> None:
        self.reader.close()


def sample_text(text: str) -> Image.Image:
    """Black words on white, 256 pixels wide."""
    from PIL import Image, ImageDraw, ImageFont

    picture = Image.new("RGB", (256, 128), "white")
    ImageDraw.Draw(picture).text((40, 32), text, fill="black", font=ImageFont.load_default(56))
    return picture


@dataclass
class RapidOcr:
    """RapidOCR on the CPU: PP-OCRv6's small models, which are inside its package."""

    name: str = "rapidocr"
    _engine: object = None

    @property
    def identity(self) -> str:
        from importlib.metadata import version

        with optional_package():
            return f"rapidocr {version('rapidocr')}"

    def read(self, picture: Image.Image, words: int) -> list[str] | None:
        """Lines from top to bottom, those of one height from left to right."""
        import numpy as np

        if self._engine is None:
            self._engine = _rapid_ocr()
        # Blue first, as OpenCV has it: what the models were trained on.
        found = self._engine(np.asarray(picture.convert("RGB"))[:, :, ::-1])  # pyright: ignore[reportCallIssue]
        return [] if found.txts is None else [str(text) for text in found.txts]

    def close(self) -> None:
        self._engine = None


def _rapid_ocr() -> object:
    """RapidOCR with one thread a core and without its own talk. Raises LensError where it is not installed."""
    import logging

    with optional_package():
        from rapidocr import RapidOCR
    logging.getLogger("RapidOCR").setLevel(logging.ERROR)
    return RapidOCR(params={"Global.log_level": "error"})
