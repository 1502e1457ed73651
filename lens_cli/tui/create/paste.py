"""What a person pastes or drops on the prompt: a `lens gen` line, a picture's file, or just text.

Light ring: standard library only; the command's parser arrives with the first line.
"""

from __future__ import annotations

import shlex
from dataclasses import replace
from typing import Any, cast

from backend.errors import LensError, UsageError
from backend.paths import expanded
from backend.wish import ROWS, Wish


def read_picture_or_line(text: str) -> Wish | None:
    """The wish of a pasted `lens gen` line or of a picture's file; None: the text is neither.

    Raises LensError for a line or a file that is one of them and cannot be used.
    """
    plain = text.strip()
    if plain.startswith("lens gen "):
        return wish_of_line(plain)
    name = plain.removeprefix("file://").strip("'\"")
    if "\n" in plain or not name.lower().endswith((".png", ".jpg", ".jpeg", ".webp")):
        return None
    try:
        name = shlex.split(name)[0] if "\\" in name else name
        path = expanded(name)
        if not path.is_file():
            return None
    except (OSError, ValueError, UsageError):
        return None
    from backend.picture.images import read_metadata
    from backend.picture.metadata import wish_from

    found = read_metadata(path)
    if found.record is None:
        raise LensError(f"{path.name} does not say how it was made", hint="lens info shows what it holds")
    return known_model(wish_from(found.record, path.name))


def known_model(wish: Wish) -> Wish:
    """The wish of a picture, which may be anybody's: a model that is no name of ours is a path, for the user to say."""
    from backend import presets

    return wish if wish.model in presets.names() else replace(wish, model=None)


def wish_of_line(line: str) -> Wish:
    """The wish of a `lens gen` line, read by a command's parser. Raises UsageError."""
    import typer

    from lens_cli.lazy import build
    from lens_cli.tui.create.gen_line import gen

    try:
        words = shlex.split(line.replace("\\\n", " "))[2:]
        command = build("gen", gen)
        given = command.make_context("lens gen", [word for word in words if word not in ("-h", "--help")]).params
    except ValueError as error:
        raise UsageError(f"this line is not quoted as a shell has it: {error}") from None
    except (typer.TyperException, typer.Exit) as error:
        said = error.format_message() if isinstance(error, typer.TyperException) else "it asks for help"
        raise UsageError(f"this line is no lens gen: {said}") from None
    lists = {name: tuple(cast("list[Any]", value)) for name, value in given.items() if isinstance(value, list)}
    asked: dict[str, Any] = {**given, **lists}
    wish = Wish(**{name: asked[name] for name in ROWS if asked.get(name) is not None})
    prompt = " ".join(asked.get("words") or ()) or asked.get("prompt")
    return replace(wish, prompt=prompt)
