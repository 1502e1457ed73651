"""The grammar's small English against phrases written out by hand."""

from __future__ import annotations

import pytest

from prompts.taxonomies import load_taxonomy
from train.rl.prompts.wording import article, head, plural


@pytest.mark.parametrize(
    ("one", "many"),
    [
        ("basket weaver from the Andes", "basket weavers from the Andes"),
        ("red fox in snow", "red foxes in snow"),
        ("bowl of pho", "bowls of pho"),
        ("old man cactus", "old man cacti"),
        ("young man", "young men"),
        ("clownfish in an anemone", "clownfish in an anemone"),
        ("firefly at dusk", "fireflies at dusk"),
        ("donkey with a pack", "donkeys with a pack"),
        ("timber wolf", "timber wolves"),
        ("oak leaf", "oak leaves"),
        ("yo-yo", "yo-yos"),
        ("white goose", "white geese"),
        ("sandwich", "sandwiches"),
        ("French horn", "French horns"),
        ("human", "humans"),
        ("potato", "potatoes"),
        ("grand piano", "grand pianos"),
        ("spinning wheel", "spinning wheels"),
        ("beetroot cut in half", "beetroots cut in half"),
        ("paper dragon come to life", "paper dragons come to life"),
    ],
)
def test_plural(one: str, many: str) -> None:
    assert plural(one) == many


@pytest.mark.parametrize(
    ("phrase", "said"),
    [
        ("owl", "an owl"),
        ("hourglass", "an hourglass"),
        ("horse", "a horse"),
        ("unicorn", "a unicorn"),
        ("unrolling fern frond", "an unrolling fern frond"),
        ("ukulele", "a ukulele"),
        ("European robin", "a European robin"),
        ("X-ray film", "an X-ray film"),
        ("T-shirt", "a T-shirt"),
        ("umbrella", "an umbrella"),
        ("Ottoman", "an Ottoman"),
        ("one-eyed cat", "a one-eyed cat"),
        ("honesty seed pod", "an honesty seed pod"),
        ("éclair", "an éclair"),
    ],
)
def test_article(phrase: str, said: str) -> None:
    assert article(phrase) == said


def test_head() -> None:
    assert head("bowl of pho with lime") == "bowl of pho" and head("sitar") == "sitar"
    assert head('bakery sign with the words "FRESH BREAD OF THE DAY"') == "bakery sign"


def test_no_item_of_the_taxonomy_is_its_own_plural_but_the_known_few() -> None:
    kinds = ("person", "creature", "thing", "plant", "food")
    items = [item for _, leaf in load_taxonomy().leaves() if leaf.kind in kinds for item in leaf.items]
    heads = {head(item) for item in items if plural(item) == item}
    known = ("fish", "moose", "bison", "elk", "carp", "salmon", "shrimp", "samurai", "banh mi", "deer", "sheep")
    assert heads and all(name.endswith(known) for name in heads)
