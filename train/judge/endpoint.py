"""Judge pictures by a vision model behind an OpenAI-compatible address.

Together: one call has the picture and all rubrics in an order of its own; the model writes what it sees and only then
its verdict. Apart: a call for each rubric, whose answer is the probability of yes where the endpoint tells it, and the
word itself where not. The temperature is 0: a judge's noise is the policy's. The judge does not see the prompt.

What came of a call (`train.losses.rewards.Missing`):

| answer | outcome |
|---|---|
| prose, broken JSON, cut off, numbers that are none of the questions' | asked again, then unreadable |
| more or fewer verdicts than questions | asked again, then count |
| "maybe" and every other word that is neither yes nor no | that rubric has no answer, the others count |
| no yes and no no at all | asked again, then unreadable |
| 429 after the client's own repetitions | busy |
| no answer in time | timeout |
| a refusal, in its field, in prose or by a filter's 400 | refused |
| no connection, a server that fails | unreachable |
| a wrong key, no such model | ends the run: no later call would mend it |
"""

from __future__ import annotations

import io
import json
import math
import os
import random
import re
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, cast

from PIL import Image

from backend.chat.address import Label, make_address
from backend.chat.client import Client, NotUnderstood
from backend.chat.replies import ChatReply, Message, picture_part, text_part
from backend.errors import BusyError, NetworkError, ReplyError, TimeoutExpiredError, UsageError
from backend.reasoner.answers import declines
from prompts import rubric_text
from train.judge.config import EndpointJudge
from train.judge.judge import Question
from train.losses.rewards import Missing, Verdict, answer

LONGEST = 1024  # pixels: a picture is sent no larger
CHANCES = 20  # likeliest tokens that are asked for
_FILTERED = re.compile(r"content.?(policy|filter|management)|moderation|safety", re.IGNORECASE)


def make(config: EndpointJudge, say: Callable[[str], None]) -> ModelJudge:
    """The judge of a config. Raises UsageError for what is no address, and for no model."""
    if not config.model:
        raise UsageError("no model was named as judge", hint="--set judge.model=NAME --set judge.base_url=…")
    labels = {name: Label(f"judge.{name}", f"--set judge.{name}=…") for name in ("base_url", "model", "timeout")}
    address = make_address(
        config.base_url,
        config.model,
        key=os.environ.get(config.key_variable),
        timeout=config.timeout,
        max_tokens=config.max_tokens if config.calls == "together" else 8,
        labels={
            **labels,
            "key": Label("the judge's key", f"the environment variable {config.key_variable}"),
            "max_tokens": Label("judge.max_tokens", "--set judge.max_tokens=…"),
            "limit": labels["timeout"],
        },
    )
    return ModelJudge(config, Client(address, say=say))


class ModelJudge:
    """A model behind a client as a judge. `train.judge.judge.Judge`."""

    def __init__(self, config: EndpointJudge, client: Client) -> None:
        self.config, self.client = config, client
        self.instructions = rubric_text("judge" if config.calls == "together" else "judge-one")
        self._threads = ThreadPoolExecutor(config.at_once, thread_name_prefix="judge")

    @property
    def identity(self) -> str:
        config = self.config
        return f"{config.model} {config.calls} {self.instructions.sha256[:12]} seed {config.seed}"

    def kinds(self, question: Question) -> tuple[str, ...]:
        return question.kinds

    def submit(self, picture: Image.Image, question: Question) -> Future[Verdict]:
        return self._threads.submit(self.judge, picture, question)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def judge(self, picture: Image.Image, question: Question) -> Verdict:
        """Ask and wait. Raises UsageError (a wrong key, no such model), BudgetError."""
        shown = picture_part(as_png(picture), "image/png")
        ask = self._together if self.config.calls == "together" else self._apart
        verdict = Verdict(missing=Missing.UNREADABLE)
        for attempt in range(self.config.attempts):
            verdict = self._outcome(lambda seed=self.config.seed + attempt: ask(shown, question, seed))
            if verdict.missing not in (Missing.UNREADABLE, Missing.COUNT):
                break
        return verdict

    def _outcome(self, ask: Callable[[], Verdict]) -> Verdict:
        try:
            return ask()
        except ReplyError:
            return Verdict(missing=Missing.UNREADABLE)
        except BusyError:
            return Verdict(missing=Missing.BUSY)
        except TimeoutExpiredError:
            return Verdict(missing=Missing.TIMEOUT)
        except NetworkError:
            return Verdict(missing=Missing.UNREACHABLE)
        except UsageError as error:
            if _FILTERED.search(str(error)):
                return Verdict(missing=Missing.REFUSED)
            raise

    # ---------------------------------------------------------------------------------------- all rubrics in one call

    def _together(self, shown: Message, question: Question, seed: int) -> Verdict:
        rubrics = [*question.rubrics, *(() if question.overall is None else (question.overall,))]
        order = list(range(len(rubrics)))
        # An order for each prompt and seed: what stands first or last is judged otherwise.
        random.Random(f"{seed} {question.sha256}").shuffle(order)
        asked = "\n".join(f"{number}. {rubrics[place]}" for number, place in enumerate(order, 1))

        def messages(_level: str) -> list[Message]:
            content = [text_part(asked), shown]
            return [{"role": "system", "content": self.instructions.body}, {"role": "user", "content": content}]

        def read(reply: ChatReply, _level: str) -> Verdict:
            return read_answers(reply, order, len(question.rubrics))

        return self.client.ask(messages, _schema(len(rubrics)), read, name="verdicts", temperature=0.0, seed=seed)

    # ------------------------------------------------------------------------------------------- a call for each rubric

    def _apart(self, shown: Message, question: Question, seed: int) -> Verdict:
        found: list[float | None] = []
        for rubric in (*question.rubrics, *(() if question.overall is None else (question.overall,))):
            content = [shown, text_part(rubric)]  # the picture first: the calls then share its prefix in a server
            messages = [{"role": "system", "content": self.instructions.body}, {"role": "user", "content": content}]
            reply = self.client.complete(messages, temperature=0.0, seed=seed, chances=CHANCES)
            if reply.refused or declines(reply.text):
                return Verdict(missing=Missing.REFUSED)
            found.append(yes_share(reply))
        own = len(question.rubrics)
        overall = found[own] if len(found) > own else None
        if all(value is None for value in found):
            return Verdict(missing=Missing.UNREADABLE)
        return Verdict(tuple(found[:own]), overall)


def read_answers(reply: ChatReply, order: list[int], own: int) -> Verdict:
    """Read a reply to all rubrics; `order[i]`: the place of question i + 1, those from `own` on are the overall one.

    Raises NotUnderstood where no list of verdicts can be read.
    """
    entries = _entries(reply.text)
    if entries is None:
        if reply.refused or declines(reply.text):
            return Verdict(missing=Missing.REFUSED)
        cut = " (cut off)" if reply.cut else ""
        raise NotUnderstood(ReplyError(f"the judge's answer is no list of verdicts{cut}: {reply.text[:80]!r}"))
    if len(entries) != len(order):
        return Verdict(missing=Missing.COUNT)
    numbers = [entry.get("number") for entry in entries]
    if sorted(n for n in numbers if type(n) is int) != list(range(1, len(order) + 1)):
        raise NotUnderstood(ReplyError("the judge answers questions that were not asked, or one twice"))
    answers: list[float | None] = [None] * len(order)
    for number, entry in zip(cast("list[int]", numbers), entries, strict=True):
        answers[order[number - 1]] = answer(entry.get("answer"))
    if all(value is None for value in answers):
        return Verdict(missing=Missing.UNREADABLE)
    return Verdict(tuple(answers[:own]), answers[own] if len(answers) > own else None)


def _entries(text: str) -> list[dict[str, Any]] | None:
    """The verdicts of an answer, whatever stands around the JSON; None: there are none."""
    start, end = text.find("{"), text.rfind("}")
    try:
        said = json.loads(text[start : end + 1]) if start >= 0 else None
    except (ValueError, RecursionError):
        return None
    entries = said.get("verdicts") if isinstance(said, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        return None
    return cast("list[dict[str, Any]]", entries)


def yes_share(reply: ChatReply) -> float | None:
    """P(yes) / (P(yes) + P(no)) at the first token that may be either; without log-probabilities the word itself.

    None where neither is among the likeliest tokens, or the word is another.
    """
    for token in reply.chances or ():
        share = {"yes": 0.0, "no": 0.0}
        for text, logprob in {token.text: token.logprob, **token.others}.items():
            word = text.strip().lower().strip(".\"'")
            if word in share:
                share[word] += math.exp(logprob)
        if total := share["yes"] + share["no"]:
            return share["yes"] / total
    return answer(reply.text.strip().strip('."'))


def _schema(count: int) -> dict[str, Any]:
    fields = {
        "number": {"type": "integer"},
        "evidence": {"type": "string"},
        "answer": {"type": "string", "enum": ["yes", "no"]},
    }
    entry = {"type": "object", "properties": fields, "required": [*fields], "additionalProperties": False}
    entries = {"type": "array", "items": entry, "minItems": count, "maxItems": count}
    return {
        "type": "object", "properties": {"verdicts": entries}, "required": ["verdicts"], "additionalProperties": False,
    }  # fmt: skip


def as_png(picture: Image.Image, longest: int = LONGEST) -> bytes:
    """A picture as it is sent: PNG, no side longer than `longest` pixels."""
    shown = picture.convert("RGB")
    shown.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    shown.save(stream, "PNG")
    return stream.getvalue()
