"""The prompts' loader, the shipped texts, and that Nano's text is the one its language model was trained on."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import prompts
from prompts import PromptError
from prompts.guidelines import load_guidelines


def write(path: Path, text: str) -> str:
    path.write_text(text, "utf-8")
    return str(path)


def test_every_shipped_prompt_says_what_it_is() -> None:
    assert prompts.names() == ("general", "geneval", "nano", "nano-first", "nano-searched", "oneig", "text")
    for name in prompts.names():
        prompt = prompts.load(f" {name} ")
        assert prompt.name == name and prompt.purpose and prompt.version >= 1
        assert prompt.contract == ("complete" if name.startswith("nano") else "decision")
        assert not prompt.body.startswith("---") and re.fullmatch(r"[0-9a-f]{64}", prompt.sha256)
    assert len({prompts.load(name).sha256 for name in prompts.names()}) == 7


def test_nanos_prompt_undoes_every_twist_and_adds_colours_alone() -> None:
    """Of the sentences that its reasoner's adapter was trained on; the other additions harm its pictures."""
    from train.world.requests import ADDING, UNDONE_BY

    body = prompts.load("nano").body
    said = {guideline.id for guideline in load_guidelines() if guideline.text in body}
    assert said == {*UNDONE_BY.values(), "quote", "colour"} and said & set(ADDING) == {"side", "colour"}
    assert prompts.compose(prompts.load("nano"), "complete", "json") == body


def test_the_policy_names_the_rules_nano_was_trained_on() -> None:
    from train.world.outside import RULES

    assert prompts.rule_names() == RULES
    for rule in prompts.rules():
        assert "Not this:" in rule.text, rule.name
    assert prompts.POLICY not in prompts.names()  # it is added to a system prompt, and is none


def test_composed_instructions_hold_text_policy_and_form() -> None:
    system = prompts.load("general")
    for form in ("json", "plain"):
        text = prompts.compose(system, "decision", form)
        assert text.startswith(system.body) and prompts.policy().body in text
        assert text.endswith(", ".join(prompts.rule_names()) + ".")
    examples = [line for line in prompts.answer_form("json").splitlines() if line.startswith("{")]
    assert [json.loads(line)["decision"] for line in examples] == ["rewrite", "refuse"]
    assert "REFUSED:" in prompts.answer_form("plain") and "{" not in prompts.answer_form("plain")
    with pytest.raises(PromptError):
        prompts.compose(system, "nonsense", "json")
    with pytest.raises(PromptError):
        prompts.answer_form("nonsense")


def test_a_file_with_and_without_front_matter(tmp_path: Path) -> None:
    mine = prompts.load(write(tmp_path / "mine.md", "---\nname: mine\n\nversion: 3\n---\n\nSay it.\r\nTwice.\n"))
    assert (mine.name, mine.contract, mine.version, mine.body) == ("mine", "decision", 3, "Say it.\nTwice.")
    plain = prompts.load(write(tmp_path / "plain.txt", "\ufeff\nSay it: --- once.\n"))
    assert (plain.name, plain.contract, plain.version, plain.body) == ("plain", None, 0, "Say it: --- once.")
    assert plain.sha256 == prompts.load(write(tmp_path / "other.txt", "Say it: --- once.")).sha256


def test_a_name_wins_over_a_file_and_a_path_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("general").write_text("mine")
    assert prompts.load("general").body != "mine" and prompts.load("./general").body == "mine"


def test_a_persons_own_folder_has_prompts_by_name(tmp_path: Path) -> None:
    for name in ("mine", "general", "No-Name", "two words"):
        write(tmp_path / f"{name}.md", f"the text of {name}")
    assert prompts.own_names(tmp_path) == ("general", "mine")  # others could not be typed, or lead elsewhere
    assert prompts.load("mine", tmp_path).body == "the text of mine"
    assert prompts.load("general", tmp_path).body == prompts.load("general").body  # the package's names win
    with pytest.raises(PromptError) as caught:
        prompts.load("mines", tmp_path)
    assert "did you mean 'mine'" in caught.value.hint
    with pytest.raises(PromptError):
        prompts.load("mine", tmp_path / "not there")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"---\nname: x\n---\n \n", "is empty"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"x" * 64_001, "longer than 64,000 bytes"),
        (b"---\nname: x\nwho knows\n---\ntext", "unknown line 'who knows'"),
        (b"---\nmodel: x\n---\ntext", "unknown line 'model: x'"),
        (b"---\ncontract: verbal\n---\ntext", "unknown contract 'verbal'"),
        (b"---\nversion: new\n---\ntext", "'new' is no whole number"),
    ],
)
def test_what_is_no_prompt_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.md"
    path.write_bytes(content)
    with pytest.raises(PromptError, match=message) as caught:
        prompts.load(str(path))
    assert caught.value.hint


def test_an_unknown_name_lists_the_known_ones(tmp_path: Path) -> None:
    for wrong, near in (("genral", "did you mean 'general'?"), ("", "known: "), (str(tmp_path), "known: ")):
        with pytest.raises(PromptError, match="no system prompt") as caught:
            prompts.load(wrong)
        assert near in caught.value.hint and all(name in caught.value.hint for name in prompts.names())


def test_the_probes_cover_every_rule_in_several_languages() -> None:
    allow = [probe for probe in prompts.probes() if probe.allowed]
    deny = [probe for probe in prompts.probes() if not probe.allowed]
    assert (len(allow), len(deny)) == (60, 40)
    for probes in (allow, deny):
        assert {probe.rule for probe in probes} == set(prompts.rule_names())
        assert len({probe.request for probe in probes}) == len(probes)
        assert len({probe.language for probe in probes}) >= 7
    assert {probe.request for probe in allow}.isdisjoint(probe.request for probe in deny)
