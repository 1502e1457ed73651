"""The reasoner behind an OpenAI-compatible endpoint: what is asked over `backend.chat`, and how an answer is read.

Thoughts are never used as a prompt: of what a server puts apart as reasoning only a complete JSON decision counts,
since LM Studio puts it there. Every other outcome is an error that says what happened.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from backend.chat.address import Address
from backend.chat.client import Client, NotUnderstood
from backend.chat.replies import ChatReply, Message
from backend.errors import ReplyError
from backend.reasoner import answers
from backend.reasoner.answers import Draft, RewriteError
from backend.reasoner.refine import Task


class EndpointSpeaker:
    """A `refine.Speaker` behind an address. `wait` sleeps; tests give another."""

    def __init__(
        self, address: Address, *, say: Callable[[str], None] = lambda text: None,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:  # fmt: skip
        self.address = address
        self.client = Client(address, say=say, wait=wait)

    @property
    def identity(self) -> str:
        return f"api {self.address.base_url} {self.address.model}"

    def ask(self, task: Task) -> Draft:
        """One decision. Raises ReplyError (nothing usable came), NetworkError, TimeoutExpiredError, UsageError."""
        plan = task.plan

        def messages(level: str) -> list[Message]:
            instructions = task.instructions("plain" if level == "plain" else "json")
            return [{"role": "system", "content": instructions}, {"role": "user", "content": task.request}]

        draft = self.client.ask(
            messages,
            answers.schema(),
            lambda reply, level: self._read(reply, plain=level == "plain" and plan.contract != "complete"),
            name="decision",
            seed=plan.seed,
            effort=plan.effort,
            temperature=plan.temperature,
        )
        return self._with_left_out(draft, task)

    def _with_left_out(self, draft: Draft, task: Task) -> Draft:
        """The draft, which says what the endpoint was not sent because it does not take it."""
        wanted = {"temperature": task.plan.temperature, "seed": task.plan.seed}
        left_out = tuple(name for name, value in wanted.items() if value is not None and name in self.client.refused)
        notes = draft.notes
        if "temperature" in left_out:  # an endpoint's plan has one only where the person set it
            notes += (
                f"{self.address.model} does not take the temperature {task.plan.temperature:g}; its own was used",
            )
        return replace(draft, left_out=left_out, notes=notes)

    def _read(self, reply: ChatReply, *, plain: bool) -> Draft:
        """The decision in an answer. Raises NotUnderstood where another form of the question may do better."""
        if reply.refused:
            return Draft(decision="refuse", rule=answers.MODEL_REFUSAL)
        if reply.cut:
            return self._read_cut(reply)
        text = reply.content
        try:
            if reply.text:
                return answers.read_plain(text) if plain or answers.declines(text) else answers.read_json(text)
            return self._read_thoughts(reply)
        except RewriteError:
            raise
        except ReplyError as error:
            raise NotUnderstood(error) from error

    def _read_cut(self, reply: ChatReply) -> Draft:
        """A complete decision before the cut still counts: some servers pad JSON with blanks to the end.

        Raises ReplyError: asking in another form would only end in the same way.
        """
        try:
            return answers.read_json(reply.content)
        except RewriteError:
            raise
        except ReplyError:
            what = "the answer was cut" if reply.text else "the model thought until its budget was gone"
            raise ReplyError(
                f"{self.address.model}: {what} at {self.address.max_tokens:,} tokens",
                hint=f"raise {self.address.where('max_tokens')}, or lower reasoner.effort",
            ) from None

    def _read_thoughts(self, reply: ChatReply) -> Draft:
        if reply.thoughts.lstrip().startswith("{"):
            return answers.read_json(reply.thoughts)
        raise ReplyError(
            f"{self.address.model} gave no answer, only thoughts or nothing",
            hint=f"another model, or a newer server, may do better; more room: {self.address.where('max_tokens')}",
        )
