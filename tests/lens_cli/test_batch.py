"""`lens gen --prompts`, wildcards and contact sheets from the outside; the engine is a stand-in."""

from __future__ import annotations

import html.parser
import json
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote

import pytest

from backend.paths import wildcards_dir
from backend.picture.images import read_metadata
from tests import fake_engine
from tests.lens_cli.cli import Run, lens_inside, recorded

Lens = Callable[..., Run]


@pytest.fixture
def lens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Lens:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LENS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("LENS_GENERATE__STEPS", "1")
    monkeypatch.setenv("LENS_GENERATE__BASE", "128")
    return lambda *words: lens_inside(monkeypatch, capfd, *words)


def test_lines_in_one_load(lens: Lens, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[fake_engine.Engine] = []
    before = fake_engine.Engine.__init__

    def count(self: fake_engine.Engine, *, stores: object = None) -> None:
        made.append(self)
        before(self, stores=stores)

    monkeypatch.setattr(fake_engine.Engine, "__init__", count)
    Path("p.jsonl").write_text(
        '{"prompt": "a red fish", "seeds": [1, 2], "steps": 3}\n{"prompt": "a cat", "seeds": 7}\n'
    )
    run = lens("gen", "--prompts", "p.jsonl", "--guidance", "2", "-o", "out/{index}-{slug}.png")
    assert run.code == 0 and run.lines == ["out/0-a-red-fish.png", "out/1-a-red-fish.png", "out/2-a-cat.png"]
    assert len(made) == 1 and made[0].unloaded == 1
    wishes = [recorded(path) for path in run.lines]
    assert [(wish.seeds, wish.steps, wish.guidance) for wish in wishes] == [
        (("1",), 3, 2.0), (("2",), 3, 2.0), (("7",), 1, 2.0)
    ]  # fmt: skip


def test_one_prompt_that_fails_does_not_end_the_batch(lens: Lens) -> None:
    Path("p.txt").write_text("a fish\nan oom\na nan\na cat\n")
    run = lens("gen", "--prompts", "p.txt", "-s", "3", "-o", "out/", "--json")
    assert run.code == 8 and run.json["error"]["code"] == "partial_batch"
    assert "2 of 4 pictures failed: not enough memory" in run.json["error"]["message"]
    assert [(row["line"], row["prompt"]) for row in run.json["data"]["images"]] == [(1, "a fish"), (4, "a cat")]
    assert [(row["line"], row["code"]) for row in run.json["data"]["failed"]] == [
        (2, "out_of_memory"),
        (3, "non_finite"),
    ]
    Path("p.txt").write_text("oom 1\noom 2\n")
    assert lens("gen", "--prompts", "p.txt").code == 6


def test_continue_draws_what_is_missing(lens: Lens) -> None:
    Path("p.txt").write_text("a fish\na cat\n")
    words = ("gen", "--prompts", "p.txt", "-n", "2", "-o", "out/")
    first = lens(*words).lines
    Path(first[3]).unlink()
    again = lens(*words, "--continue")
    assert again.code == 0 and len(again.lines) == 1 and again.lines[0].startswith("out/a-cat-")
    assert "3 pictures are there already" in again.err
    assert lens(*words, "--continue").lines == []
    Path("p.txt").write_text("a dog\na cat\na fish\n")  # other places, and one more
    more = lens(*words, "--continue").lines
    assert [path[: len("out/a-dog")] for path in more] == ["out/a-dog"] * 2
    assert len(lens("gen", "--prompts", "p.txt", "-n", "3", "-o", "out/", "--continue").lines) == 3
    assert len(lens(*words).lines) == 6  # without the flag: all of it


def test_bad_lines_are_said_before_anything_is_drawn(lens: Lens) -> None:
    Path("p.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b", "step": 3}\n')
    run = lens("gen", "--prompts", "p.jsonl", "-o", "out/")
    assert (run.code, run.out) == (2, b"") and not Path("out").exists()
    assert run.err == "error: p.jsonl line 2: unknown key 'step'\nhint: did you mean steps?\n"
    for line, said in (('"steps": 0', "--steps 0 is outside"), ('"prompt": ""', "the prompt is empty")):
        Path("p.jsonl").write_text(f'{{"prompt": "a"}}\n{{"prompt": "b", {line}}}\n')
        run = lens("gen", "--prompts", "p.jsonl")
        assert run.code == 2 and run.err.startswith(f"error: p.jsonl line 2: {said}")
    Path("bytes.txt").write_bytes(b"\xff\xfe")
    for words, said in (
        (("--prompts", "absent.txt"), "cannot read absent.txt"),
        (("--prompts", "bytes.txt"), "is not UTF-8 text"),
        (("--prompts", "p.jsonl", "a fish"), "exclude each other"),
        (("a fish", "--continue"), "--continue goes on with a file"),
        (("--prompts", "p.jsonl", "-o", "-"), "-o -"),
    ):
        run = lens("gen", *words)
        assert run.code in (1, 2) and said in run.err.split("\n")[0], words


def test_wildcards_have_a_seed_of_their_own(lens: Lens) -> None:
    wildcards_dir().mkdir(parents=True)
    (wildcards_dir() / "animal.txt").write_text("\n".join(f"animal{k}" for k in range(50)))
    words = ("gen", "a {red|blue} __animal__", "-n", "3", "--wildcard-seed", "4", "--json")
    one, two = (lens(*words, "-s", seed).json["data"]["images"] for seed in ("1", "100"))
    assert [row["prompt"] for row in one] == [row["prompt"] for row in two]
    assert len({row["prompt"] for row in one}) == 3 and [row["seed"] for row in two] == [100, 101, 102]
    record = read_metadata(Path(one[1]["path"])).record or {}
    assert (record["template"], record["wildcard_seed"]) == ("a {red|blue} __animal__", 5)
    again = lens("rerun", one[1]["path"], "--json").json["data"]["images"][0]
    kept = read_metadata(Path(again["path"])).record or {}
    assert [kept[key] for key in ("prompt", "template", "wildcard_seed", "pixel_sha256")] == [
        record[key] for key in ("prompt", "template", "wildcard_seed", "pixel_sha256")
    ]
    other = recorded(lens("rerun", one[1]["path"], "-p", "a dog").lines[0])
    assert (other.prompt, other.template, other.wildcard_seed) == ("a dog", None, None)


def test_without_wildcards_braces_are_text(lens: Lens, monkeypatch: pytest.MonkeyPatch) -> None:
    run = lens("gen", "a {red|blue} sign", "--no-wildcards", "-s", "1", "-o", "a.png")
    assert run.code == 0 and recorded("a.png").prompt == "a {red|blue} sign"
    assert "--no-wildcards" in run.err.splitlines()[-1]  # the line that makes it again
    unknown = lens("gen", "a __animal__")
    assert unknown.code == 2 and unknown.err.startswith("error: no wildcard __animal__\nhint: ")
    assert "--wildcard-seed is ignored" in lens("gen", "a fish", "--wildcard-seed", "1").err
    monkeypatch.setenv("LENS_GENERATE__WILDCARDS", "false")
    assert lens("gen", "{a|b}", "-o", "b.png").code == 0 and recorded("b.png").prompt == "{a|b}"


def test_dry_run_of_a_batch_writes_nothing(lens: Lens) -> None:
    Path("p.txt").write_text("a fish\na {b|b} cat\n")
    run = lens("gen", "--prompts", "p.txt", "-s", "5", "-o", "out/", "--dry-run")
    assert run.code == 0 and run.lines == ["out/a-fish-5.png", "out/a-b-cat-5.png"] and not Path("out").exists()


class Page(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_a_contact_sheet_links_every_picture_and_runs_nothing(lens: Lens) -> None:
    Path("p.txt").write_text('a "><script>alert(1)</script> fish\na & b\n')
    run = lens("gen", "--prompts", "p.txt", "-o", "out/#{index} 100%.png", "--sheet", "sheets.html", "--json")
    assert run.code == 0, run.err
    page = Page()
    page.feed(Path(run.json["data"]["sheet"]).read_text())
    pictures = [attributes for tag, attributes in page.tags if tag == "img"]
    assert [unquote(one["src"] or "") for one in pictures] == ["out/#0 100%.png", "out/#1 100%.png"]
    assert [one["alt"] for one in pictures] == ['a "><script>alert(1)</script> fish', "a & b"]
    assert not any(tag == "script" for tag, _ in page.tags)
    again = lens("gen", "a fish", "--sheet", "sheets.html", "--json").json["data"]["sheet"]
    assert again == "sheets-1.html"  # nothing is replaced


def test_a_broken_off_batch_goes_on(lens: Lens) -> None:
    """Ctrl-C in the second of three: its exit code, and what --continue then draws."""
    import os
    import signal
    import subprocess
    import time

    from tests.lens_cli.cli import command, environment

    Path("p.txt").write_text("a fish\na slow cat\na dog\n")
    words = ("gen", "--prompts", "p.txt", "-s", "1", "--steps", "40", "-o", "out/")
    child = subprocess.Popen(
        command(*words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(), text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "out/a-fish-1.png\n"
    time.sleep(0.3)
    os.kill(child.pid, signal.SIGINT)
    _, err = child.communicate(timeout=120)
    assert child.returncode == 130 and "stopped: 1 of 3 pictures finished" in err and "Traceback" not in err
    assert lens(*words, "--continue").lines == ["out/a-slow-cat-1.png", "out/a-dog-1.png"]
    assert json.loads(Path("out/.lens-p.jsonl").read_text().splitlines()[0])["seed"] == 1
