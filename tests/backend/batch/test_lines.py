"""Files of prompts and their journal. Trusted because every accepted line is spelled out as the wish that it means."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.batch.journal import Journal, journal_file, remaining
from backend.batch.lines import KEYS, read_lines
from backend.errors import UsageError
from backend.picture.outputs import OutputPlan
from backend.types import ImageFormat, Sampler
from backend.wish import Wish
from tests.properties import steady

BASE = Wish(steps=8, negative_prompt="fog", ar="1:1", wildcard_seed=3)


def test_one_prompt_a_line() -> None:
    lines = read_lines("\n# remark\na red fish\n  a {x} # b  \n", "p.txt", BASE)
    assert [(line.number, line.where) for line in lines] == [(3, "p.txt line 3"), (4, "p.txt line 4")]
    assert lines[0].wish == Wish(prompt="a red fish", steps=8, negative_prompt="fog", ar="1:1", wildcard_seed=3)
    assert lines[1].wish.prompt == "a {x} # b"


def test_json_lines_override() -> None:
    text = (
        '{"prompt": "a", "seeds": [1, "5..7"], "steps": 2, "guidance": 3}\n'
        '{"prompt": "b", "seeds": 4, "size": "64x32", "sampler": "dpmpp_2m", "loras": ["sky=0.5"], '
        '"wildcard_seed": 1}\n'
        '{"prompt": "c", "negative_prompt": null}\n'
    )
    one, two, three = (line.wish for line in read_lines(text, "p.jsonl", BASE))
    assert (one.seeds, one.steps, one.guidance, one.ar) == (("1", "5..7"), 2, 3.0, "1:1")
    assert (two.seeds, two.size, two.ar, two.sampler) == (("4",), "64x32", None, Sampler.dpmpp_2m)
    assert (two.loras, two.wildcard_seed, two.steps) == (("sky=0.5",), 1, 8)
    assert (three.negative_prompt, three.wildcard_seed) == ("fog", 3)
    assert read_lines('{"prompt": "a"}', "stdin", Wish())[0].wish.prompt == "a"
    assert read_lines('{"steps": 3}', "p.jsonl", Wish(prompt="x"))[0].wish == Wish(prompt="x", steps=3)


@pytest.mark.parametrize(
    ("text", "said", "hint"),
    [
        ('{"prompt": "a", "seed": 1}', "p.jsonl line 1: unknown key 'seed'", "did you mean seeds?"),
        ('{"prompt": "a", "expander": 1}', "unknown key 'expander'", ""),
        ('{"prompt": "a", "steps": "many"}', 'steps = "many" does not fit', "a whole number"),
        ('{"prompt": "a", "steps": true}', "steps = true does not fit", "a whole number"),
        ('{"prompt": ["a"]}', "does not fit", "a text"),
        ('{"prompt": "a", "guidance": NaN}', "line 1 holds NaN, which is no number", ""),
        ('{"prompt": "a", "sampler": "heun"}', "does not fit", "one of euler, dpmpp_2m"),
        ('{"prompt": "a", "seeds": [[1]]}', "does not fit", "a list of a text"),
        ("[1]", "line 1 is no JSON object", "write"),
        ("a fish", "line 1 is no JSON", ""),
        ("[" * 5000, "line 1 is nested too deeply", ""),
        ('{"steps": 3}', "line 1 has no prompt", ""),
        ("# nothing\n\n", "holds no prompt", ""),
    ],
)
def test_what_is_refused(text: str, said: str, hint: str) -> None:
    with pytest.raises(UsageError) as raised:
        read_lines(text, "p.jsonl", Wish())
    assert said in str(raised.value) and hint in (raised.value.hint or "")
    assert "wildcard_seed" in KEYS and "template" not in KEYS


def test_keys_tell_what_is_asked_apart_from_how_many_and_where() -> None:
    def keys(text: str, base: Wish) -> list[str]:
        return [line.key for line in read_lines(text, "p.txt", base)]

    first = keys("a\nb\na", Wish(steps=2))
    assert len(set(first)) == 3 and keys("x\nb\na\na", Wish(steps=2))[1:] == [first[1], first[0], first[2]]
    assert keys("a", Wish(steps=2, num=5, seeds=("1",), output="there/", device="cpu")) == first[:1]
    assert keys("a", Wish(steps=3)) != first[:1] and keys("a", Wish(steps=2, model="lens")) != first[:1]


@steady()
@given(st.lists(st.integers(0, 3), max_size=6), st.lists(st.integers(0, 3), max_size=6))
def test_what_remains(seeds: list[int], done: list[int]) -> None:
    left = remaining(seeds, done, drawn=False)
    for seed in set(seeds):
        assert sum(seeds[k] == seed for k in left) == max(0, seeds.count(seed) - done.count(seed))
    assert len(remaining(seeds, done, drawn=True)) == max(0, len(seeds) - len(done))


def test_a_journal_goes_on_and_survives_a_cut(tmp_path: Path) -> None:
    plan = OutputPlan(template=f"{tmp_path}/out/{{date}}/{{slug}}", suffix=".png", format=ImageFormat.png)
    path = journal_file(plan, "some/list.jsonl")
    assert path == tmp_path / "out" / ".lens-list.jsonl"
    pictures = [tmp_path / f"{k}.png" for k in range(3)]
    for picture in pictures:
        picture.touch()
    journal = Journal(path, proceed=False)
    for seed, picture in enumerate(pictures):
        journal.add("k", seed, picture)
    pictures[1].unlink()
    with path.open("a") as file:
        file.write('null\n{"key": "k", "seed": "x"}\n{"key": "k", "se')
    assert Journal(path, proceed=True).seeds("k") == [0, 2] and Journal(path, proceed=True).seeds("other") == []
    assert Journal(path, proceed=False).seeds("k") == []
    anew = Journal(path, proceed=False)
    anew.add("k", 9, pictures[0])
    assert Journal(path, proceed=True).seeds("k") == [9]
