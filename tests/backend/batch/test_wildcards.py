"""Templates. Trusted because every choice is held against the words it may be, and texts beside them against what was
written."""

from __future__ import annotations

from pathlib import Path

import pytest

from backend.batch.wildcards import Wildcards, is_template, spread
from backend.errors import UsageError
from backend.wish import Wish


@pytest.fixture
def wildcards(tmp_path: Path) -> Wildcards:
    (tmp_path / "in").mkdir()
    (tmp_path / "colour.txt").write_text("red\nblue\n# a remark\n{dark|light} green\n")
    (tmp_path / "in" / "animal.txt").write_text("cat\n")
    (tmp_path / "loop.txt").write_text("__loop__\n")
    (tmp_path / "lost.txt").write_text("__nowhere__\n")
    (tmp_path.parent / "secret.txt").write_text("password\n")
    return Wildcards(tmp_path)


def test_choices_are_among_those_given_and_all_of_them_come(wildcards: Wildcards) -> None:
    made = {wildcards.expand("a {red|blue} ball, __colour__", seed) for seed in range(60)}
    colours = ("red", "blue", "dark green", "light green")
    assert made == {f"a {one} ball, {two}" for one in ("red", "blue") for two in colours}
    assert wildcards.expand("__in/animal__", 0) == "cat"
    two = {wildcards.expand("{2$$ and $$a|b|c}", seed) for seed in range(60)}
    assert two == {f"{x} and {y}" for x in "abc" for y in "abc" if x != y}


def test_a_seed_gives_the_same_words(wildcards: Wildcards) -> None:
    template = "{a|b|c|d} {a|b|c|d} __colour__"
    assert wildcards.expand(template, 7) == Wildcards(wildcards.folder).expand(template, 7)


@pytest.mark.parametrize(
    "text",
    ["50% off # now", "a {b} c", "{a|b", "} a|b {", "snake__case__name", "______", 'a sign "__"', "$5 {", "", "a\n b"],
)
def test_what_is_no_template_stays(wildcards: Wildcards, text: str) -> None:
    assert not is_template(text)
    assert wildcards.expand(text, 0) == text
    assert wildcards.expand(f"{{x|x}} {text} {{y|y}}", 0) == f"x {text} y" or text.count("{") > text.count("}")


@pytest.mark.parametrize(
    ("template", "said", "hint"),
    [
        ("__color__", "no wildcard __color__", "did you mean __colour__?"),
        ("__../secret__", "no wildcard __../secret__", "--no-wildcards"),
        ("__loop__", "contains itself", "see"),
        ("__lost__", "no wildcard __nowhere__", "lists of words are"),
        ("{50%{|a}}", "is no wildcard", "--no-wildcards"),
        ("x" * 5000 + "{a|b}", "the limit is 4,000", ""),
    ],
)
def test_what_cannot_be_drawn(wildcards: Wildcards, template: str, said: str, hint: str) -> None:
    with pytest.raises(UsageError, match="^.*" + said.replace(".", r"\.")) as raised:
        wildcards.expand(template, 0)
    assert hint in (raised.value.hint or "")


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    nowhere = Wildcards(tmp_path / "none")
    assert nowhere.names() == [] and nowhere.expand("{a|a}", 1) == "a"


def test_each_picture_has_words_of_its_own(wildcards: Wildcards) -> None:
    wish = Wish(prompt="{a|b|c|d|e|f|g|h} x", seeds=("5",), num=3, wildcard_seed=9, steps=4)
    made = spread(wish, wildcards)
    assert [(one.seeds, one.wildcard_seed, one.num) for one in made] == [
        (("5",), 9, None), (("6",), 10, None), (("7",), 11, None)
    ]  # fmt: skip
    for one in made:
        assert one.template == wish.prompt and one.steps == 4 and one.wildcard_seed is not None
        assert one.prompt == wildcards.expand(wish.prompt or "", one.wildcard_seed)
    for plain in (Wish(prompt="a fish", num=3), Wish(prompt="{a|b}", wildcards=False)):
        assert spread(plain, wildcards) == [plain]
    with pytest.raises(UsageError, match="--wildcard-seed -1 is outside"):
        spread(Wish(prompt="{a|b}", wildcard_seed=-1), wildcards)
