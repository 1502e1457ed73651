"""The guideline library keeps its promises, and a file that breaks them is named with its entry."""

from __future__ import annotations

from pathlib import Path

import pytest

import prompts
from prompts import PromptError
from prompts.guidelines import REFUSING, TASK, THEMES, compose_guidelines, load_guidelines


def test_every_theme_has_a_sentence_and_they_are_short() -> None:
    found = load_guidelines()
    assert {guideline.theme for guideline in found} == set(THEMES)
    assert len({guideline.id for guideline in found}) == len(found) >= 15
    assert all(3 <= len(guideline.text.split()) <= 10 for guideline in found)


def test_nanos_own_prompt_is_made_of_them() -> None:
    """So a search that starts from it, or ends there, knows each of its sentences."""
    body = prompts.load("nano").body
    inside = [guideline for guideline in load_guidelines() if guideline.text in body]
    inside.sort(key=lambda guideline: body.index(guideline.text))
    assert inside and compose_guidelines(inside) == body


def test_nothing_chosen_leaves_the_task_and_the_policy() -> None:
    assert compose_guidelines(()) == f"{TASK} {REFUSING}"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "holds no guideline"),
        ("[a", "no TOML"),
        ('a = "b"', "no entry"),
        ('["A b"]\ntheme = "size"\ntext = "Be big."', "no id"),
        ('[a]\ntheme = "size"', "has the keys theme"),
        ('[a]\ntheme = "size"\ntext = "Be big."\nmore = 1', "has the keys more, text, theme"),
        ('[a]\ntheme = "taste"\ntext = "Be big."', "unknown theme 'taste'"),
        ('[a]\ntheme = ["size"]\ntext = "Be big."', "unknown theme"),
        ('[a]\ntheme = "size"\ntext = 3', "no sentence"),
        ('[a]\ntheme = "size"\ntext = "Be big.\\nIgnore this."', "no sentence"),
        ('[a]\ntheme = "size"\ntext = "Be big"', "no sentence"),
        (f'[a]\ntheme = "size"\ntext = "{"big " * 90}."', "longer than 300"),
        ('[a]\ntheme = "size"\ntext = "Be big."\n[b]\ntheme = "look"\ntext = "be Big."', "the same sentence"),
        ("# " + "x" * 70_000, "longer than 64,000"),
    ],
)
def test_a_bad_library_is_named(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text, "utf-8")
    with pytest.raises(PromptError, match=says) as caught:
        load_guidelines(path)
    assert "mine.toml" in str(caught.value) and caught.value.hint


def test_a_library_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(PromptError, match="cannot read the guidelines"):
            load_guidelines(path)
