"""From latents to verdicts: decode, ask, wait; pause where the judge is down, and lose nothing.

Pictures are asked about the moment they are decoded, while the next group is drawn.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from PIL import Image
from torch import Tensor

from backend import pipeline
from backend.errors import NetworkError
from backend.model.autoencoder import AutoencoderKLFlux2
from train.judge.config import Judging
from train.judge.journal import Asked, VerdictJournal
from train.judge.judge import Question
from train.losses.rewards import Missing, Verdict, tally
from train.run.batch import Grid


@dataclass
class PicturesAsked:
    """One prompt's pictures under judgement."""

    x0_KNC: Tensor
    grid: Grid
    question: Question
    about: str  # where they come from, for people who read the journal
    asked: list[Asked] = field(default_factory=list[Asked])

    def verdicts(self) -> list[Verdict]:
        """Wait for them. Raises what the judge raises."""
        return [asked.verdict.result() for asked in self.asked]


class Panel:
    """A run's judge, with its journal and the decoder of the pictures it is shown."""

    def __init__(
        self,
        journal: VerdictJournal,
        judging: Judging,
        vae: AutoencoderKLFlux2,
        device: torch.device,
        say: Callable[[str], None],
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        self.journal, self.judging, self.vae, self.device = journal, judging, vae, device
        self.say, self.wait = say, wait

    def pictures(self, row: PicturesAsked, indices: Sequence[int]) -> Iterator[Image.Image]:
        """Decode some of a row's pictures, one at a time. Raises NumericsError."""
        for index in indices:
            with torch.no_grad():
                x0 = row.x0_KNC[index : index + 1].to(self.device)
                yield pipeline.to_image(pipeline.decode(self.vae, x0, row.grid, torch.float32))

    def ask(
        self, row: PicturesAsked, look: Callable[[Image.Image], None] = lambda _: None
    ) -> PicturesAsked:  # fmt: skip
        """Decode and ask about all of a row; `look` is shown each picture. Returns before the answers are there."""
        for index, picture in enumerate(self.pictures(row, range(len(row.x0_KNC)))):
            look(picture)
            row.asked.append(self.journal.ask(picture, row.question, f"{row.about} picture {index}"))
        return row

    def collect(self, rows: Sequence[PicturesAsked]) -> list[list[Verdict]]:
        """Wait for all verdicts; where too many fail, pause and ask for those again.

        Raises NetworkError where the last pause did not help, and what the judge raises.
        """
        what = ""
        for pause in (*self.judging.pauses, None):
            verdicts = [row.verdicts() for row in rows]
            found = tally(verdict for row in verdicts for verdict in row)
            if found.failing <= self.judging.most_failing:
                self.journal.settle(asked for row in rows for asked in row.asked)
                return verdicts
            reasons = ", ".join(f"{count:,} {why}" for why, count in sorted(found.missing.items()))
            what = f"the judge failed at {found.failing:.0%} of {found.asked:,} pictures ({reasons})"
            if pause is not None:
                self.say(f"{what}; asking for these again in {pause:g} s")
                self.wait(pause)
                self._ask_again(rows)
        raise NetworkError(
            f"{what}; stopped, nothing is lost: pictures and verdicts are on the disk",
            hint="see to the judge, and run the same command again",
        )

    def _ask_again(self, rows: Sequence[PicturesAsked]) -> None:
        for row in rows:
            gone = [i for i, v in enumerate(row.verdicts()) if v.missing not in (None, Missing.REFUSED)]
            for index, picture in zip(gone, self.pictures(row, gone), strict=True):
                row.asked[index] = self.journal.ask(picture, row.question, row.asked[index].about)
