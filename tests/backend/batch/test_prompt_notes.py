"""What a person is told of a prompt, judged on the shipped model's own list of words and on the shipped styles."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from backend.batch.prompt_notes import prompt_notes
from backend.batch.styles import styles
from backend.requests import build_request
from backend.settings import Settings
from backend.wish import Wish

NANO = Path(__file__).resolve().parents[3] / "backend" / "nano"
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
    ],
)
def test_a_prompt_is_told_what_is_not_as_it_was_meant(prompt: str, style: str | None, said: list[str]) -> None:
    """The words that a style brings are not held against the person."""
    text = prompt if style is None else styles()[style].replace("{prompt}", prompt)
    found = prompt_notes(replace(REQUEST, prompt=text, style=style), "nano", NANO)
    assert len(found) == len(said)
    assert all(note.replace("'", "").startswith(begin) for note, begin in zip(found, said, strict=True)), found
