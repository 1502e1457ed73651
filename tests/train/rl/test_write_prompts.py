"""Draws, the offline grammar, and a writer model behind a scripted question: kill, resume, budget, bad answers."""

from __future__ import annotations

import hashlib
import json
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from backend.errors import FileError, NetworkError, UsageError
from prompts.taxonomies import Taxonomy, load_taxonomy
from train.rl.prompts import writer
from train.rl.prompts.checks import Rules, check
from train.rl.prompts.expand import ExpandSettings, Expansion, expand
from train.rl.prompts.grammar import Draws, compose
from train.rl.prompts.journal import Journal
from train.rl.prompts.writer import Writer

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def taxonomy() -> Taxonomy:
    return load_taxonomy()


# ---------------------------------------------------------------------------------------------------------------- draws


def test_a_draw_is_a_function_of_seed_and_number(taxonomy: Taxonomy) -> None:
    forth, back, other = Draws(taxonomy, 7), Draws(taxonomy, 7), Draws(taxonomy, 8)
    numbers = [0, 1, 99, 100, 2500, 8405]
    assert [forth.draw(k) for k in numbers] == [back.draw(k) for k in numbers[::-1]][::-1]
    assert [forth.draw(k).item for k in range(20)] != [other.draw(k).item for k in range(20)]


def test_draws_keep_the_shares_and_leave_no_item_out(taxonomy: Taxonomy) -> None:
    several = Draws(taxonomy, 3)
    draws = [several.draw(k) for k in range(2600)]
    for start in (0, 100, 2500):
        counts = Counter(draw.category.name for draw in draws[start : start + 100])
        assert counts == {category.name: category.share for category in taxonomy.categories}
    for category in taxonomy.categories:
        size = sum(len(sub.items) for sub in category.subcategories)
        items = [draw.item for draw in draws if draw.category is category]
        for turn in range(0, len(items), size):  # each item once before any comes twice
            assert len(set(items[turn : turn + size])) == len(items[turn : turn + size])
        assert all(draw.item in draw.subcategory.items for draw in draws if draw.category is category)
    assert len({draw.id for draw in draws}) == len(draws)


def test_one_to_four_dimensions_that_fit_and_do_not_clash(taxonomy: Taxonomy) -> None:
    draws = Draws(taxonomy, 11)
    many: Counter[int] = Counter()
    named: Counter[str] = Counter()
    for k in range(3000):
        draw = draws.draw(k)
        many[len(draw.dimensions)] += 1
        named.update(dimension.name for dimension in draw.dimensions)
        settled = [what for way in draw.ways for what in way.settles]
        assert len(settled) == len(set(settled)), draw
        for dimension, way in zip(draw.dimensions, draw.ways, strict=True):
            assert way in dimension.ways and draw.subcategory.kind in way.fits
    assert sorted(many) == [1, 2, 3, 4]
    assert all(
        abs(count - 750) < 5 * 24 for count in many.values()
    )  # 24: standard deviation of 3000 draws of a quarter
    assert all(abs(count - 1500) < 5 * 28 for count in named.values())  # five dimensions, two and a half a draw


# -------------------------------------------------------------------------------------------------------------- grammar


def test_a_composition_by_hand(taxonomy: Taxonomy) -> None:
    """Each rubric can be read off the sentence that it checks, and every part of the draw is in the prompt."""
    draws = Draws(taxonomy, 0)
    for k in range(400):
        draw = draws.draw(k)
        made = compose(draw, taxonomy, 0)
        assert made == compose(draws.draw(k), taxonomy, 0)
        assert made.writer.startswith("grammar") and made.id == draw.id
        assert made.dimensions == tuple(dimension.name for dimension in draw.dimensions)
        assert made.sensitive is draw.subcategory.sensitive and made.item == draw.item
        assert "{" not in made.prompt and not re.search(r"\s\s|\.\.|\ban? an?\b", made.prompt), made.prompt
        kinds = {rubric.kind for rubric in made.rubrics}
        assert set(made.dimensions) | {"item", "global"} <= kinds
        assert ("text" in kinds) is (draw.subcategory.kind == "words")
        for quoted in re.findall(r'"[^"]+"', draw.item):
            assert quoted in made.prompt
        assert 2 <= len(made.rubrics) - 1 <= 10
        numbers = "two|three|four|five|six|seven"
        for said in re.findall(rf"[Ee]xactly ({numbers})", made.prompt):
            assert any(f"exactly {said}" in rubric.text for rubric in made.rubrics), made


def test_the_offline_set_has_no_fault(taxonomy: Taxonomy) -> None:
    made = expand(taxonomy, ExpandSettings(to=1200, seed=5))
    assert len(made.prompts.prompts) == 1200 and made.stopped is None and made.asked == 0
    assert check(made.prompts) == []
    assert expand(taxonomy, ExpandSettings(to=300, seed=5)).prompts.prompts == made.prompts.prompts[:300]
    assert {prompt.writer for prompt in made.prompts.prompts} == {"grammar 1"}


def test_repeats_are_left_out_and_a_small_taxonomy_runs_dry(taxonomy: Taxonomy) -> None:
    made = expand(taxonomy, ExpandSettings(to=40, draws_a_prompt=2, rules=Rules(near=0.05)))
    assert made.stopped == "80 draws gave no more"
    assert len(made.prompts.prompts) + len(made.dropped) == 80
    assert {drop.why for drop in made.dropped} == {"nearly an earlier prompt"}
    assert check(made.prompts, Rules(near=0.05)) == []


# -------------------------------------------------------------------------------------------------- a model that writes


def obedient(messages: list[dict[str, str]]) -> str:
    """What a model does that follows its instructions, read off the question alone."""
    asked = messages[1]["content"]
    if asked.startswith("Item: "):
        item = asked.splitlines()[0].removeprefix("Item: ")
        dimensions = re.findall(r"^- ([A-Z][\w ]+) \(", asked, re.MULTILINE)
        return f"A picture of one {item}, with much care for {', '.join(dimensions)} and for {words_of(asked)} as well."
    kinds = ["item", "attribute", "spatial", "count", "interaction", "color", "text", "item", "count", "color"]
    quoted = " ".join(re.findall(r'"[^"]+"', asked))
    rows = [{"kind": kind, "question": f"Is part {n} of {quoted or 'it'} there?"} for n, kind in enumerate(kinds)]
    return f"Here they are:\n```json\n{json.dumps(rows)}\n```"


def words_of(text: str) -> str:
    digest = hashlib.sha256(text.encode()).hexdigest()
    return " ".join(digest[i : i + 4] for i in range(0, 32, 4))  # words of its own, so that no two are alike


class Scripted:
    """Counts what it is asked; `spoil` may put another answer in place of the obedient one."""

    def __init__(
        self, spoil: Callable[[list[dict[str, str]], int], str | None] = lambda messages, number: None
    ) -> None:
        self.asked: list[str] = []
        self._spoil = spoil
        self._lock = threading.Lock()

    def __call__(self, messages: list[dict[str, str]], /) -> str:
        with self._lock:
            self.asked.append(json.dumps(messages))
            number = len(self.asked)
        said = self._spoil(messages, number)
        return obedient(messages) if said is None else said


def run(taxonomy: Taxonomy, folder: Path, ask: Scripted, **others: int) -> Expansion:
    settings = replace(ExpandSettings(to=12, seed=2, at_once=1), **others)
    writer = Writer(name="scribe", ask=ask, journal=folder / "answers.jsonl")
    return expand(taxonomy, settings, writer)


def test_a_model_writes_prompt_and_ten_rubrics(taxonomy: Taxonomy, tmp_path: Path) -> None:
    ask = Scripted()
    made = run(taxonomy, tmp_path, ask)
    assert len(made.prompts.prompts) == 12 and made.asked == len(ask.asked) == 24 and made.stopped is None
    assert check(made.prompts) == []
    for prompt in made.prompts.prompts:
        assert re.fullmatch(r"scribe [0-9a-f]{8} [0-9a-f]{8}", prompt.writer)
        assert [rubric.kind for rubric in prompt.rubrics].count("global") == 1 and len(prompt.rubrics) == 11
        assert prompt.item in prompt.prompt


def test_a_second_run_asks_nothing_and_says_the_same(taxonomy: Taxonomy, tmp_path: Path) -> None:
    first = run(taxonomy, tmp_path, Scripted())
    again = Scripted()
    assert run(taxonomy, tmp_path, again).prompts == first.prompts and again.asked == []
    more = Scripted()
    assert run(taxonomy, tmp_path, more, to=15).prompts.prompts[:12] == first.prompts.prompts and len(more.asked) == 6
    (tmp_path / "other").mkdir()
    assert run(taxonomy, tmp_path / "other", Scripted(), at_once=6).prompts == first.prompts


def test_another_model_is_asked_anew(taxonomy: Taxonomy, tmp_path: Path) -> None:
    run(taxonomy, tmp_path, Scripted(), to=2)
    ask = Scripted()
    writer = Writer(name="rival", ask=ask, journal=tmp_path / "answers.jsonl")
    expand(taxonomy, ExpandSettings(to=2, seed=2), writer)
    assert len(ask.asked) == 4


def test_a_budget_stops_it_and_the_next_run_goes_on(taxonomy: Taxonomy, tmp_path: Path) -> None:
    asked: list[str] = []
    for go in range(5):
        ask = Scripted()
        made = run(taxonomy, tmp_path, ask, calls=5)
        asked += ask.asked
        assert len(ask.asked) == made.asked == (5 if go < 4 else 4)
        assert made.stopped == ("the budget of 5 calls is spent" if go < 4 else None)
    assert len(asked) == len(set(asked)) == 24
    whole = run(taxonomy, tmp_path / "whole", Scripted())
    assert run(taxonomy, tmp_path, Scripted(), calls=0).prompts == whole.prompts and len(whole.prompts.prompts) == 12


def test_an_endpoint_that_fails_loses_nothing(taxonomy: Taxonomy, tmp_path: Path) -> None:
    def fail(messages: list[dict[str, str]], number: int) -> str | None:
        if number == 8:
            raise NetworkError("gone")
        return None

    broken = Scripted(fail)
    with pytest.raises(NetworkError):
        run(taxonomy, tmp_path, broken)
    rest = Scripted()
    made = run(taxonomy, tmp_path, rest)
    assert len(broken.asked) - 1 + len(rest.asked) == 24
    assert made.prompts == run(taxonomy, tmp_path / "whole", Scripted()).prompts


KILLED = """
import os, signal, sys
from pathlib import Path
from prompts.taxonomies import load_taxonomy
from tests.train.rl.test_write_prompts import Scripted, run

def kill(messages, number):
    if number == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    return None

run(load_taxonomy(), Path(sys.argv[1]), Scripted(kill))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_a_run_that_was_killed_goes_on(taxonomy: Taxonomy, tmp_path: Path) -> None:
    for at in (7, 4):  # the seventh question of the first process, the fourth of the second
        died = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), str(at)], cwd=ROOT, timeout=120)
        assert died.returncode == -signal.SIGKILL
    with (tmp_path / "answers.jsonl").open("ab") as file:
        file.write(b'{"key": "torn')  # what a crash within a write leaves
    ask = Scripted()
    made = run(taxonomy, tmp_path, ask)
    assert len(ask.asked) == 24 - 6 - 3
    assert made.prompts == run(taxonomy, tmp_path / "whole", Scripted()).prompts
    again = Scripted()
    assert run(taxonomy, tmp_path, again).prompts == made.prompts and again.asked == []


def first_of(step: str, answer: str) -> Callable[[list[dict[str, str]], int], str | None]:
    """`answer` in place of the first attempt at every prompt's text or rubrics."""
    return lambda messages, _: (
        answer if len(messages) == 2 and messages[1]["content"].startswith("Item: ") is (step == "text") else None
    )


TEN = [{"kind": "count", "question": f"Is there a thing of number {n}?"} for n in range(10)]


@pytest.mark.parametrize(
    ("step", "answer", "lacks"),
    [
        ("text", "", "the prompt is empty"),
        ("text", "I'm sorry, but I can't help with that.", "it declines"),
        ("text", "word " * 300, "the prompt has 300 words"),
        ("text", "One line of it\nand another line", "it is not one paragraph"),
        ("text", "A picture of nothing that was ever asked for", "it does not name|it lacks the words"),
        ("rubrics", "They look fine to me.", "there is no JSON array"),
        ("rubrics", "[{]", "the array is no JSON"),
        ("rubrics", json.dumps([["item", "Is it?"]]), "an entry needs a kind"),
        ("rubrics", json.dumps([{"kind": "global", "question": "Is it?"}]), "an entry needs a kind"),
        ("rubrics", json.dumps(TEN[:9]), "9 questions, not 10"),
        ("rubrics", json.dumps([*TEN, *TEN[:1]]), "11 questions, not 10"),
        (
            "rubrics",
            json.dumps([{"kind": "text", "question": f"Is {n}?"} for n in range(10)]),
            "no question of the kind",
        ),
    ],
)
def test_a_bad_answer_is_told_and_asked_again(
    taxonomy: Taxonomy, tmp_path: Path, step: str, answer: str, lacks: str
) -> None:
    ask = Scripted(first_of(step, answer))
    made = run(taxonomy, tmp_path, ask, to=3)
    assert len(made.prompts.prompts) == 3 and made.dropped == () and check(made.prompts) == []
    again = [json.loads(said)[-1]["content"] for said in ask.asked if len(json.loads(said)) == 4]
    assert len(again) == 3 and len(ask.asked) == 9
    assert all(re.search(f"This cannot be used: .*(?:{lacks})", said) for said in again)


@pytest.mark.parametrize(
    ("rows", "lacks"),
    [
        ([{**row, "question": "Is there a fox?"} for row in TEN], "is there more than once"),
        ([*TEN[:9], {"kind": "item", "question": "What is it?"}], "is no question"),
        ([*TEN[:9], {"kind": "item", "question": "It is there."}], "is no question"),
    ],
)
def test_bad_rubrics_end_in_a_dropped_draw(taxonomy: Taxonomy, tmp_path: Path, rows: object, lacks: str) -> None:
    kinds = [{"kind": name, "question": ""} for name in ("attribute", "spatial", "interaction", "color")]
    answer = json.dumps([{**row, "kind": kinds[n]["kind"] if n < 4 else row["kind"]} for n, row in enumerate(rows)])  # type: ignore[arg-type, call-overload]
    ask = Scripted(lambda messages, _: None if messages[1]["content"].startswith("Item: ") else answer)
    made = run(taxonomy, tmp_path, ask, to=2, attempts=2)
    assert made.prompts.prompts == () and made.stopped == "8 draws gave no more" and len(made.dropped) == 8
    assert all(lacks in drop.why for drop in made.dropped) and len(ask.asked) == 8 * 3


def test_quoted_words_have_to_be_there_and_no_others(taxonomy: Taxonomy, tmp_path: Path) -> None:
    draws = Draws(taxonomy, 2)
    quoted = next(draw for draw in map(draws.draw, range(100)) if draw.subcategory.kind == "words")
    plain = next(draw for draw in map(draws.draw, range(100)) if draw.subcategory.kind == "thing")
    flaw = writer._flaw_of_text
    (words,) = re.findall(r'"[^"]+"', quoted.item)
    assert flaw(f"One fine {quoted.item} in a street", quoted, Rules()) is None
    other = quoted.item.replace(words, f'"{words[1:-1]}x"')
    assert flaw(f"One fine {other} in a street", quoted, Rules()) == f"it lacks the words {words}"
    assert flaw(f"One fine {plain.item} in a street", plain, Rules()) is None
    assert flaw(f'One fine {plain.item} named "Joy" here', plain, Rules()) == (
        "it asks for words in the picture, and none were given"
    )


def test_a_journal_that_cannot_be_kept(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="cannot be read"):
        Journal(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError):
        Journal(tmp_path / "file" / "answers.jsonl").add("a", "b")


@pytest.mark.parametrize("field", ["to", "attempts", "at_once", "draws_a_prompt"])
def test_settings_refuse_nothing(field: str) -> None:
    with pytest.raises(UsageError, match=field):
        ExpandSettings(**{field: 0})  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="calls"):
        ExpandSettings(calls=-1)
