"""Reading what language models write: every way of breaking the form that servers are known for."""

from __future__ import annotations

import json

import pytest

from backend.errors import ReplyError
from backend.reasoner.answers import (
    MODEL_REFUSAL,
    Draft,
    RewriteError,
    declines,
    missing_quotes,
    quoted,
    read_json,
    read_plain,
    schema,
)
from backend.requests import PROMPT_LIMIT
from backend.text.grammar import gbnf
from prompts import rule_names

A_CAT = '{"decision": "rewrite", "prompt": "a cat", "rule": null}'


@pytest.mark.parametrize(
    "text",
    [
        A_CAT,
        f"```json\n{A_CAT}\n```",
        f"Here you are: {A_CAT} I hope it helps!",
        f"analysisI think {{so}}.assistantfinaljson{A_CAT}",
        '{"prompt": "a cat", "decision": "rewrite"}',
        '{"decision": "rewrite", "prompt": " a cat\\r\\n", "rule": "none"}',
    ],
)
def test_json_is_found_and_read(text: str) -> None:
    assert read_json(text) == Draft(decision="rewrite", prompt="a cat")
    assert read_plain(text) == Draft(decision="rewrite", prompt="a cat")


def test_extra_keys_are_ignored_and_said() -> None:
    draft = read_json('{"decision": "rewrite", "prompt": "a cat", "rule": null, "note": "hi", "n": {"decision": "x"}}')
    assert draft.prompt == "a cat" and draft.notes == (
        "the answer's key 'note' is ignored",
        "the answer's key 'n' is ignored",
    )


@pytest.mark.parametrize("rule", rule_names())
def test_a_refusal_names_its_rule(rule: str) -> None:
    assert read_json(json.dumps({"decision": "refuse", "prompt": "", "rule": rule})).rule == rule
    assert read_plain(f"REFUSED: {rule}.") == Draft(decision="refuse", rule=rule)


def test_a_refusal_without_a_known_rule_is_the_models_own() -> None:
    for text in ('{"decision": "refuse", "rule": "taste"}', '{"decision": "refuse", "rule": ["gore"]}'):
        assert read_json(text).rule == MODEL_REFUSAL
    assert read_plain("REFUSED").rule == MODEL_REFUSAL


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no decision: nothing"),
        ("a cat", "holds no decision: 'a cat'"),
        ('{"colour": "red"}', "no decision"),
        ('{"decision": "rewrite", "prompt": "a c', "no decision"),
        ("{" * 2000, "no decision"),
        ('{"prompt": "a cat"}', "decided None"),
        ('{"decision": "reject", "rule": "gore"}', "decided 'reject'"),
        ('{"decision": "rewrite", "prompt": ["a cat"]}', "holds no prompt"),
    ],
)
def test_another_form_is_an_error(text: str, message: str) -> None:
    with pytest.raises(ReplyError, match=message) as caught:
        read_json(text)
    assert not isinstance(caught.value, RewriteError) and caught.value.hint


@pytest.mark.parametrize(
    ("prompt", "rule", "message"),
    [
        ("", None, "rewrite is empty"),
        (" \n", None, "rewrite is empty"),
        ("a cat", "gore", "contradicts itself"),
        ("word " * 5000, None, f"has 24,999 characters; the limit is {PROMPT_LIMIT:,}"),
        ("a cat\u0007", None, r"holds U\+0007"),
        ("a cat \ud83c", None, "U.D83C"),
    ],
)
def test_what_cannot_be_drawn_is_an_error_of_its_own(prompt: str, rule: str | None, message: str) -> None:
    with pytest.raises(RewriteError, match=message):
        read_json(json.dumps({"decision": "rewrite", "prompt": prompt, "rule": rule}))


def test_plain_answers_lose_their_wrapping() -> None:
    for text in ("a  cat\nsits", '"a cat sits"', "“a cat sits”", "```\na cat sits\n```", "<think>hm</think>a cat sits"):
        assert read_plain(text).prompt == "a cat sits"
    assert read_plain('"A" and "B"').prompt == '"A" and "B"'
    with pytest.raises(ReplyError):
        read_plain("<think>hm")


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I’m sorry, I cannot create this picture.",
        "**I can't** draw that",
        "Sorry, no.",
        "As an AI, I do not draw people",
        "Es tut mir leid, dabei kann ich nicht helfen.",
        "Je suis désolé, je ne peux pas faire cela.",
        "Lo siento, no puedo ayudar con eso.",
        "抱歉，我不能帮助您。",
        "申し訳ありませんが、お手伝いできません。",
        "عذرًا، لا أستطيع ذلك",
        "Извините, я не могу помочь.",
    ],
)
def test_a_refusal_in_prose_is_seen(text: str) -> None:
    assert declines(text)
    assert read_plain(text) == Draft(decision="refuse", rule=MODEL_REFUSAL)
    assert read_json(json.dumps({"decision": "rewrite", "prompt": text, "rule": None})).rule == MODEL_REFUSAL


@pytest.mark.parametrize(
    "text",
    ['"Sorry, we are closed" on a door', "a card that says I'm sorry", "Sorry clowns in the rain",
     "icy canal in winter", "a can of soup", "desolate hills", "抱歉的小狗", "No puedos"],
)  # fmt: skip
def test_a_picture_is_no_refusal(text: str) -> None:
    assert not declines(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('a sign that says "BLUE" and "it\'s 5"', ("BLUE", "it's 5")),
        ('写着"你好"的牌子', ("你好",)),
        ("“a” „b“ «c» ‹d› 「e」 『f』 ‘g’ 'h i'", ("a", "b", "c", "d", "e", "f", "g", "h i")),
        ("a 5\" by 7\" photo of the dog's cats' bowls", ()),
        ('""', ()),
        ('"two\nlines"', ("two\nlines",)),
        ("no marks", ()),
    ],
)
def test_quoted(text: str, words: tuple[str, ...]) -> None:
    assert quoted(text) == words


def test_quoted_words_must_stay_letter_by_letter() -> None:
    request = 'a sign "Cafe\u0301  Zoë" beside "OPEN"'
    assert missing_quotes(request, 'a red sign with "Café Zoë", below it “OPEN”') == ()
    assert missing_quotes(request, 'a red sign with "Cafe Zoë" and "open"') == ("Cafe\u0301  Zoë", "OPEN")


def test_the_schema_becomes_a_grammar() -> None:
    """llama.cpp's side accepts it, and every rule is in it."""
    grammar = gbnf(schema())
    assert all(rule in grammar for rule in rule_names()) and list(schema()["properties"]) == schema()["required"]
