"""The README's commands are true: each runs as it is written, in the README's order, in one folder.

Trusted because nothing is rewritten on the way: the lines come out of the page. What draws has the engine of
`tests/fake_engine.py` inside, so that the real command line answers in milliseconds; `MARKED` says of every command
that does not run here why, and what is checked instead. The pages of docs/ are parsed: their commands and options
exist.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from lens_cli.app import COMMANDS
from lens_cli.lazy import build, load
from tests.lens_cli.cli import ROOT, environment, lens_inside, real_inside

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = sorted(path for path in (ROOT / "docs").glob("*.md") if path.name != "commands.md")

# A command that does not run as it stands: what is checked instead, and why.
MARKED = {
    "make demo": ("make -n", "installs from the package index"),
    "source .venv/bin/activate": ("nothing", "belongs to the shell that `make demo` is run in"),
    "uv tool install .": ("nothing", "another program, and the package index"),
    "pipx install .": ("nothing", "another program, and the package index"),
    "pip install .": ("pip", "the package index"),
    "pip install '.[train]'": ("pip", "the package index"),
    "lens models pull lens-turbo": ("parsed", "downloads 22 GB"),
    'lens gen "a castle at sunset" -m lens-turbo --ar 2:1 --base 1440': ("--dry-run", "its files are not here"),
    'lens gen "a castle at sunset" -m ~/ComfyUI/models/diffusion_models/lens_bf16.safetensors': (
        "parsed",
        "a file of 8 GB",
    ),
    'lens gen "a cat" --lora runs/dog/lora.safetensors=0.8': ("parsed", "needs a trained LoRA"),
    "lens refine 'two cats' | lens gen -": ("parsed", "needs a language model"),
    "lens serve": ("parsed", "runs until it is stopped"),
    'lens train lora photos/ -m nano --set caption="a sks dog" --run-dir runs/dog': ("parsed", "minutes"),
    "lens train status runs/dog": ("parsed", "needs a run"),
    'lens gen "a sks dog" -m nano --lora runs/dog/lora.safetensors': ("parsed", "needs a trained LoRA"),
    'lens gen "a sks dog" -m nano --lora runs/dog/lora.safetensors=0.5': ("parsed", "needs a trained LoRA"),
}


def commands(page: str) -> Iterator[str]:
    """The lines of the code blocks that have no language or a shell's, without their comments."""
    for block in re.findall(r"^```(?:sh)?\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            bare = re.sub(r"\s+#\s.*$", "", line).strip()
            if bare and not bare.startswith("#"):
                yield bare


def parse(words: list[str]) -> None:
    """Read a command of `lens` as its command line does, and do not run it. Raises what Typer raises, KeyError or
    AssertionError."""
    if not words:
        return
    command: Any = build(words[0], load(COMMANDS[words[0]].target))
    rest = words[1:]
    while (below := getattr(command, "commands", None)) and rest and rest[0] in below:
        command, rest = below[rest[0]], rest[1:]
    assert not below or not rest or rest[0].startswith("-"), f"no command is called {rest[0]!r}"
    with command.make_context("lens", list(rest)):
        pass


def parse_line(line: str) -> int:
    """Parse every `lens` of a line with pipes and loops; how many there were."""
    reader = shlex.shlex(line, posix=True, punctuation_chars="|&;")
    reader.whitespace_split, reader.commenters = True, ""
    parts: list[list[str]] = [[]]
    for word in reader:
        if set(word) <= set("|&;"):
            parts.append([])
        elif parts[-1] or word != "do":
            parts[-1].append(word)
    lenses = [words for words in parts if words[:1] == ["lens"]]
    for words in lenses:
        parse(words[1:])
    return len(lenses)


def test_the_marked_commands_stand_in_the_readme() -> None:
    assert set(MARKED) - set(commands(README)) == set()


def test_every_command_of_the_readme_runs(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.txt").write_text("a red fish\na blue cat\n")
    (tmp_path / "photos").mkdir()
    for shade in range(3):
        Image.new("RGB", (256, 256), (80 * shade, 120, 90)).save(tmp_path / "photos" / f"{shade}.png")
    for line in commands(README):
        how, _ = MARKED.get(line, ("as written", ""))
        words = shlex.split(line)
        if how in ("parsed", "--dry-run"):
            assert parse_line(line), line
        if how == "--dry-run":
            assert real_inside(monkeypatch, capfd, *words[1:], "--dry-run").code == 0, line
        elif how == "make -n":
            subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, check=True, capture_output=True)
        elif how == "pip":
            parse_pip(words)
        elif how == "as written" and "|" in words:
            in_a_shell(line, tmp_path)
        elif how == "as written":
            run = (real_inside if words[1:2] in (["train"], ["models"]) else lens_inside)(
                monkeypatch, capfd, *words[1:]
            )
            assert words[0] == "lens" and run.code == 0, (line, run.err)
            assert run.out or run.err, line  # `config set` talks on stderr
    drawn = {path.name for path in tmp_path.rglob("*.png")}
    assert {"fish.png", "1.png", "4.png"} <= drawn and (tmp_path / "set.html").exists()


def in_a_shell(line: str, folder: Path) -> None:
    """Run a line with pipes in bash, `lens` being the program with the fake inside; without jq it is parsed."""
    if not all(map(shutil.which, ("bash", "jq"))):
        assert parse_line(line), line
        return
    program = folder / "bin" / "lens"
    program.parent.mkdir(exist_ok=True)
    argv = shlex.join([sys.executable, str(ROOT / "tests/fake_engine.py")])
    program.write_text(f'#!/bin/sh\nexec {argv} "$@"\n')
    program.chmod(0o755)
    env = environment()
    env["PATH"] = f"{program.parent}:{env['PATH']}"
    done = subprocess.run(["bash", "-eo", "pipefail", "-c", line], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0 and (folder / done.stdout.strip()).is_file(), (line, done.stderr)


def parse_pip(words: list[str]) -> None:
    """Read a `pip install` as pip does; the extras that it names exist here."""
    from pip._internal.commands import create_command  # pyright: ignore[reportMissingImports]

    assert words[:2] == ["pip", "install"], words
    _, wanted = create_command("install").parse_args(words[2:])
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert len(wanted) == 1, words
    assert [name for name in re.findall(r"\[(.+)\]", wanted[0]) if name not in extras] == []


def test_what_stands_between_backticks_is_there() -> None:
    """Inline commands name commands, inline pip lines parse, the extras of the table exist."""
    for code in re.findall(r"`([^`\n]+)`", README):
        words = shlex.split(code)
        if words[:2] == ["pip", "install"]:
            parse_pip(words)
        elif words[0] == "lens" and words[1:]:
            inside: Any = COMMANDS
            for word in words[1:]:
                if word.startswith("-") or not inside:
                    break
                assert word in inside, code
                target = inside[word]
                command = build(word, load(target.target)) if hasattr(target, "target") else target
                inside = getattr(command, "commands", None)


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target


@pytest.mark.parametrize("line", ["lens gen x --bogus", "lens models pul lens", "lens refine x | lens gen - --bad"])
def test_what_is_not_there_is_found(line: str) -> None:
    with pytest.raises((AssertionError, typer.TyperException)):
        parse_line(line)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_commands_of_the_pages_exist(path: Path) -> None:
    for line in commands(path.read_text(encoding="utf-8")):
        if re.search(r"(^|\| |do )lens ", line):
            assert parse_line(line), line
