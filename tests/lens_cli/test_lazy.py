"""Sub-commands are imported when they are called. What Typer builds from the functions themselves is the statement."""

from __future__ import annotations

import subprocess
import sys

import pytest
import typer
from typer.main import get_command

from lens_cli.app import COMMANDS, PANELS, app
from lens_cli.lazy import build, load


@pytest.mark.parametrize("name", COMMANDS)
def test_summary_is_what_the_command_says_of_itself(name: str) -> None:
    source = load(COMMANDS[name].target)
    plain = typer.Typer()  # Typer's own way for one command or one group
    plain.callback()(lambda: None)
    if isinstance(source, typer.Typer):
        plain.add_typer(source, name=name)
    else:
        plain.command(name)(source)
    group = get_command(plain)
    own = group.commands[name].help  # type: ignore[attr-defined]
    first = own.split("\n\n")[0]
    assert COMMANDS[name].summary == " ".join(first.split())


def test_every_command_stands_in_one_panel_of_the_help() -> None:
    assert sorted(name for names in PANELS.values() for name in names) == sorted(COMMANDS)


def test_a_call_reaches_the_real_command() -> None:
    group = get_command(app)
    context = group.make_context("lens", [])
    name, command, rest = group.resolve_command(context, ["train", "data", "--help"])  # type: ignore[attr-defined]
    assert name == "train" and rest == ["data", "--help"] and set(command.commands) >= {"data", "nano", "pretrain"}
    _, gen, _ = group.resolve_command(context, ["gen", "x"])  # type: ignore[attr-defined]
    assert {"prompt", "seeds", "size"} <= {param.name for param in gen.params}


def test_a_group_of_one_command_stays_a_group() -> None:
    one = typer.Typer()
    one.command("alone")(lambda: None)
    assert set(build("group", one).commands) == {"alone"}


def test_help_imports_no_command() -> None:
    code = (
        "import sys\nsys.argv = ['lens', '--help']\nfrom lens_cli.app import main\n"
        "try:\n    main()\nfinally:\n    print(sorted(n for n in sys.modules if n.startswith('lens_cli.commands.')))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "Make pictures from a sentence" in out and out.rstrip().endswith("[]")
