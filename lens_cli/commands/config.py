"""`lens config`: what is set and where it comes from; setting it."""

from __future__ import annotations

from typing import Annotated

import typer

from lens_cli import options

app = typer.Typer(no_args_is_help=True, help="Show and change settings.")


def complete_key(incomplete: str) -> list[str]:
    """Names of settings for the shell's TAB."""
    from backend.settings import keys

    return [key for key, _ in keys() if key.startswith(incomplete)]


Key = Annotated[
    str, typer.Argument(metavar="KEY", help="A setting, such as generate.steps.", autocompletion=complete_key)
]
Project = Annotated[bool, typer.Option("--project", help="In lens.toml of this folder, for who works in it.")]
Everything = Annotated[bool, typer.Option("--all", "-a", help="Those that hold their default too, each explained.")]


@app.command()
def show(everything: Everything = False, json: options.Json = False) -> None:
    """Show what is set and where it comes from: the environment, lens.toml, or your config.toml.

    Examples: lens config show   ·   lens config show --all
    """
    from backend import paths
    from backend.settings import load
    from lens_cli.terminal.wrap import say_rows
    from lens_cli.work.config import all_settings, as_text

    talk = options.talk_for("config show", json=json)
    found = all_settings(load(talk.warn))
    for item in found:
        if everything or item.origin != "default":
            value = " is unset" if item.value is None else f" = {as_text(item.value)}   ({item.origin})"
            talk.data(f"{item.key}{value}")
            if everything and item.about:
                say_rows([f"    {item.about}"], 4, talk)
    if not everything and all(item.origin == "default" for item in found):
        talk.say(f"nothing is set; your file is {paths.config_file()}, and lens config show --all lists what can be")
    talk.result({
        "file": str(paths.config_file()),
        "project_file": str(paths.project_file()),
        "settings": [
            {"key": item.key, "value": item.value, "origin": item.origin, "about": item.about} for item in found
        ],
    })  # fmt: skip


@app.command()
def get(key: Key, json: options.Json = False) -> None:
    """Print the value of one setting; an empty line where the model or the command decides.

    Example: lens config get generate.steps
    """
    from backend.settings import load
    from lens_cli.work.config import as_text, value_of

    talk = options.talk_for("config get", json=json)
    current = load(talk.warn)
    value = value_of(current, key)
    talk.data(as_text(value))
    talk.result({"key": key, "value": value, "origin": current.origins.get(key, "default")})


@app.command("set")
def set_(
    key: Key,
    value: Annotated[str, typer.Argument(metavar="VALUE", help="As a flag takes it; true or false for a switch.")],
    project: Project = False,
    json: options.Json = False,
) -> None:
    """Set a value in your config.toml; its comments stay.

    Examples: lens config set generate.steps 12   ·   lens config set output_dir ~/Pictures
    """
    from lens_cli.work.config import change

    talk = options.talk_for("config set", json=json)
    path = change(key, value, project=project)
    talk.say(f"{key} is set in {path}")
    talk.result({"key": key, "file": str(path)})


@app.command()
def unset(key: Key, project: Project = False, json: options.Json = False) -> None:
    """Take a value out of your config.toml, so that its default holds again.

    Example: lens config unset generate.steps
    """
    from lens_cli.work.config import change

    talk = options.talk_for("config unset", json=json)
    path = change(key, None, project=project)
    talk.say(f"{key} is no longer set in {path}")
    talk.result({"key": key, "file": str(path)})


@app.command()
def edit(project: Project = False) -> None:
    """Open your config.toml in $VISUAL or $EDITOR, and check what was written.

    Example: lens config edit
    """
    from backend import paths
    from backend.disk import make_folder
    from lens_cli.work.config import check
    from lens_cli.work.refine import open_editor

    path = paths.project_file() if project else paths.config_file()
    make_folder(path.parent)
    open_editor(path)
    check(path)


@app.command()
def path(project: Project = False, json: options.Json = False) -> None:
    """Print where your config.toml is, or will be.

    Example: cat "$(lens config path)"
    """
    from backend import paths

    talk = options.talk_for("config path", json=json)
    found = paths.project_file() if project else paths.config_file()
    talk.data(found)
    talk.result({"file": str(found), "exists": found.exists()})
