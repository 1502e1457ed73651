"""What a small model is told not to know: judged on the shipped list and on prompts that a person would type."""

from __future__ import annotations

from pathlib import Path

import pytest

from backend.errors import CheckpointError
from backend.wishes.vocabulary import NAME, read_vocabulary, unknown_words
from train.evals.nano_prompts import prompts
from train.world.scenes import COLOURS, PLAIN
from train.world.things import KINDS
from train.world.vocabulary import caption_words

NANO = Path(__file__).resolve().parents[3] / "backend" / "nano"


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("three red balloons over a green hill", None),
        ("A RED APPLE", None),
        ('a sign that says "GRANDMOTHER"', None),
        ("a fish on a plain pale yellow background", None),
        ("three red baloons", "baloons (near: balloons or balloon)"),
        ("a grey cat", "grey (near: gray)"),
        ("a bear", "bear"),  # nor that near a "beak"
        ("a cat undr a tree", "undr (near: under)"),
        ("a kitten", "kitten"),  # not near "kite", which is another thing
        ("a photo of my grandmother", "photo, my, grandmother"),
        ("ein roter Hund", "ein, roter, hund"),
    ],
)
def test_what_nano_has_never_read_is_named(prompt: str, said: str | None) -> None:
    assert unknown_words(prompt, NANO) == said


def test_a_background_of_known_words_may_be_unknown() -> None:
    said = unknown_words("a fish on a plain white background", NANO)
    assert said is not None and said.startswith("a white background (it knows cream, ")


def test_the_prompts_that_measure_nano_hold_no_strange_word() -> None:
    """They are made of its world, so a warning about any of them would be a false one."""
    said = {item.brief: unknown_words(item.brief, NANO) for item in prompts()}
    assert set(said.values()) == {None}


def test_the_shipped_list_is_the_world() -> None:
    found = read_vocabulary(NANO)
    assert found is not None
    assert set(found.lists["things"]) >= set(KINDS) and found.lists["colours"] == tuple(COLOURS)
    assert found.lists["backgrounds"] == tuple(PLAIN)
    assert caption_words(300) <= found.words  # scenes are functions of their numbers: these are among those of the list


def test_a_model_that_says_nothing_is_not_judged(tmp_path: Path) -> None:
    assert unknown_words("a photo of my grandmother", tmp_path) is None


@pytest.mark.parametrize(
    "text", ["", "[]", '{"lists": 3, "words": []}', '{"lists": {}}', "[" * 5000, "{" + " " * 1_000_001]
)
def test_a_damaged_list_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / NAME).write_text(text)
    with pytest.raises(CheckpointError, match="no list of words"):
        unknown_words("a cat", tmp_path)
