"""What a run would cost: pictures, rewrites, time, disk, and a scorer's questions, before anything is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from backend.errors import human_bytes
from train.suites.folder import Sample, Shard
from train.suites.prompts import SuitePrompt
from train.suites.table import Suite

# Seconds a picture at 1024x1024 on one H100, as the paper has them (section 3).
PAPER_SECONDS = {"lens": 3.15, "lens-turbo": 0.84}
PNG_BYTES = 1.6  # a pixel of a photograph; drawn ones take less


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What drawing a suite takes."""

    prompts: int
    pictures: int
    there: int  # of them, from an earlier run
    rewrites: int
    width: int
    height: int
    seconds: float | None  # a picture; None: not known
    rewrite_seconds: float | None
    source: str  # where the seconds are from

    @property
    def left(self) -> int:
        return self.pictures - self.there

    @property
    def total_seconds(self) -> float | None:
        if self.seconds is None:
            return None
        return self.left * self.seconds + self.rewrites * (self.rewrite_seconds or 0.0)

    @property
    def disk(self) -> int:
        """Bytes, about."""
        return round(self.left * self.width * self.height * PNG_BYTES)

    def lines(self) -> list[str]:
        """The plan for a person."""
        there = f", {self.there:,} of them are there" if self.there else ""
        time = "not known: --measure draws one and times it" if self.seconds is None else _time(self)
        return [
            f"prompts   {self.prompts:,}",
            f"pictures  {self.pictures:,}{there}, {self.width}x{self.height}, about {human_bytes(self.disk)} of PNG",
            f"rewrites  {self.rewrites:,}",
            f"time      {time}",
        ]

    def data(self) -> dict[str, Any]:
        return {
            "prompts": self.prompts, "pictures": self.pictures, "there": self.there, "rewrites": self.rewrites,
            "seconds_a_picture": self.seconds, "seconds_a_rewrite": self.rewrite_seconds, "source": self.source,
            "seconds": self.total_seconds, "bytes": self.disk,
        }  # fmt: skip


def _time(cost: Cost) -> str:
    assert cost.seconds is not None and cost.total_seconds is not None
    rewriting = "" if not cost.rewrites else (
        f", {cost.rewrite_seconds:.2f} s a rewrite" if cost.rewrite_seconds else ", rewrites not counted"
    )  # fmt: skip
    return f"{duration(cost.total_seconds)} ({cost.seconds:.2f} s a picture{rewriting}; {cost.source})"


def duration(seconds: float) -> str:
    """4000 -> "1 h 7 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def cost_of(
    prompts: Sequence[SuitePrompt], images: int, shard: Shard, done: Sequence[Sample], *, rewrites: int,
    size: tuple[int, int], model: str, measured: tuple[float, float | None] | None = None,
) -> Cost:  # fmt: skip
    """Estimate. `rewrites`: of one prompt; `measured`: seconds of a picture and of a rewrite just timed here."""
    mine = [prompt for prompt in prompts if shard.holds(prompt)]
    ids = {prompt.id for prompt in mine}
    here = [sample for sample in done if sample.id in ids]
    drawn = sorted(sample.seconds for sample in here if sample.seconds)
    seconds, rewrite_seconds, source = None, None, "not known"
    if measured is not None:
        (seconds, rewrite_seconds), source = measured, "timed here just now"
    elif len(drawn) >= 3:
        rewritten = sorted(sample.rewrite_seconds for sample in here if sample.rewrite_seconds)
        seconds, source = drawn[len(drawn) // 2], f"median of {len(drawn)} pictures of this run"
        rewrite_seconds = rewritten[len(rewritten) // 2] if rewritten else None
    elif model in PAPER_SECONDS and size == (1024, 1024):
        seconds, source = PAPER_SECONDS[model], "the paper's, on one H100"
    begun = len({sample.id for sample in here})
    return Cost(
        prompts=len(mine), pictures=len(mine) * images, there=min(len(here), len(mine) * images),
        rewrites=rewrites * (len(mine) - begun), width=size[0], height=size[1], seconds=seconds,
        rewrite_seconds=rewrite_seconds, source=source,
    )  # fmt: skip


def questions_of(suite: Suite, prompts: Sequence[SuitePrompt], images: int) -> list[tuple[str, int, str]]:
    """(scorer, calls or pictures, unit) of a whole run."""
    from train.suites.scorers.table import scorers_for

    pictures = len(prompts) * images
    texts = sum(prompt.kind == "text" for prompt in prompts) * images if suite.name.startswith("oneig") else pictures
    found = list[tuple[str, int, str]]()
    for row in scorers_for(suite):
        if row.name == "vision" and suite.name == "geneval":
            from train.suites.scorers.vision import geneval_questions

            found.append((row.name, images * sum(len(geneval_questions(prompt)) for prompt in prompts), "questions"))
        elif row.name == "vision" and suite.name in ("geneval2", "unigenbench"):
            of = "questions" if suite.name == "geneval2" else "points"
            found.append((row.name, images * sum(len(prompt.facts[of]) for prompt in prompts), "questions"))
        elif row.name == "vision":
            # 11,231 questions of 695 prompts, counted in the published files; those here may be others.
            found.append((row.name, pictures * 10, "questions, about"))
        else:
            found.append((row.name, texts if row.name in ("rapidocr", "vision-text") else pictures, "pictures"))
    return found
