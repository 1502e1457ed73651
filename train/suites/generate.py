"""Draw a suite into a run's folder: every picture once, resumed where it was stopped.

A picture's seed derives from the suite, the prompt and its place alone, so that two models or two system prompts start
from the same noise. A rewrite changes what is drawn; asked, judged and exported is the suite's own prompt.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from backend.cache.lines import JsonLines
from backend.errors import NumericsError, RefusedError, ReplyError
from backend.picture.images import encode, pixel_sha256
from backend.picture.metadata import make_record
from backend.types import Expander, ImageFormat
from train.suites.folder import FAILED, MADE, NO_REWRITE, REFUSED, Key, RunFolder, Sample, stable_number
from train.suites.prompts import SuitePrompt

if TYPE_CHECKING:
    from backend.events import Generation

OnRefusal = Literal["original", "skip", "stop"]
RESUMED = (MADE, REFUSED, NO_REWRITE)  # what failed is tried again


@dataclass(frozen=True, kw_only=True)
class Wording:
    """What is drawn for a prompt, and how it came about."""

    prompt: str
    rewrite: str = "none"  # none, rewritten, REFUSED or NO_REWRITE
    expander: Expander | None = None  # who rewrote it
    reason: str = ""
    seconds: float = 0.0


Draw = Callable[[str, Wording, int], "Generation"]  # (asked, wording, seed) -> picture
Rewrite = Callable[[str, int], str]  # (asked, which rewrite of it) -> prompt


def seed_of(suite: str, prompt: SuitePrompt, index: int, base: int) -> int:
    """The seed of picture `index` of a prompt, whatever else is drawn."""
    return base + stable_number(f"{suite} {prompt.id}") + index


@dataclass(kw_only=True)
class Generator:
    """One run's drawing."""

    suite: str
    folder: RunFolder
    lines: JsonLines
    draw: Draw
    images: int  # of each prompt
    seed: int
    rewrite: Rewrite | None = None
    expander: Expander | None = None  # who rewrites, for the pictures' records
    rewrites: Literal["one", "each"] = "one"  # for all pictures of a prompt, or for each (diversity rises with it)
    on_refusal: OnRefusal = "original"
    on_sample: Callable[[Sample], None] = lambda sample: None

    def run(self, prompts: Sequence[SuitePrompt]) -> None:
        """Draw what is not there. A picture whose numbers fail is noted and the next drawn.

        Raises RefusedError and ReplyError where `on_refusal` is stop, and whatever else drawing and the disk raise.
        """
        done = self.folder.samples()
        for prompt in prompts:
            wording = self._known_wording(prompt, done)
            for index in range(self.images):
                if self._is_done(prompt, index, done):
                    continue
                if wording is None or (self.rewrites == "each" and self.rewrite is not None):
                    wording = self._wording(prompt, index)
                self._make(prompt, index, wording)
                wording = replace(wording, seconds=0.0)

    def _is_done(self, prompt: SuitePrompt, index: int, done: dict[Key, Sample]) -> bool:
        sample = done.get((prompt.id, index))
        if sample is None or sample.state not in RESUMED:
            return False
        return sample.state != MADE or self.folder.picture(prompt, index).is_file()

    def _known_wording(self, prompt: SuitePrompt, done: dict[Key, Sample]) -> Wording | None:
        """What earlier pictures of the prompt were drawn from; None: none was, or each has a rewrite of its own."""
        if self.rewrite is None:
            return Wording(prompt=prompt.prompt)
        earlier = next((s for (own, _), s in done.items() if own == prompt.id and s.state in RESUMED), None)
        if self.rewrites == "each" or earlier is None:
            return None
        expander = self.expander if earlier.rewrite == "rewritten" else None
        return Wording(prompt=earlier.prompt, rewrite=earlier.rewrite, expander=expander, reason=earlier.reason)

    def _wording(self, prompt: SuitePrompt, index: int) -> Wording:
        assert self.rewrite is not None, "without a reasoner the wording is the prompt"
        began = time.perf_counter()
        try:
            text = self.rewrite(prompt.prompt, index if self.rewrites == "each" else 0)
            wording = Wording(prompt=text, rewrite="rewritten", expander=self.expander)
        except (RefusedError, ReplyError) as error:
            if self.on_refusal == "stop":
                raise
            why = REFUSED if isinstance(error, RefusedError) else NO_REWRITE
            text = prompt.prompt if self.on_refusal == "original" else ""
            wording = Wording(prompt=text, rewrite=why, reason=str(error))
        return replace(wording, seconds=time.perf_counter() - began)

    def _make(self, prompt: SuitePrompt, index: int, wording: Wording) -> None:
        seed = seed_of(self.suite, prompt, index, self.seed)
        state, reason, data, pixels, seconds = MADE, wording.reason, None, "", 0.0
        if not wording.prompt:
            state = wording.rewrite
        else:
            try:
                began = time.perf_counter()
                made = self.draw(prompt.prompt, wording, seed)
                pixels, seconds = pixel_sha256(made.image), time.perf_counter() - began
                record = make_record(made, pixels=pixels, parent_id=None)
                data = encode(made.image, ImageFormat.png, quality=None, record=record)
            except NumericsError as error:
                state, reason = FAILED, str(error)
        sample = Sample(
            id=prompt.id, kind=prompt.kind, index=index, asked=prompt.prompt, prompt=wording.prompt, seed=seed,
            state=state, rewrite=wording.rewrite, reason=reason, seconds=round(seconds, 3),
            rewrite_seconds=round(wording.seconds, 3), pixels=pixels,
        )  # fmt: skip
        self.folder.add(self.lines, prompt, sample, data)
        self.on_sample(sample)
