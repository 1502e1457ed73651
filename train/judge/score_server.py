"""Judge pictures by a score server: reward models behind `POST /score`, each with a time limit of its own.

    {"requests": [{"history": [{"text": prompt, "image_b64": …}], "required_rewards": ["hpsv2"]}]}
    -> {"results": [{"hpsv2": {"hpsv2": 0.27}}], "errors": [{}]}

The contract is that of UniRL's reward service. A request asks for one reward, so that a slow one holds up and fails
nothing but itself. A reward under `errors`, one that is not there and one that is no finite number have no answer;
where none has one, the verdict is missing, for the reason of the last.
"""

from __future__ import annotations

import base64
import io
import json
import math
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from PIL import Image

from backend.errors import UsageError, first_line
from train.judge.config import ScoreServer, ServedReward
from train.judge.judge import Question
from train.losses.rewards import Missing, Verdict

MOST_BYTES = 2**20  # of an answer
_BUSY = (429, 502, 503, 504)


class ScoreJudge:
    """A score server as a judge: one answer a scorer, whatever the rubrics. `train.judge.judge.Judge`."""

    def __init__(self, config: ScoreServer, wait: Callable[[float], None] = time.sleep) -> None:
        """Raises UsageError for what is no address."""
        parts = urlsplit(config.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"judge.url={config.url} is no web address", hint="such as http://127.0.0.1:8080")
        self.config, self.wait = config, wait
        self._address = config.url.rstrip("/") + "/score"
        # Pictures wait for their scores in one pool, which are asked for in the other: none waits for its own thread.
        self._pictures = ThreadPoolExecutor(config.at_once, thread_name_prefix="judge")
        self._calls = ThreadPoolExecutor(config.at_once * len(config.scorers), thread_name_prefix="scores")

    @property
    def identity(self) -> str:
        scales = [f"{s.name}.{s.metric or s.name} {s.low:g}..{s.high:g}" for s in self.config.scorers]
        return f"scores {', '.join(scales)}"

    def kinds(self, question: Question) -> tuple[str, ...]:
        return tuple(scorer.name for scorer in self.config.scorers)

    def submit(self, picture: Image.Image, question: Question) -> Future[Verdict]:
        return self._pictures.submit(self.judge, picture, question)

    def close(self) -> None:
        for pool in (self._pictures, self._calls):
            pool.shutdown(wait=False, cancel_futures=True)

    def judge(self, picture: Image.Image, question: Question) -> Verdict:
        """Ask and wait. Raises UsageError for a reward that the server does not have."""
        stream = io.BytesIO()
        picture.convert("RGB").save(stream, "PNG")
        turn = {"text": question.prompt, "image_b64": base64.b64encode(stream.getvalue()).decode()}
        asked = [self._calls.submit(self._score, turn, scorer) for scorer in self.config.scorers]
        found = [one.result() for one in asked]
        answers = tuple(None if isinstance(one, Missing) else one for one in found)
        if all(value is None for value in answers):
            return Verdict(missing=next(one for one in reversed(found) if isinstance(one, Missing)))
        return Verdict(answers)

    def _score(self, turn: dict[str, str], scorer: ServedReward) -> float | Missing:
        body = json.dumps({"requests": [{"history": [turn], "required_rewards": [scorer.name]}]}).encode()
        until = time.monotonic() + scorer.timeout
        for attempt in range(self.config.attempts):
            request = Request(self._address, body, {"Content-Type": "application/json"})
            try:
                with urlopen(request, timeout=max(0.001, until - time.monotonic())) as reply:
                    return read_score(reply.read(MOST_BYTES), scorer)
            except HTTPError as error:
                if error.code in (400, 404, 422):
                    said = first_line(Exception(error.read(200).decode(errors="replace")))
                    raise UsageError(f"{self._address} refused {scorer.name} ({error.code}): {said}") from None
                if error.code not in _BUSY:
                    return Missing.UNREACHABLE
                pause = float(2**attempt)
                if attempt + 1 == self.config.attempts or time.monotonic() + pause > until:
                    return Missing.BUSY if error.code == 429 else Missing.UNREACHABLE
                self.wait(pause)
            except TimeoutError:
                return Missing.TIMEOUT
            except (URLError, HTTPException, OSError) as error:
                late = isinstance(getattr(error, "reason", None), TimeoutError)
                return Missing.TIMEOUT if late else Missing.UNREACHABLE
        return Missing.BUSY


def read_score(data: bytes, scorer: ServedReward) -> float | Missing:
    """Read the answer to a request of one reward, as a share between 0 and 1."""
    try:
        said: Any = json.loads(data)
        results, errors = said["results"], said.get("errors") or [{}]
        if len(results) != 1 or len(errors) != 1:
            return Missing.COUNT
        if (problem := errors[0].get(scorer.name)) is not None:
            return Missing.TIMEOUT if "timeout" in str(problem).lower() else Missing.UNREACHABLE
        score = results[0][scorer.name][scorer.metric or scorer.name]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return Missing.UNREADABLE
    if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
        return Missing.UNREADABLE
    return min(1.0, max(0.0, (score - scorer.low) / (scorer.high - scorer.low)))
