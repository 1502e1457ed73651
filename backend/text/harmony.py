"""The harmony format of GPT-OSS: the conversation that carries a prompt through the text encoder.

Control tokens are inserted by id; a user's text is tokenised as plain text, so `<|end|>` typed by a person stays text.
Works with any `tokenizers.Tokenizer` that has the harmony control tokens. Knows nothing about models.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from backend.errors import CheckpointError
from backend.params import TemplateParams

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CONTROL = ("<|start|>", "<|message|>", "<|end|>", "<|channel|>", "<|return|>")
_CHANNELS = "# Valid channels: analysis, commentary, final. Channel must be included for every message."


def plain_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of `text` with no control token recognised in it."""
    before = tokenizer.encode_special_tokens
    tokenizer.encode_special_tokens = True  # "encode special tokens as text"
    try:
        return tokenizer.encode(text, add_special_tokens=False).ids
    finally:
        tokenizer.encode_special_tokens = before


class Writer:
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

    def control(self, token: str) -> Writer:
        self.ids.append(self._control[token])
        return self

    def text(self, text: str) -> Writer:
        self.ids += plain_ids(self.tokenizer, text)
        return self

    def open(self, role: str, channel: str | None = None) -> Writer:
        """`<|start|>role[<|channel|>channel]<|message|>`."""
        self.control("<|start|>").text(role)
        if channel is not None:
            self.control("<|channel|>").text(channel)
        return self.control("<|message|>")

    def message(self, role: str, text: str, channel: str | None = None, *, end: str = "<|end|>") -> Writer:
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


def encode_prompt(tokenizer: Tokenizer, template: TemplateParams, prompt: str) -> EncodedPrompt:
    """The conversation of one prompt, truncated on the right to `template.max_tokens`.

    Raises CheckpointError where the tokens before the user's text are not `template.prefix_tokens`: then this is not
    the tokenizer the model was trained with.
    """
    writer = Writer(tokenizer)
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
    writer.text(prompt).control("<|end|>")
    writer.message("assistant", template.thinking, "analysis")
    writer.open("assistant", "final")
    return EncodedPrompt(ids=tuple(writer.ids[: template.max_tokens]), prefix=prefix)
