"""Schemas as grammars, judged by llama.cpp's own automaton with the shipped vocabulary, and by Python's json.

Why it can be trusted: a text is walked through token by token, so what is accepted here is what a model could write.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from tokenizers import Tokenizer

from backend.checkpoints.resolve import resolve_model
from backend.loading import load_tokenizer
from backend.text.grammar import gbnf
from backend.text.harmony import plain_ids
from backend.text.llama_answer import Grammar
from backend.text.llama_library import OpenGguf

FILES = resolve_model("nano")
DECISION = {
    "type": "object",
    "title": "a decision",
    "properties": {
        "decision": {"enum": ["rewrite", "refuse"]},
        "prompt": {"type": "string", "description": "one line"},
        "rule": {"anyOf": [{"type": "null"}, {"enum": ["gore", "self-harm"]}]},
    },
    "required": ["rule", "decision", "prompt"],
}


@pytest.fixture(scope="module")
def model() -> Iterator[OpenGguf]:
    opened = OpenGguf(FILES.text_encoder[0], repack=False, gpu_layers=0)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(FILES)


def accepts(model: OpenGguf, tokenizer: Tokenizer, schema: dict[str, Any], text: str) -> bool:
    """Whether the whole text, and then the end, may be written."""
    grammar = Grammar(model, gbnf(schema))
    try:
        for token in [*plain_ids(tokenizer, text), tokenizer.token_to_id("<|return|>")]:
            if grammar.first_allowed([token]) is None:
                return False
            grammar.accept(token)
        return True
    finally:
        grammar.close()


def written(decision: str, prompt: str, rule: str | None) -> str:
    return json.dumps({"decision": decision, "prompt": prompt, "rule": rule}, ensure_ascii=False)


@pytest.mark.parametrize(
    "prompt", ["", "a cat", 'a sign that says "OPEN"', "back\\slash", "two\nlines\tand a tab", "家 🎈 ñ", "a/b {c} [d]"]
)
def test_what_json_writes_is_accepted(model: OpenGguf, tokenizer: Tokenizer, prompt: str) -> None:
    for decision, rule in (("rewrite", None), ("refuse", "self-harm")):
        assert accepts(model, tokenizer, DECISION, written(decision, prompt, rule))


@pytest.mark.parametrize(
    "text",
    [
        "",
        written("rewrite", "a cat", "other"),
        written("maybe", "a cat", None),
        written("rewrite", "a cat", None)[:-1],
        written("rewrite", "a cat", None) + " ",
        " " + written("rewrite", "a cat", None),
        written("rewrite", "a cat", None).replace(", ", ","),
        written("rewrite", "a cat", None).replace(": ", ":"),
        written("rewrite", "a cat", None).replace(", ", ",\n"),
        json.dumps({"prompt": "a cat", "decision": "rewrite", "rule": None}),
        json.dumps({"decision": "rewrite", "prompt": "a cat"}),
        json.dumps({"decision": "rewrite", "prompt": "a cat", "rule": None, "more": 1}),
        '{"decision": "rewrite", "prompt": "two\nlines", "rule": null}',
        '{"decision": "rewrite", "prompt": "half \\ud83d", "rule": null}',
        '{"decision": "rewrite", "prompt": "\\q", "rule": null}',
        '{"decision": "rewrite", "prompt": 3, "rule": null}',
        "null",
    ],
)
def test_everything_else_is_not(model: OpenGguf, tokenizer: Tokenizer, text: str) -> None:
    assert not accepts(model, tokenizer, DECISION, text)


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"type": "integer"}, [0, -7, 123], [1.5, "1"]),
        ({"type": "number"}, [0, -7.25, 1e9, 2.5e-7], ["1", True]),
        ({"type": "boolean"}, [True, False], [None, 0]),
        ({"type": ["string", "null"]}, ["a", None], [False, 1]),
        ({"const": {"a": 1}}, [{"a": 1}], [{"a": 2}, {}]),
        ({"enum": [1, "é", None]}, [1, "é", None], [2, "e", "null"]),
        ({"type": "object"}, [{}], [{"a": 1}]),
        ({"type": "array", "items": {"type": "string"}}, [[], ["a"], ["a", "b", "c"]], [[1], "a"]),
        (
            {"type": "array", "items": {"type": "object", "properties": {"n": {"type": "integer"}}}},
            [[{"n": 1}, {"n": 2}]],
            [[{"m": 1}], [{}]],
        ),
    ],
)
def test_kinds(model: OpenGguf, tokenizer: Tokenizer, schema: dict[str, Any], good: list[Any], bad: list[Any]) -> None:
    for value in good:
        assert accepts(model, tokenizer, schema, json.dumps(value, ensure_ascii=False)), value
    for value in bad:
        assert not accepts(model, tokenizer, schema, json.dumps(value, ensure_ascii=False)), value


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "maxLength": 20},
        {"type": "string", "pattern": "a+"},
        {"type": "array", "items": {"type": "string"}, "maxItems": 3},
        {"type": "object", "properties": {"a": {"type": "string"}}, "required": []},
        {"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": True},
        {"type": "sentence"},
        {"enum": []},
        {},
    ],
)
def test_what_would_be_ignored_is_an_error(schema: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        gbnf(schema)
