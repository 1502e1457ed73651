"""Two-phase answers of llama.cpp: schemas, budgets, seeds, stopping.

Why it can be trusted: networks with random weights keep to no format by themselves, so what holds for their answers is
ours; and what the network was given is read back from the token ids. The shipped weights may be trained anew: no test
reads sense out of their answers.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from backend.errors import CancelledError, UsageError
from backend.text import harmony
from backend.text.llama import LlamaModel
from tests.backend.llama_models import (
    CLOSED,
    GGUF,
    PROMPTS,
    SCHEMA,
    TAKE,
    answer,
    asked,
    encode,
)


@pytest.fixture(scope="module")
def nano() -> Iterator[LlamaModel]:
    with LlamaModel(GGUF, threads=1) as model:
        yield model


def test_an_answer_keeps_to_the_schema(nano: LlamaModel, random_gguf: Path) -> None:
    """Also of random weights, for which every token is as likely as the next."""
    with LlamaModel(random_gguf, threads=1) as noise:
        for seed in range(12):
            reply = answer(noise, asked(noise, "a cat"), schema=CLOSED, temperature=2.0, seed=seed)
            assert reply.finished
            found = json.loads(reply.text)
            assert list(found) == ["a", "b"]
            assert found["a"] in ("x", "yy", 3) and isinstance(found["b"], bool)
            assert reply.text == json.dumps(found)  # the spacing too
    reply = answer(nano, asked(nano, "two cats"), answer_tokens=300, think_tokens=60)
    found = json.loads(reply.text)
    assert reply.finished and reply.text == json.dumps(found, ensure_ascii=False)
    assert list(found) == list(SCHEMA["properties"])


def test_both_phases_are_well_formed(random_gguf: Path, ran: list[tuple[int, ...]]) -> None:
    """What the network saw, read back: two messages with the trained headers, whatever it would rather have written."""
    with LlamaModel(random_gguf, threads=1) as noise:
        ids = asked(noise, "a cat")
        for seed, schema in ((0, CLOSED), (1, None), (2, None)):
            ran.clear()
            reply = answer(noise, ids, schema=schema, temperature=3.0, seed=seed, think_tokens=30, answer_tokens=30)
            everything = [token for batch in ran for token in batch]
            messages = harmony.parse(noise.tokenizer, everything[-_tail(noise.tokenizer, everything) :])
            assert [(m.role, m.channel, m.text, m.end) for m in messages] == [
                ("assistant", "analysis", reply.thought, "<|end|>"),
                ("assistant", "final", reply.text, None),
            ]


def _tail(tokenizer: Tokenizer, ids: Sequence[int]) -> int:
    """Tokens from the last but one `<|channel|>` on: what was written after the conversation."""
    channels = [place for place, token in enumerate(ids) if token == tokenizer.token_to_id("<|channel|>")]
    return len(ids) - channels[-2]


def test_budgets(nano: LlamaModel) -> None:
    ids = asked(nano, "two cats")
    whole = answer(nano, ids, think_tokens=60, answer_tokens=300, temperature=0)
    cut = answer(nano, ids, think_tokens=3, answer_tokens=300, temperature=0)
    assert whole.thought.startswith(cut.thought)
    assert len(harmony.plain_ids(nano.tokenizer, cut.thought)) <= 3
    assert cut.finished and json.loads(cut.text)
    none = answer(nano, ids, think_tokens=0, answer_tokens=300, temperature=0)
    assert none.thought == "" and none.finished
    short = answer(nano, ids, think_tokens=60, answer_tokens=6, temperature=0)
    assert not short.finished and whole.text.startswith(short.text)
    assert short.tokens <= 66 and whole.tokens > short.tokens
    with pytest.raises(UsageError, match="too long"):
        answer(nano, asked(nano, "cat " * 5000))


def test_a_seed_says_everything(nano: LlamaModel) -> None:
    """Not the requests before it, nor features computed in between, nor the object it is asked of."""
    requests = [asked(nano, text) for text in ("a cat", "a picture of three ships", "日本 🎈")]
    requests.append(asked(nano, "a cat", "Other instructions."))
    with LlamaModel(GGUF, threads=1) as other:
        wanted = {(ids, seed): answer(other, ids, seed=seed) for ids in requests for seed in (1, 2)}
    rng = random.Random(0)
    for ids, seed in rng.sample(list(wanted), len(wanted)) + rng.sample(list(wanted), len(wanted)):
        nano.hidden_states(encode(nano, rng.choice(PROMPTS)), TAKE)
        assert answer(nano, ids, seed=seed) == wanted[ids, seed]
    assert len({reply.thought + reply.text for reply in wanted.values()}) > len(requests)  # seeds differ
    greedy = {answer(nano, requests[0], seed=seed, temperature=0) for seed in (1, 2, 3)}
    assert len(greedy) == 1


def test_the_instructions_are_read_once(ran: list[tuple[int, ...]]) -> None:
    with LlamaModel(GGUF, threads=1) as model:
        first, second = asked(model, "a cat", "Say it. " * 30), asked(model, "two dogs", "Say it. " * 30)
        answer(model, first)
        ran.clear()
        answer(model, second)
        place = harmony.users_place(model.tokenizer, second)
        assert ran[0] == second[place:]


def test_temperature_follows_the_softmax(nano: LlamaModel) -> None:
    """Frequencies of the first token against the softmax of the logits, and hot against cold."""
    ids = asked(nano, "a cat")
    first: dict[float, list[str]] = {}
    for temperature in (0.3, 3.0):
        first[temperature] = [
            answer(nano, ids, schema=None, think_tokens=0, answer_tokens=1, temperature=temperature, seed=seed).text
            for seed in range(80)
        ]
    assert len(set(first[3.0])) > len(set(first[0.3]))
    assert nano._answerer is not None and nano._answerer._context is not None
    answer(nano, ids, schema=None, think_tokens=0, answer_tokens=0)
    logits = torch.from_numpy(nano._answerer._context.logits())
    ends = [nano.tokenizer.token_to_id(token) for token in ("<|return|>", "<|end|>")]
    logits[[i for i in nano._special if i not in ends]] = -torch.inf
    for temperature, texts in first.items():
        chance = torch.softmax(logits / temperature, 0)
        chance[ends[0]] += chance[ends[1]]  # either ends the answer, as an empty text
        chance[ends[1]] = 0
        likeliest = int(chance.argmax())
        text = "" if likeliest == ends[0] else nano.tokenizer.decode([likeliest])
        assert abs(texts.count(text) / len(texts) - float(chance[likeliest])) < 0.22  # four standard errors


def test_stop(nano: LlamaModel) -> None:
    ids = asked(nano, "three ships on a calm sea")
    wanted = answer(nano, ids)
    calls = 0

    def after(number: int) -> bool:
        nonlocal calls
        calls += 1
        return calls > number

    answer(nano, ids, stop=lambda: after(10**9))
    total = calls
    for number in (0, 5, total - 3):
        calls = 0
        with pytest.raises(CancelledError):
            answer(nano, ids, stop=lambda number=number: after(number))
        assert answer(nano, ids) == wanted
