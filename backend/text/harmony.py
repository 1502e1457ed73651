"""The harmony format of GPT-OSS: the conversation that carries a prompt through the text encoder.

Control tokens are inserted by id; a user's text is tokenised as plain text, so `<|end|>` typed by a person stays text.
Works with any `tokenizers.Tokenizer` that has the harmony control tokens. Knows nothing about models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from backend.errors import CheckpointError, ReplyError
from backend.params import TemplateParams

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CONTROL = ("<|start|>", "<|message|>", "<|end|>", "<|channel|>", "<|return|>")
_ENDS = ("<|end|>", "<|return|>", "<|call|>")  # after a message; a model's last one, or its tool call
_CHANNELS = "# Valid channels: analysis, commentary, final. Channel must be included for every message."


def plain_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of `text` with no control token recognised in it."""
    before = tokenizer.encode_special_tokens
    tokenizer.encode_special_tokens = True  # "encode special tokens as text"
    try:
        return tokenizer.encode(text, add_special_tokens=False).ids
    finally:
        tokenizer.encode_special_tokens = before


class HarmonyWriter:
    """Builds the token ids of a conversation message by message."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.ids: list[int] = []
        self._control: dict[str, int] = {}
        for token in CONTROL:
            number = tokenizer.token_to_id(token)
            if number is None:
                raise CheckpointError(
                    f"the tokenizer has no {token} token", hint="Lens needs the gpt-oss tokenizer (harmony format)."
                )
            self._control[token] = number

    def control(self, token: str) -> HarmonyWriter:
        self.ids.append(self._control[token])
        return self

    def text(self, text: str) -> HarmonyWriter:
        self.ids += plain_ids(self.tokenizer, text)
        return self

    def open(self, role: str, channel: str | None = None) -> HarmonyWriter:
        """`<|start|>role[<|channel|>channel]<|message|>`."""
        self.control("<|start|>").text(role)
        if channel is not None:
            self.control("<|channel|>").text(channel)
        return self.control("<|message|>")

    def message(self, role: str, text: str, channel: str | None = None, *, end: str = "<|end|>") -> HarmonyWriter:
        return self.open(role, channel).text(text).control(end)


def system_text(template: TemplateParams, effort: str = "medium") -> str:
    """The system block that GPT-OSS's chat template writes itself; `effort` is low, medium or high."""
    return (
        f"{template.identity}\nKnowledge cutoff: {template.knowledge_cutoff}\nCurrent date: {template.date}\n\n"
        f"Reasoning: {effort}\n\n{_CHANNELS}"
    )


@dataclass(frozen=True)
class EncodedPrompt:
    """Token ids of a whole conversation and how many of them to cut from the front of the features."""

    ids: tuple[int, ...]
    prefix: int
    unread: str = ""  # the end of the person's text, where there was no room for it


def encode_prompt(tokenizer: Tokenizer, template: TemplateParams, prompt: str) -> EncodedPrompt:
    """The conversation of one prompt, truncated on the right to `template.max_tokens`.

    Raises CheckpointError where the tokens before the user's text are not `template.prefix_tokens`: then this is not
    the tokenizer the model was trained with.
    """
    writer = HarmonyWriter(tokenizer)
    writer.message("system", system_text(template))
    # The blank line before <|end|> is the published template's: it joins instructions and (absent) tools.
    writer.message("developer", f"# Instructions\n\n{template.instruction}\n\n")
    writer.open("user")
    prefix = len(writer.ids)
    if prefix != template.prefix_tokens:
        raise CheckpointError(
            f"the conversation template is {prefix} tokens long before the prompt, expected {template.prefix_tokens}",
            hint="The tokenizer does not belong to this model.",
        )
    writer.text(prompt)
    unread = tokenizer.decode(writer.ids[template.max_tokens :])
    writer.control("<|end|>")
    writer.message("assistant", template.thinking, "analysis")
    writer.open("assistant", "final")
    return EncodedPrompt(ids=tuple(writer.ids[: template.max_tokens]), prefix=prefix, unread=unread)


def conversation(
    tokenizer: Tokenizer, template: TemplateParams, instructions: str, request: str, *, effort: str = "low"
) -> tuple[int, ...]:
    """Token ids of a request for a written answer, up to and including the `<|start|>assistant` the model goes on from.

    `instructions` is a system prompt (harmony's developer message); it and `request` are plain text whatever they
    contain. `effort` is low, medium or high.
    """
    writer = HarmonyWriter(tokenizer)
    writer.message("system", system_text(template, effort))
    writer.message("developer", f"# Instructions\n\n{instructions}\n\n")
    writer.message("user", request)
    return tuple(writer.control("<|start|>").text("assistant").ids)


def users_place(tokenizer: Tokenizer, ids: Sequence[int]) -> int:
    """How many tokens stand before the first user's text: what many conversations share. 0 without a user message."""
    header = tuple(HarmonyWriter(tokenizer).open("user").ids)
    for start in range(len(ids) - len(header) + 1):
        if tuple(ids[start : start + len(header)]) == header:
            return start + len(header)
    return 0


# Reading what a model wrote -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Message:
    """One message, taken apart."""

    role: str  # system, developer, user, assistant, or a tool's name
    text: str
    channel: str | None = None  # analysis, commentary or final; None outside the assistant's messages
    recipient: str | None = None  # the NAME of `to=NAME`: a tool call
    constraint: str | None = None  # what `<|constrain|>` announces, for instance "json"
    end: str | None = None  # the control token that ended it; None: the ids ran out first


@dataclass(frozen=True)
class Reply:
    """What a model wrote after a conversation."""

    thought: str  # the analysis channel; never for a person's eyes (OpenAI: not trained to be safe)
    text: str  # the final channel
    finished: bool  # False: the final message was cut by its budget. A thought that was cut does not count
    tokens: int  # generated by the model, thought and answer together


def parse(tokenizer: Tokenizer, ids: Sequence[int]) -> list[Message]:
    """Token ids -> messages. Control tokens count by their id alone, so text that looks like one stays text.

    Ids may begin in the middle of a header, as a model's own do after `<|start|>assistant`: the role is then
    "assistant". The last message may lack its end. Raises ReplyError for any other order of control tokens, saying
    which token stands where.
    """
    return _Reader(tokenizer, ids).messages()


class _Reader:
    """Walks through ids; a control token that may not stand where it does is an error."""

    def __init__(self, tokenizer: Tokenizer, ids: Sequence[int]) -> None:
        self.tokenizer, self.ids, self.at = tokenizer, list(ids), 0
        added = tokenizer.get_added_tokens_decoder()
        self.names = {number: token.content for number, token in added.items() if token.special}

    def messages(self) -> list[Message]:
        found: list[Message] = []
        while self.at < len(self.ids):
            if self.take("<|start|>"):
                header = self.text()
            elif not found and self.here() in ("<|channel|>", "<|message|>"):
                header = "assistant"
            else:
                raise self.misplaced("between two messages")
            found.append(self.message(header))
        return found

    def message(self, header: str) -> Message:
        role, recipient = _addressed(header)
        if not role:
            raise self.misplaced("in place of a role")
        channel = constraint = None
        if self.take("<|channel|>"):
            channel, other = _addressed(self.text())
            recipient = other or recipient
            if not channel:
                raise self.misplaced("in place of a channel")
        if self.take("<|constrain|>"):
            constraint = self.text().strip()
        if not self.take("<|message|>"):
            raise self.misplaced("in a header")
        text = self.text()
        end = self.here()
        if end is not None:
            if end not in _ENDS:
                raise self.misplaced("inside a message")
            self.at += 1
        return Message(role, text, channel, recipient, constraint, end)

    def here(self) -> str | None:
        """The control token at this place; None for text and after the last id."""
        return self.names.get(self.ids[self.at]) if self.at < len(self.ids) else None

    def take(self, token: str) -> bool:
        found = self.here() == token
        self.at += found
        return found

    def text(self) -> str:
        """All text up to the next control token."""
        first = self.at
        while self.at < len(self.ids) and self.ids[self.at] not in self.names:
            self.at += 1
        return self.tokenizer.decode(self.ids[first : self.at], skip_special_tokens=False)

    def misplaced(self, where: str) -> ReplyError:
        token = self.here() or ("text" if self.at < len(self.ids) else "the end")
        return ReplyError(
            f"malformed harmony format: {token} {where}, at token {self.at}",
            hint="The model does not keep to the format it was trained on; try another seed or a larger model.",
        )


def _addressed(header: str) -> tuple[str, str | None]:
    """ "commentary to=functions.draw" -> ("commentary", "functions.draw")."""
    words = header.split()
    to = next((word for word in words if word.startswith("to=")), None)
    rest = [word for word in words if word != to]
    return (rest[0] if rest else ""), (to.removeprefix("to=") if to is not None else None)
