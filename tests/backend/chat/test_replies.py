"""A chat completion's JSON -> an answer: what servers are known to send, and what a hostile one may."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from backend.chat.replies import ChatReply, final_text, read_completion


@pytest.mark.parametrize(
    ("text", "final"),
    [
        ("a cat", "a cat"),
        (
            "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>a cat<|return|>",
            "a cat",
        ),
        ("Hm.<|end|><|start|>assistant<|channel|>final <|constrain|>json<|message|>{}", "{}"),
        ("<|channel|>analysis<|message|>I shall say a cat", ""),
        ("analysisThe user wants a cat.assistantfinala cat", "a cat"),
        ("analysisThe user wants a cat.", ""),
        ("analysis of a painting", "analysis of a painting"),
        ("finalA cat", "A cat"),
        ("final exam in a hall", "final exam in a hall"),
        ("<think>a dog?</think>\n a cat", "a cat"),
        ("a dog?</think> a cat", "a cat"),
        ("<think>a dog? it never ends", ""),
        ("a cat<|return|>", "a cat"),
        ('a sign that says "<|end|> of"', 'a sign that says "<|end|> of"'),
    ],
)
def test_final_text(text: str, final: str) -> None:
    assert final_text(text) == final


def completion(**choice: Any) -> dict[str, Any]:
    return {"choices": [{"message": {"content": "yes"}, **choice}]}


def test_log_probabilities_are_read_as_openai_describes_them() -> None:
    token = {"token": "yes", "logprob": -0.25, "bytes": [121], "top_logprobs": [
        {"token": "yes", "logprob": -0.25}, {"token": "no", "logprob": -1.5}]}  # fmt: skip
    reply = read_completion(completion(logprobs={"content": [token]}))
    assert reply.chances is not None
    (chance,) = reply.chances
    assert (chance.text, chance.logprob, dict(chance.others)) == ("yes", -0.25, {"yes": -0.25, "no": -1.5})


@pytest.mark.parametrize(
    "logprobs",
    [None, [], {}, {"content": None}, {"content": [{"token": "yes"}]}, {"tokens": ["yes"], "token_logprobs": [-0.1]},
     {"content": [{"token": "yes", "logprob": None}]}, {"content": [{"token": "yes", "logprob": 10**400}]},
     {"content": [{"token": "yes", "logprob": float("nan")}]}],
)  # fmt: skip
def test_log_probabilities_of_another_form_are_none(logprobs: Any) -> None:
    """Among them the older completions' lists: to guess would be to judge by numbers of something else."""
    assert read_completion(completion(logprobs=logprobs)) == ChatReply(content="yes")


def test_halves_of_pairs_and_endless_counts_lose_no_answer() -> None:
    """A journal is UTF-8: what was paid for could not be written down."""
    half = json.loads(r'"a \ud83d cat \ud83d\ude3a"')
    message = {"content": half, "reasoning": half}
    reply = read_completion({"choices": [{"message": message}], "usage": {"prompt_tokens": 10**400}})
    assert reply.content == reply.thoughts == "a ? cat \U0001f63a" and reply.tokens_in == 0


def test_marks_of_an_end_take_time_in_proportion_to_them() -> None:
    """2 MB that a server may send: the square of its length would be an hour."""
    began = time.monotonic()
    assert final_text("a cat" + "<|end|> " * 250_000 + "x").endswith("x")
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("body", [{}, {"choices": []}, {"choices": {}}, {"choices": [3]}, {"choices": None}])
def test_what_holds_no_choice_is_refused(body: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="no choices"):
        read_completion(body)


def test_fields_of_other_kinds_count_as_absent() -> None:
    body = {"choices": [{"message": {"content": ["a"], "reasoning": 3}}], "usage": {"prompt_tokens": "9", "x": -1}}
    assert read_completion(body) == ChatReply(content="")
    assert read_completion({"choices": [{"message": None}], "usage": []}) == ChatReply(content="")
