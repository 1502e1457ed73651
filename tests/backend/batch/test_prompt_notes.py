"""What a person is told of a prompt, judged on the shipped model's own list of words and on the shipped styles."""

from __future__ import annotations

from dataclasses import replace

import pytest

from backend.batch.prompt_notes import prompt_notes
from backend.batch.styles import styles
from backend.checkpoints.resolve import resolve_model
from backend.requests import build_request
from backend.settings import Settings
from backend.types import Expander
from backend.wish import Wish

NANO = resolve_model("nano")
REQUEST = build_request(Wish(prompt="x", model="nano"), Settings(), warn=print).request


@pytest.mark.parametrize(
    ("prompt", "style", "said"),
    [
        ("a red star", None, []),
        ("a red star", "papercut", ["nano has not learnt the style papercut"]),
        ("a kitten", None, ["nano has never read kitten;"]),
        ("a kitten", "watercolour", ["nano has never read kitten;", "nano has not learnt the style watercolour;"]),
        ("a blue fish --ar 16:9", None, ["--ar 16:9 stands inside the prompt"]),
        ("a (blue fish:1.3)", None, ["(blue fish:1.3) weighs nothing here"]),
        ("a red star -- and (two) moons", None, []),
        ("a red sign that says OPEN NOW", None, ["letters to draw go into quotation marks: OPEN NOW"]),
        ('a red sign that says "OPEN"', None, []),
    ],
)
def test_a_prompt_is_told_what_is_not_as_it_was_meant(prompt: str, style: str | None, said: list[str]) -> None:
    """The words that a style brings are not held against the person."""
    text = prompt if style is None else styles()[style].replace("{prompt}", prompt)
    found = prompt_notes(replace(REQUEST, prompt=text, style=style), NANO)
    assert len(found) == len(said)
    assert all(
        note.replace("'", "").replace('"', "").startswith(begin) for note, begin in zip(found, said, strict=True)
    ), found


def test_words_on_signs_need_the_size_that_they_were_learnt_at() -> None:
    """Measured: nine of ten words right at 256x256, none to three at five other sizes."""
    wide = replace(REQUEST, prompt='a red sign that says "OPEN"', width=336, height=192)
    assert prompt_notes(wide, NANO) == ["nano has learnt letters at 256x256: few words come out right at 336x192"]
    assert prompt_notes(replace(wide, prompt="a red sign"), NANO) == []


def test_other_words_are_advised_where_the_models_own_language_model_learned_to_find_them() -> None:
    """It did where its adapter lies beside it; a prompt that was rewritten already is not sent there again."""
    (note,) = prompt_notes(replace(REQUEST, prompt="a kitten"), NANO)
    assert "--reasoner local" in note
    expander = Expander(
        kind="local", model="nano", system_prompt="nano", instructions_sha256="0", effort="low", temperature=0.0, seed=0
    )  # fmt: skip
    (note,) = prompt_notes(replace(REQUEST, prompt="a kitten", expander=expander), NANO)
    assert "--reasoner" not in note
