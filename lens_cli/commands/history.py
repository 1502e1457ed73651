"""`lens history`: what was made, searched, rated, followed; and pictures of elsewhere entered."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from backend.errors import UsageError
from lens_cli import options

app = typer.Typer(help="Search, rate and follow the pictures that were made.")

Id = Annotated[
    str, typer.Argument(metavar="ID", help="A picture's id, or its beginning.", autocompletion=options.complete_id)
]


@app.callback(invoke_without_command=True)
def history(
    context: typer.Context,
    query: Annotated[
        str,
        typer.Option("--query", "-q", metavar="TEXT", help="Words of the prompt, or their beginnings."),
    ] = "",
    num: Annotated[
        int, typer.Option("--num", "-n", min=1, max=100_000, help="At most so many, the last made first.")
    ] = 20,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Made by this one.", autocompletion=options.complete_model)
    ] = None,
    rating: Annotated[int | None, typer.Option("--rating", min=0, max=5, help="Rated so or better.")] = None,
    show_paths: Annotated[bool, typer.Option("--paths", help="Print the files instead, one a line.")] = False,
    json: options.Json = False,
) -> None:
    """Search, rate and follow the pictures that were made.

    Examples: lens history -q "red fish" · lens history --rating 4 --paths | xargs -d '\\n' cp -t best/
    """
    if context.invoked_subcommand is not None:
        return
    from lens_cli.terminal.history_table import table
    from lens_cli.work.pictures import open_history

    talk = options.talk_for("history", json=json)
    with open_history() as known:
        found = known.search(query, model=model, rating=rating, limit=num)
    if show_paths:
        for entry in found:
            if entry.path is not None and not entry.gone:
                talk.data(entry.path)
    elif found:
        for line in table(found):
            talk.data(line)
    else:
        talk.say("no picture fits" if query or model or rating is not None else "no picture was made yet")
    talk.result({"pictures": [entry.data() for entry in found]})


@app.command()
def tree(name: Id, json: options.Json = False) -> None:
    """Show the family of a picture: what it was made from, and what was made from it."""
    from lens_cli.terminal.history_table import tree_lines
    from lens_cli.work.pictures import open_history, tree_data

    talk = options.talk_for("history tree", json=json)
    with open_history() as known:
        family = known.tree(name)
    for line in tree_lines(family):
        talk.data(line)
    talk.result(tree_data(family))


@app.command()
def rate(
    name: Id,
    rating: Annotated[str, typer.Argument(metavar="0..5|none", help="5 is the best; none takes it back.")],
    json: options.Json = False,
) -> None:
    """Rate a picture."""
    from lens_cli.work.pictures import open_history

    talk = options.talk_for("history rate", json=json)
    if rating != "none" and rating not in list("012345"):
        raise UsageError(f"{rating} is no rating", hint="0 to 5, or none")
    with open_history() as known:
        entry = known.rate(name, None if rating == "none" else int(rating))
    talk.say(f"{entry.id[:8]}: {rating}")
    talk.result(entry.data())


@app.command()
def forget(name: Id, json: options.Json = False) -> None:
    """Take a picture out of the history; its file stays."""
    from lens_cli.work.pictures import open_history

    talk = options.talk_for("history forget", json=json)
    with open_history() as known:
        entry = known.forget(name)
    talk.say(f"{entry.id[:8]} is forgotten" + ("" if entry.path is None else f"; {entry.path} stays"))
    talk.result(entry.data())


@app.command()
def reconcile(
    folders: Annotated[
        list[Path] | None, typer.Argument(metavar="[FOLDER]...", help="Where moved pictures may be; none: here.")
    ] = None,
    json: options.Json = False,
) -> None:
    """Find the pictures that were moved, by their pixels, and mark those that are gone."""
    from dataclasses import asdict

    from backend.picture.imports import pixels_of
    from lens_cli.work.pictures import check_folders, open_history

    talk = options.talk_for("history reconcile", json=json)
    places = check_folders(folders or [Path()])
    with open_history() as known:
        found = known.reconcile(places, pixels_of)
    talk.say(f"{found.seen} in their places, {found.moved} found elsewhere, {found.gone} gone")
    talk.result(asdict(found))


@app.command("import")
def import_(
    folders: Annotated[list[Path], typer.Argument(metavar="FOLDER...", help="Folders, with all inside them.")],
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Enter the pictures of folders: of lens, A1111, ComfyUI, InvokeAI and alike. Twice enters nothing twice."""
    from dataclasses import asdict

    from backend.picture.imports import import_folders
    from lens_cli.work.pictures import check_folders, open_history

    talk = options.talk_for("history import", json=json, quiet=quiet)
    places = check_folders(folders)
    with open_history() as known:
        done = import_folders(known, places, on_damage=lambda error: talk.warn(str(error)))
    talk.say(
        f"{done.new} new, {done.known} known before, {done.silent} that do not say how they were made"
        + (f", {done.damaged} damaged" if done.damaged else "")
    )
    talk.result(asdict(done))
