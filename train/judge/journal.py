"""Verdicts on the disk, a line of JSON each: a run is replayed without its judge, and nothing is paid for twice.

    {"picture": SHA-256 of the pixels, "rubrics": SHA-256, "judge": …, "about": …, "answers": [1.0, null], …}

A verdict is written the moment it is there. One that is missing is not: it is asked for again, until whoever asked
settles for it (`settle`), and is then as final as any other, so that a replay sees what the run saw.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from backend.cache.lines import JsonLines
from backend.picture.images import pixel_sha256
from train.judge.judge import Judge, Question
from train.losses.rewards import Missing, Verdict

Key = tuple[str, str, str]  # picture, rubrics, judge


@dataclass(frozen=True)
class Asked:
    """One question under way."""

    key: Key
    about: str  # where the picture lies, for people
    verdict: Future[Verdict]


class VerdictJournal:
    """A judge whose verdicts are kept. Safe from several threads; a line torn by a crash is ignored."""

    def __init__(self, path: Path, judge: Judge, others: Sequence[Path] = ()) -> None:
        """`others`: journals of other processes, which are read as well. Raises FileError for what cannot be read."""
        self.judge, self._lines = judge, JsonLines(path)
        self._lock = threading.Lock()
        self._known: dict[Key, Verdict] = {}
        for lines in (*(JsonLines(other) for other in others if other != path), self._lines):
            for said in lines.read():
                try:
                    self._known[said["picture"], said["rubrics"], said["judge"]] = _verdict(said)
                except (ValueError, TypeError, KeyError):  # edited by hand: it is asked for again
                    continue

    def ask(self, picture: Image.Image, question: Question, about: str = "") -> Asked:
        """What is known is not asked. The future raises what the judge raises, and FileError (no space)."""
        key = (pixel_sha256(picture), question.sha256, self.judge.identity)
        with self._lock:
            known = self._known.get(key)
        asked = Asked(key, about, Future())
        if known is not None:
            asked.verdict.set_result(known)
            return asked

        def answered(inner: Future[Verdict]) -> None:
            try:
                verdict = inner.result()
                if verdict.missing is None:
                    self._write(asked, verdict)
                asked.verdict.set_result(verdict)
            except BaseException as error:  # noqa: BLE001  handed on to who waits
                asked.verdict.set_exception(error)

        self.judge.submit(picture, question).add_done_callback(answered)
        return asked

    def settle(self, asked: Iterable[Asked]) -> None:
        """Make missing verdicts final. Raises FileError."""
        for one in asked:
            verdict = one.verdict.result()
            if verdict.missing is not None and one.key not in self._known:
                self._write(one, verdict)

    def _write(self, asked: Asked, verdict: Verdict) -> None:
        named = dict(zip(("picture", "rubrics", "judge"), asked.key, strict=True))
        said = {"answers": verdict.answers, "overall": verdict.overall, "missing": verdict.missing}
        self._lines.append({**named, "about": asked.about, **said})
        with self._lock:
            self._known[asked.key] = verdict


def _verdict(said: dict[str, Any]) -> Verdict:
    """Raises ValueError, TypeError or KeyError for what `VerdictJournal` did not write."""
    answers = tuple(None if value is None else float(value) for value in said["answers"])
    overall = None if said["overall"] is None else float(said["overall"])
    return Verdict(answers, overall, None if said["missing"] is None else Missing(said["missing"]))
