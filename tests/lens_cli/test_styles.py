"""Named styles, names for the TAB, and the viewer, as a person meets them.

Why it can be trusted: the prompt that is drawn is read from the picture's own record, a viewer is a program of the
test's that notes what it is given.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from backend.batch.styles import read_styles, styled, styles
from backend.errors import UsageError
from backend.paths import loras_dir, prompts_dir, styles_file, wildcards_dir
from backend.wish import Wish
from lens_cli.terminal import completions
from prompts import FOLDER
from tests.lens_cli.cli import lens, lens_inside, recorded


def write(path: Path, text: str = "x") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_every_style_of_the_package_holds_the_prompt_once() -> None:
    shipped = read_styles(FOLDER / "styles.toml")
    assert len(shipped) > 10 and all(text.count("{prompt}") == 1 for text in shipped.values())


def test_one_s_own_go_first() -> None:
    write(styles_file(), 'sticker = "{prompt}, mine"\nnoir = "{prompt} by night, {prompt} again"')
    assert styled(Wish(prompt="a cat", style="sticker")).prompt == "a cat, mine"
    assert styled(Wish(prompt="a {red|blue} cat", style="noir")).prompt == (
        "a {red|blue} cat by night, a {red|blue} cat again"
    )
    assert "photo" in styles() and styled(Wish(prompt="a cat")) == Wish(prompt="a cat")


@pytest.mark.parametrize("text", ['a = "no place"', "a = 3", "[a]\nb = 1", "a =", "x" * (1 << 20) + "x"])
def test_what_is_no_style(text: str) -> None:
    write(styles_file(), text)
    with pytest.raises(UsageError, match=r"styles\.toml"):
        styles()


def test_a_style_is_drawn_recorded_and_not_put_on_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run = lens_inside(monkeypatch, capfd, "gen", "a cat", "--style", "sticker", "-s", "1", "-o", "a.png")
    assert run.code == 0, run.err
    prompt = styles()["sticker"].replace("{prompt}", "a cat")
    assert (recorded("a.png").prompt, recorded("a.png").style) == (prompt, "sticker")
    assert "--style" not in run.err.splitlines()[-1] and prompt in run.err.splitlines()[-1]
    assert lens_inside(monkeypatch, capfd, "rerun", "a.png", "-o", "b.png").code == 0
    assert recorded("b.png").prompt == prompt
    write(Path("lines.txt"), "a dog\na fish")
    lens_inside(monkeypatch, capfd, "gen", "--prompts", "lines.txt", "--style", "ink", "-s", "1", "-o", "c-{index}.png")
    assert recorded("c-1.png").prompt == styles()["ink"].replace("{prompt}", "a fish")
    wrong = lens_inside(monkeypatch, capfd, "gen", "a cat", "--style", "stickers")
    assert wrong.code == 2 and "did you mean sticker?" in wrong.err


def test_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """A viewer that notes its file; and a machine without one, which is said and fails nothing."""
    monkeypatch.chdir(tmp_path)
    seen: list[str] = []
    monkeypatch.setattr("typer.launch", lambda path: seen.append(path) or 0)
    run = lens_inside(monkeypatch, capfd, "gen", "a cat", "-s", "1", "-n", "2", "-o", "p/", "--open")
    assert run.code == 0 and seen == [str(tmp_path / line) for line in run.lines]
    monkeypatch.setattr("typer.launch", lambda path: 1)
    run = lens_inside(monkeypatch, capfd, "gen", "a cat", "-s", "1", "-o", "q.png", "--open")
    assert run.code == 0 and "nothing here opens q.png" in run.err


def test_names_for_the_tab() -> None:
    write(loras_dir() / "sky.safetensors")
    write(loras_dir() / "deep/sea.safetensors")
    write(wildcards_dir() / "animal.txt")
    write(wildcards_dir() / "plants/tree.txt")
    write(prompts_dir() / "general-mine.md")
    assert completions.complete_lora("s") == ["sky"] and completions.complete_lora("deep/") == ["deep/sea"]
    assert completions.complete_system_prompt("gen") == ["general", "general-mine", "geneval"]
    assert completions.complete_style("p") == ["papercut", "photo", "pixel", "poster"]
    assert completions.complete_prompt("a __an") == ["a __animal__"]
    assert completions.complete_prompt("__animal__ and __plants") == ["__animal__ and __plants/tree__"]
    assert completions.complete_prompt("a cat") == [] == completions.complete_prompt("a __animal__")
    write(styles_file(), "broken =")
    assert completions.complete_style("p") == []


def test_the_shell_asks_for_them() -> None:
    """Through the completion that `lens --install-completion` installs for bash."""
    asked = lens(start=True, _LENS_COMPLETE="complete_bash", COMP_WORDS="lens gen --style wat", COMP_CWORD="3")
    assert asked.lines == ["watercolour"]
