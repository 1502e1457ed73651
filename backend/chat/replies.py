"""What goes to an endpoint and comes back: parts of a message, and a chat completion's JSON -> a `ChatReply`."""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

_TOKENS_END = 2**31  # of a count: more than any answer has is none
Message = dict[str, Any]  # {"role": …, "content": a text, or a list of `text_part` and `picture_part`}


def text_part(text: str) -> Message:
    """A text beside a picture in one message."""
    return {"type": "text", "text": text}


def picture_part(data: bytes, mime: str = "image/jpeg") -> Message:
    """A picture's file, sent within the request."""
    return {"type": "image_url", "image_url": {"url": f"data:{mime};base64,{base64.b64encode(data).decode()}"}}


@dataclass(frozen=True)
class TokenChance:
    """One token of an answer and what else could have stood there."""

    text: str
    logprob: float  # natural logarithm
    others: Mapping[str, float]  # text -> logprob of the likeliest at this place, this one among them


@dataclass(frozen=True, kw_only=True)
class ChatReply:
    """One answer."""

    content: str  # as it came; empty where there was none
    thoughts: str = ""  # that the server put apart from the answer
    cut: bool = False  # the budget of tokens ended it
    refused: bool = False  # the model or its filter says so, in the answer's own field
    tokens_in: int = 0  # as the server counted; 0: it did not say
    tokens_out: int = 0
    chances: tuple[TokenChance, ...] | None = None  # None: not asked for, or the server has none

    @property
    def text(self) -> str:
        """The answer without thoughts; empty where there was nothing else."""
        return final_text(self.content)


def read_completion(body: Mapping[str, Any]) -> ChatReply:
    """The first choice of a chat completion as JSON. Raises ValueError where it holds none."""
    choices = body.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise ValueError("no choices")
    choice = cast("Mapping[str, Any]", choices[0])
    message, usage = _table(choice, "message"), _table(body, "usage")
    content, finish = message.get("content"), choice.get("finish_reason")
    thoughts = (message.get(key) for key in ("reasoning_content", "reasoning"))
    return ChatReply(
        content=_encodable(content) if isinstance(content, str) else "",
        thoughts=next((_encodable(text) for text in thoughts if isinstance(text, str) and text), ""),
        cut=finish == "length",
        refused=bool(message.get("refusal")) or finish == "content_filter",
        tokens_in=_whole(usage, "prompt_tokens"),
        tokens_out=_whole(usage, "completion_tokens"),
        chances=_chances(_table(choice, "logprobs")),
    )


def _encodable(text: str) -> str:
    """`text` with "?" for the halves of pairs that JSON may hold alone: no journal could be written with them."""
    return text.encode("utf-8", "replace").decode() if not text.isascii() and _HALVES.search(text) else text


_HALVES = re.compile("[\ud800-\udfff]")


def _table(owner: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = owner.get(key)
    return cast("Mapping[str, Any]", found) if isinstance(found, dict) else {}


def _whole(owner: Mapping[str, Any], key: str) -> int:
    found = owner.get(key)
    return found if type(found) is int and 0 < found < _TOKENS_END else 0


def _chances(logprobs: Mapping[str, Any]) -> tuple[TokenChance, ...] | None:
    """None where any part is not as OpenAI describes it: half a list would be read as a whole one."""
    try:
        return tuple(
            TokenChance(
                str(token["token"]),
                _number(token["logprob"]),
                {str(other["token"]): _number(other["logprob"]) for other in token.get("top_logprobs") or ()},
            )
            for token in logprobs["content"]
        )
    except (KeyError, TypeError, ValueError, OverflowError):
        return None


def _number(value: Any) -> float:
    """A log-probability; of a token that cannot come some servers say -Infinity. Raises as `float`, also for NaN."""
    number = float(value)
    if math.isnan(number):
        raise ValueError(value)
    return number


_ENDS = ("<|end|>", "<|return|>")


def final_text(text: str) -> str:
    """The part of a reply that is meant for a person: thoughts and channel marks gone; "" where only thoughts came.

    Servers differ in what they leave of gpt-oss's channels: control tokens, their bare words ("analysisThe user …
    assistantfinal{…"), or think tags of other families.
    """
    finals = list(re.finditer(r"<\|channel\|>final[^<]*(?:<\|constrain\|>\w*)?<\|message\|>", text))
    if finals:
        text = re.split(r"<\|(?:end|return|start|call)\|>", text[finals[-1].end() :])[0]
    elif "<|channel|>" in text:
        return ""
    text = re.sub(r"<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)", "", text, flags=re.DOTALL)
    text = re.split(r"</think(?:ing)?>", text)[-1]
    if re.match(r"\s*analysis", text) and "assistantfinal" in text:
        text = text.rsplit("assistantfinal", 1)[1]
    elif re.match(r"\s*analysis[A-Z\"'“(]", text):
        return ""  # the channel's bare name runs into the thought's first word
    text = re.sub(r"^\s*final(?=[A-Z{\"“])", "", text)
    text = text.strip()
    while text.endswith(_ENDS):  # not by one expression: many marks that no end follows would take time squared
        text = text.removesuffix(_ENDS[0]).removesuffix(_ENDS[1]).rstrip()
    return text
