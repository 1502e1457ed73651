"""A set of prompts as a file, split, put in order and checked."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest

from backend.errors import FileError, UsageError
from prompts.taxonomies import load_taxonomy
from train.rl.prompts.checks import Rules, check, stats
from train.rl.prompts.grammar import global_rubric
from train.rl.prompts.near import Texts, shingles
from train.rl.prompts.prompt_set import Prompt, PromptSet, Rubric, read, write


def rubrics(*texts: str) -> tuple[Rubric, ...]:
    return (*(Rubric(kind="item", text=text) for text in texts), global_rubric())


def prompt(number: int, category: str = "animal", *, sensitive: bool = False, each: int = 2) -> Prompt:
    """Prompt `number`; `each` prompts share an item."""
    return Prompt(
        id=f"{category}.{number}",
        prompt=f"a {category} of the number {number} stands alone on hill {number * 7}",
        category=category,
        item=f"item {number // each}",
        rubrics=rubrics("Is there a hill?", "Is there an animal?"),
        sensitive=sensitive,
    )


def many() -> PromptSet:
    rows = [("animal", 60), ("human", 90), ("text", 50)]
    return PromptSet(tuple(prompt(n, name, sensitive=n % 10 == 0) for name, size in rows for n in range(size)))


# ------------------------------------------------------------------------------------------------------------- the file


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    full = dataclasses.replace(prompt(1), subcategory="birds", dimensions=("count",), writer="grammar 1", prompt='"ö"')
    written = PromptSet((full, prompt(2)))
    write(tmp_path / "p.jsonl", written)
    assert read(tmp_path / "p.jsonl") == written
    (tmp_path / "q.jsonl").write_bytes(b"\xef\xbb\xbf\n" + (tmp_path / "p.jsonl").read_bytes() + b"\n\n")
    assert read(tmp_path / "q.jsonl") == written


GOOD = {"id": "a", "prompt": "a fox", "category": "animal", "item": "fox", "rubrics": []}


def changed(**values: object) -> str:
    return json.dumps({**GOOD, **values})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "no JSON"),
        ("[1]", "a prompt is a JSON object"),
        (changed(colour="red"), "unknown key 'colour'"),
        (json.dumps({key: GOOD[key] for key in GOOD if key != "rubrics"}), "rubrics is missing"),
        (json.dumps({key: GOOD[key] for key in GOOD if key != "prompt"}), "prompt is missing"),
        (changed(prompt=3), "prompt is 3, not a text"),
        (changed(id=" "), "the id is empty"),
        (changed(sensitive="no"), "sensitive is 'no', not true or false"),
        (changed(dimensions="count"), "dimensions is 'count', not a list of texts"),
        (changed(dimensions=[1]), "not a list of texts"),
        (changed(rubrics="Is it?"), "rubrics is 'Is it?', not a list"),
        (changed(rubrics=["Is it?"]), "the rubric 'Is it?' is not of the form"),
        (changed(rubrics=[{"kind": "item", "text": 1}]), "is not of the form"),
        (changed(rubrics=[{"kind": "taste", "text": "Is it?"}]), "unknown kind of rubric 'taste'"),
        (changed(id="first"), "line 1 has the id 'first' too"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(f"{changed(id='first')}\n\n{line}\n", "utf-8")
    with pytest.raises(FileError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}, line 3: ") and message in str(caught.value)


def test_a_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="cannot read"):
        read(tmp_path / "missing.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(FileError, match="holds no prompt"):
        read(tmp_path / "empty.jsonl")
    (tmp_path / "picture.jsonl").write_bytes(b"\x89PNG\xff")
    with pytest.raises(FileError, match="is not UTF-8"):
        read(tmp_path / "picture.jsonl")
    with pytest.raises(UsageError, match="two prompts"):
        PromptSet((prompt(1), prompt(1)))


def test_the_fingerprint_knows_every_word_and_no_order() -> None:
    whole = many()
    assert PromptSet(whole.prompts[::-1]).fingerprint == whole.fingerprint
    for field, value in (("prompt", "x"), ("rubrics", ()), ("sensitive", True), ("dimensions", ("count",))):
        other = dataclasses.replace(whole.prompts[5], **{field: value})
        assert PromptSet((*whole.prompts[:5], other, *whole.prompts[6:])).fingerprint != whole.fingerprint


# ----------------------------------------------------------------------------------------------------- split and order


def test_a_split_is_by_item_and_even_over_categories() -> None:
    whole = many()
    train, out = whole.split(0.2, seed=3)
    assert Counter(p.id for p in (*train.prompts, *out.prompts)) == Counter(p.id for p in whole.prompts)
    assert {(p.category, p.item) for p in train.prompts}.isdisjoint((p.category, p.item) for p in out.prompts)
    assert Counter(p.category for p in out.prompts) == {"animal": 12, "human": 18, "text": 10}
    assert whole.split(0.2, seed=3) == (train, out) != whole.split(0.2, seed=4)
    assert PromptSet(whole.prompts[::-1]).split(0.2, seed=3)[1].fingerprint == out.fingerprint
    assert whole.split(0, seed=3)[0] == whole
    with pytest.raises(UsageError):
        whole.split(1.0, seed=3)


def test_a_new_item_moves_at_most_one_other() -> None:
    whole = many()
    before = {p.item for p in whole.split(0.2, 3)[1].prompts if p.category == "animal"}
    for number in range(1000, 1040, 2):
        after = PromptSet((*whole.prompts, prompt(number))).split(0.2, 3)[1]
        assert len({p.item for p in after.prompts if p.category == "animal"} ^ before) <= 2


def test_a_part_of_a_set_keeps_its_proportions_and_lies_in_a_larger_one() -> None:
    """What the paper's Table 1 compares: all, half, a quarter of the prompts; all but the text."""
    whole = many()
    half, quarter = whole.part(0.5, (), 3), whole.part(0.25, (), 3)
    assert Counter(p.category for p in half.prompts) == {"animal": 30, "human": 45, "text": 25}
    assert Counter(p.category for p in quarter.prompts) == {"animal": 15, "human": 22, "text": 12}
    assert set(quarter.prompts) < set(half.prompts) < set(whole.prompts) and whole.part(1.0, (), 3) == whole
    assert whole.part(0.5, (), 4) != half
    without = whole.part(1.0, ("text",), 3)
    assert without.prompts == tuple(p for p in whole.prompts if p.category != "text")
    assert {p.category for p in whole.part(1e-6, (), 3).prompts} == {"animal", "human", "text"}
    with pytest.raises(UsageError, match="no prompt is of the category 'texts'"):
        whole.part(1.0, ("texts",), 3)
    with pytest.raises(UsageError, match="no prompt is left"):
        whole.part(1.0, ("text", "human", "animal"), 3)


def test_every_prompt_comes_once_before_any_comes_twice() -> None:
    whole = many()  # 200 prompts
    for groups in (48, 7, 200, 450):
        seen: Counter[str] = Counter()
        for epoch in range(12):
            chosen = whole.epoch(5, epoch, groups)
            assert len(chosen) == groups
            seen.update(p.id for p in chosen)
            counts = [seen[p.id] for p in whole.prompts]
            if groups <= len(whole.prompts):
                assert max(counts) - min(counts) <= 1, (groups, epoch)
    rounds = [[p.id for e in (2 * n, 2 * n + 1) for p in whole.epoch(5, e, 100)] for n in range(2)]
    assert rounds[0] != rounds[1] and sorted(rounds[0]) == sorted(rounds[1])


def test_an_epoch_is_a_function_of_its_arguments() -> None:
    whole = many()
    third = whole.epoch(5, 2, 48)
    for epoch in (7, 0, 2):
        again = whole.epoch(5, epoch, 48)
    assert again == third and PromptSet(whole.prompts[::-1]).epoch(5, 2, 48) == third
    assert whole.epoch(6, 2, 48) != third
    with pytest.raises(UsageError):
        PromptSet(()).epoch(5, 0, 48)
    with pytest.raises(UsageError):
        whole.epoch(5, 0, 0)


def test_sensitive_prompts_and_categories_are_spread_evenly() -> None:
    whole = many()  # a tenth is sensitive; 30, 45 and 25 % are of the three categories
    for epoch in range(20):
        chosen = whole.epoch(1, epoch, 40)
        assert abs(sum(p.sensitive for p in chosen) - 4) <= 2
        for category, share in (("animal", 0.30), ("human", 0.45), ("text", 0.25)):
            assert abs(sum(p.category == category for p in chosen) - 40 * share) <= 4
    # By chance alone the sensitive ones would leave these bounds: 40 draws of a tenth have a deviation of 1.7.
    inside = [whole.epoch(1, epoch, 40) for epoch in range(5)]
    assert sorted(sum(p.sensitive for p in chosen) for chosen in inside) == [4, 4, 4, 4, 4]


# ------------------------------------------------------------------------------------------------------------- checking


FINE = dataclasses.replace(
    prompt(1),
    prompt='a sign with the word "OPEN" over a door',
    rubrics=rubrics('Is "OPEN" there?', "Is there a door?"),
)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"prompt": " ?! "}, "the prompt is empty"),
        ({"prompt": "two words"}, "has 2 words, not 3 to 200"),
        ({"prompt": "word " * 201}, "has 201 words"),
        ({"rubrics": rubrics('Is "OPEN" there?')}, "1 rubrics, not 2 to 10"),
        ({"rubrics": rubrics('Is "OPEN" there?', *(f"Is there a door {n}?" for n in range(10)))}, "11 rubrics, not 2"),
        ({"rubrics": rubrics('Is "OPEN" there?', "There is a door.")}, "is no question"),
        ({"rubrics": rubrics('Is "OPEN" there?', "Where is the door?")}, "is no question"),
        ({"rubrics": rubrics('Is "OPEN" there?', "Is there " + "a very " * 20 + "old door?")}, "more than 40 words"),
        ({"rubrics": rubrics('Is "OPEN" there?', "Is there a door?", "is there a door ?")}, "there more than once"),
        ({"rubrics": rubrics('Is "OPEN" there?', "Is there a door?")[:-1]}, "global rubric is there 0 times"),
        ({"rubrics": (*rubrics('Is "OPEN" there?', "Is there a door?"), global_rubric())}, "is there 2 times"),
        ({"rubrics": rubrics("Is there a sign?", "Is there a door?")}, 'no rubric asks for "OPEN"'),
    ],
)
def test_each_fault_of_a_prompt_is_found_alone(change: dict[str, object], what: str) -> None:
    assert check(PromptSet((FINE,))) == []
    (found,) = check(PromptSet((prompt(5), dataclasses.replace(FINE, **change))))  # type: ignore[arg-type]
    assert found.where == "prompt 2" and found.id == FINE.id and what in found.what


def test_repeats_are_found_and_named_by_their_line(tmp_path: Path) -> None:
    text = "a tall lighthouse stands on a rock in the evening sun while two gulls circle above the calm sea"
    rows = [
        text,
        "  A tall LIGHTHOUSE stands on a rock, in the evening sun while two gulls circle above the calm sea! ",
    ]
    rows += [text.replace("calm sea", "calm lake"), "a lighthouse on a rock"]
    every = tuple(dataclasses.replace(prompt(n), prompt=row) for n, row in enumerate(rows))
    write(tmp_path / "p.jsonl", PromptSet(every))
    same, near = check(read(tmp_path / "p.jsonl"))
    assert (same.where, same.what) == ("line 2", "the same prompt as line 1")
    assert near.where == "line 3" and near.what.startswith("nearly the prompt of line 1: 0.89 ")
    assert [found.where for found in check(PromptSet(every), Rules(near=0.95))] == ["prompt 2"]


def test_near_duplicates_are_those_of_comparing_all_pairs() -> None:
    """The short cut over rare shingles against the plain definition, on texts of 14 words that differ in a few."""
    base = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen".split()
    rows = [" ".join([*base[:n], f"w{n}", *base[n + 1 :]]) for n in range(14)] + [" ".join(base)]
    rows += [" ".join("x" + w if k in (a, b) else w for k, w in enumerate(base)) for a, b in combinations(range(9), 2)]
    for bound in (0.4, 0.75, 1.0):
        texts = Texts(bound)
        hits = 0
        for number, row in enumerate(rows):
            alike = [len(shingles(row) & shingles(o)) / len(shingles(row) | shingles(o)) for o in rows[:number]]
            best = max(alike, default=0.0)
            expected = (alike.index(best), best) if best >= bound else None
            assert texts.nearest(row) == expected
            hits += expected is not None
            texts.add(row)
        assert bound == 1.0 or 0 < hits < len(rows)


def test_stats_stand_beside_the_targets() -> None:
    taxonomy = load_taxonomy()
    every = (*many().prompts, dataclasses.replace(prompt(999, "weather"), dimensions=("count", "color"), writer="m"))
    found = stats(PromptSet(every), taxonomy)
    assert (found.prompts, found.items, found.sensitive, found.paper_prompts) == (201, 101, 20, 8406)
    rows = {row.category: (row.prompts, round(row.share, 2), row.target) for row in found.shares}
    assert rows["human"] == (90, 44.78, 16) and rows["food"] == (0, 0.0, 9) and rows["weather"] == (1, 0.5, None)
    assert found.dimensions == {"count": 1, "color": 1} and found.drawn == {0: 200, 2: 1} and found.rubrics == {2: 201}
    assert found.writers == {"not said": 200, "m": 1} and found.rubric_kinds == {"item": 402, "global": 201}
    text = "\n".join(found.lines())
    assert taxonomy.share_source in text and "44.8 %   target 16 %" in text and "target none" in text
