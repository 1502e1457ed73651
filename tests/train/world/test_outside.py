"""Requests from outside the drawn world: what the reasoner is trained on must not be what it is measured on."""

from __future__ import annotations

import csv
import json
import random
from importlib.resources import files

from train.world.dialogues import rewrite_pair
from train.world.outside import RULES, STRANGERS, any_script, forbidden, harmless
from train.world.scene_text import around
from train.world.scenes import sample_scene
from train.world.things import KINDS


def _probes(name: str) -> set[str]:
    text = (files("prompts") / "probes" / name).read_text(encoding="utf-8")
    return {row["request"].lower() for row in csv.DictReader(text.splitlines(), delimiter="\t")}


def test_no_probe_is_a_training_request() -> None:
    probes = _probes("allow.tsv") | _probes("deny.tsv")
    assert len(probes) >= 80
    rng = random.Random(0)
    seen = {harmless(rng).lower() for _ in range(5000)} | {forbidden(rng)[1].lower() for _ in range(5000)}
    assert not probes & seen


def test_every_rule_comes_up_and_harmless_requests_vary() -> None:
    rng = random.Random(1)
    assert {forbidden(rng)[0] for _ in range(400)} == set(RULES)
    assert len({harmless(rng) for _ in range(400)}) > 250


def test_strangers_are_none_of_this_world() -> None:
    own = {*KINDS, *(kind.plural for kind in KINDS.values()), "sign", "frame", "bubble"}
    assert not own & {*STRANGERS, *(noun + "s" for noun in STRANGERS)}


def test_a_harmless_request_is_kept_word_by_word() -> None:
    rng = random.Random(2)
    for _ in range(200):
        request = harmless(rng)
        assert request in around(request, sample_scene(rng), rng, frozenset({"background", "style"}))


def test_forbidden_requests_are_refused_and_others_are_not() -> None:
    """Over whole examples: the decision goes with the thought, and a refusal names a rule and draws nothing."""
    rng = random.Random(4)
    refused = 0
    for _ in range(600):
        _, _, thought, text = rewrite_pair(rng)
        data = json.loads(text)
        assert (data["decision"] == "refuse") == thought.startswith("This breaks the rule")
        assert (data["rule"] in RULES) == (data["decision"] == "refuse") == (not data["prompt"])
        refused += data["decision"] == "refuse"
    assert 20 < refused < 90  # 8 %


def test_letters_of_any_script_can_be_written_to_a_file() -> None:
    rng = random.Random(3)
    for _ in range(300):
        assert any_script(rng).encode("utf-8").decode("utf-8")
