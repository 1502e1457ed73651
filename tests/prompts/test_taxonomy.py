"""The taxonomy keeps its promises: its size, nothing twice, and every way can be said of its items."""

from __future__ import annotations

import re
import shutil
import string
from collections import Counter
from pathlib import Path

import pytest

import prompts
from prompts import PromptError
from prompts.taxonomies import KINDS, Taxonomy, load_taxonomy


@pytest.fixture(scope="module")
def taxonomy() -> Taxonomy:
    return load_taxonomy()


def bare(item: str) -> str:
    """An item as a reader tells it from others: small letters, endings of the plural off every word."""

    def stem(word: str) -> str:
        irregular = {"men": "man", "women": "woman", "children": "child", "people": "person", "geese": "goose"}
        return irregular.get(word) or re.sub(r"(?:es|s|e)$", "", re.sub(r"ies$", "y", word))

    return " ".join(stem(word) for word in re.findall(r"\w+", item.casefold().replace("\u2019s", "").replace("'s", "")))


def test_the_papers_ten_categories_and_five_dimensions_are_there(taxonomy: Taxonomy) -> None:
    assert [category.title for category in taxonomy.categories] == [
        "Human", "Object", "Animal", "Plant", "Scene", "Food", "Event", "Fictional World", "Text",
        "UI and Graphic Design",
    ]  # fmt: skip
    titles = [dimension.title for dimension in taxonomy.dimensions]
    assert titles == ["Attribute", "Spatial Relationship", "Count", "Interaction", "Color"]
    assert sum(category.share for category in taxonomy.categories) == 100 and taxonomy.prompts == 8406
    assert taxonomy.share_source and not taxonomy.shares_read_from_the_paper


def test_it_is_large_and_every_leaf_is_filled(taxonomy: Taxonomy) -> None:
    leaves = list(taxonomy.leaves())
    assert len(leaves) >= 120 and sum(len(leaf.items) for _, leaf in leaves) >= 1400
    for category, leaf in leaves:
        assert 12 <= len(leaf.items) <= 40, (category.name, leaf.name)
    for category in taxonomy.categories:
        assert len({leaf.title for leaf in category.subcategories}) == len(category.subcategories) >= 12


def test_no_item_is_there_twice(taxonomy: Taxonomy) -> None:
    whole = Counter(item.casefold() for _, leaf in taxonomy.leaves() for item in leaf.items)
    assert [item for item, times in whole.items() if times > 1] == []
    for category in taxonomy.categories:
        forms = Counter(bare(item) for leaf in category.subcategories for item in leaf.items)
        assert [form for form, times in forms.items() if times > 1] == [], category.name


def test_the_test_above_sees_plurals() -> None:
    for one, many in (("red fox", "Red foxes"), ("lily", "lilies"), ("old man", "old men"), ("rose", "roses")):
        assert bare(one) == bare(many)
    assert bare("glass") != bare("gla") and bare("grass snake") != bare("gras snake")


def test_items_are_written_for_the_grammar(taxonomy: Taxonomy) -> None:
    for category, leaf in taxonomy.leaves():
        for item in leaf.items:
            where = (category.name, leaf.name, item)
            assert not re.match(r"(?:an?|the|some|several|two|three)\s", item, re.IGNORECASE), where
            assert 2 <= len(item) <= 80 and not item.endswith("."), where
            assert (len(re.findall(r'"[^"]+"', item)) == 1 and item.count('"') == 2) == (leaf.kind == "words"), where
            if leaf.kind in ("person", "creature", "thing", "plant", "food"):
                assert not re.search(r"\b(?:its|her|his|their)\b", item), where  # it would not survive the plural


def test_sensitive_leaves_are_marked_and_few(taxonomy: Taxonomy) -> None:
    sensitive = {f"{category.name}/{leaf.name}" for category, leaf in taxonomy.leaves() if leaf.sensitive}
    assert {
        "human/medicine", "human/gender", "human/origins", "human/faith", "human/ability", "object/arms",
        "object/clinic", "object/sacred", "event/protest", "event/rites", "event/farewells", "event/disasters",
    } == sensitive  # fmt: skip
    items = sum(len(leaf.items) for _, leaf in taxonomy.leaves() if leaf.sensitive)
    assert items < 0.1 * sum(len(leaf.items) for _, leaf in taxonomy.leaves())


def test_every_dimension_has_ways_for_every_kind(taxonomy: Taxonomy) -> None:
    for dimension in taxonomy.dimensions:
        assert 15 <= len(dimension.ways) <= 20
        assert len({way.ask for way in dimension.ways}) == len(dimension.ways)
        for kind in KINDS:
            assert sum(kind in way.fits for way in dimension.ways) >= 3, (dimension.name, kind)


def test_every_check_stands_alone_and_is_answered_with_yes_or_no(taxonomy: Taxonomy) -> None:
    for way in (way for dimension in taxonomy.dimensions for way in dimension.ways):
        assert way.say or way.subject
        for check in way.checks:
            assert check.endswith("?") and check.split()[0] in ("Is", "Are", "Does", "Do", "Can"), check
            assert not re.search(r"\b(?:it|its|they|them|that|this)\b", check), check  # questions are asked one by one
        said = {slot for _, slot, _, _ in string.Formatter().parse(way.say + way.subject) if slot}
        asked = {slot for check in way.checks for _, slot, _, _ in string.Formatter().parse(check) if slot}
        assert asked - said <= {"the", "group", "words"}, way.ask  # nothing is asked that was not said


def test_slots_hold_different_entries(taxonomy: Taxonomy) -> None:
    for name, table in taxonomy.slots.items():
        for kind, entries in table.items():
            assert kind in KINDS and len(entries) == len(set(entries)) >= 2, (name, kind)


def test_the_rubric_texts_say_what_they_are() -> None:
    for name in ("write", "questions", "global"):
        text = prompts.rubric_text(name)
        assert text.name == name and text.purpose and text.version >= 1 and text.contract == "complete"
    assert prompts.rubric_text("global").body.count("?") == 1 and "\n" not in prompts.rubric_text("global").body
    assert all(f"- {title}:" in " ".join(prompts.rubric_text("write").body.split()) for title in ("Count", "Color"))
    with pytest.raises(PromptError, match="no rubric text 'nonsense'"):
        prompts.rubric_text("nonsense")


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("plant.toml", '"English oak"', '"Silver birch"', "plant.toml, trees: 'silver birch' is in plant.toml, trees"),
        ("plant.toml", '"English oak"', '"red fox in snow"', "plant.toml, trees: .* is in animal.toml, predators"),
        ("plant.toml", '"English oak"', '""', "plant.toml, trees: items holds ''"),
        ("plant.toml", '"English oak"', "7", "plant.toml, trees: items holds 7"),
        ("plant.toml", 'kind = "plant"', 'kind = "herb"', "unknown kind 'herb'"),
        ("plant.toml", 'title = "Trees"', 'titel = "Trees"', "plant.toml, trees: unknown key 'titel'"),
        ("plant.toml", 'title = "Trees"', "title = 3", "plant.toml, trees: title is 3"),
        ("plant.toml", 'title = "Plant"', 'title = "Plant', "no TOML"),
        ("shares.toml", "plant = 6", "plant = 7", "the shares make 101"),
        ("shares.toml", "plant = 6", "weed = 6", "cannot read .*weed.toml"),
        ("shares.toml", "prompts = 8406", 'prompts = "many"', "prompts is 'many'"),
        ("dimensions.toml", "{gaze}", "{glance}", "attribute, way 3: there is no slot 'glance' for a person"),
        ("dimensions.toml", 'fits = ["person"]', 'fits = ["people"]', "unknown kind 'people'"),
        ("dimensions.toml", "settles =", "decides =", "unknown key 'decides'"),
    ],
)
def test_a_fault_is_named_with_its_place(tmp_path: Path, file: str, old: str, new: str, message: str) -> None:
    folder = tmp_path / "taxonomy"
    shutil.copytree(prompts.FOLDER / "taxonomy", folder)
    text = (folder / file).read_text("utf-8")
    assert old in text
    (folder / file).write_text(text.replace(old, new, 1), "utf-8")
    with pytest.raises(PromptError, match=message):
        load_taxonomy(folder)


def test_shares_follow_the_files(taxonomy: Taxonomy) -> None:
    files = {path.stem for path in (prompts.FOLDER / "taxonomy").glob("*.toml")} - {"shares", "dimensions"}
    assert files == {category.name for category in taxonomy.categories}
