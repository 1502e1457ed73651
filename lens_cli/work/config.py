"""`lens config`: what a person set, where each value comes from, and setting it: the user's file, comments kept."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, cast, get_origin

import tomlkit
from tomlkit.exceptions import TOMLKitError

from backend import fields as typed
from backend import paths, settings
from backend.disk import make_folder, read_error, write_atomic
from backend.errors import UsageError, joined
from backend.foreign import documents
from backend.packing.schemes import quant_help
from backend.settings import USER_ONLY, Settings
from backend.wish import ROWS

SECRETS = ("api_key", "reasoner.api_key")
_COMMENT = re.compile(r"^    (\w+): [^#]*#\s*(.+)$")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One setting as it holds now."""

    key: str
    value: Any  # None: left to the model or the command; a secret is "(set)"
    origin: str  # a file, an environment variable, or "default"
    about: str  # what it is; "" where the row of the table says nothing


def all_settings(current: Settings) -> list[Setting]:
    """Every setting in the order of the dataclasses."""
    about = dict(_explained())
    return [
        Setting(
            key=key,
            value=_shown_value(current, key),
            origin=current.origins.get(key, "default"),
            about=about.get(key, ""),
        )
        for key, _ in settings.keys()
    ]


def value_of(current: Settings, key: str) -> Any:
    """The value of a known key. Raises UsageError."""
    _kind(key)
    value: Any = current
    for part in key.split("."):
        value = getattr(value, part)
    return value


def as_text(value: Any) -> str:
    """A value as `set` takes it; "" for None."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return os.pathsep.join(map(str, cast("tuple[object, ...]", value))) if isinstance(value, tuple) else str(value)


def change(key: str, text: str | None, *, project: bool) -> Path:
    """Set a key in the user's file, or in the working folder's `lens.toml`; None takes it out. Returns the file.

    The file keeps its comments and its order. Raises UsageError for a value that does not fit, or a file that is no
    TOML; FileError.
    """
    kind = _kind(key)
    if project and key in USER_ONLY:
        raise UsageError(
            f"{key} belongs into your own settings", hint=f"lens config set {key} VALUE, without --project"
        )
    path = paths.project_file() if project else paths.config_file()
    document = _read(path)
    *sections, name = key.split(".")
    table: Any = document
    for section in sections:
        if section not in table:
            if text is None:
                return path
            table[section] = tomlkit.table()
        table = table[section]
    if text is None:
        table.pop(name, None)
    else:
        table[name] = _plain(_parsed(key, text, kind))
    make_folder(path.parent)
    write_atomic(path, tomlkit.dumps(document).encode(), private=not project)  # a key may stand in it, now or later
    return path


def check(path: Path) -> None:
    """Whether a file that was edited can be read. Raises UsageError as `lens` would with its next command."""
    settings.load()
    if path.exists():
        _read(path)


def _kind(key: str) -> Any:
    known = dict(settings.keys())
    if key not in known:
        from difflib import get_close_matches

        near = [name for name in known if name.rpartition(".")[2] == key.rpartition(".")[2]]  # steps, sampling.steps
        near = near or get_close_matches(key, list(known), 1, 0.7)
        raise UsageError(
            f"no setting is called {key!r}", hint=f"did you mean {joined(near)}?" if near else "lens config show"
        )
    return known[key]


def _parsed(key: str, text: str, kind: Any) -> Any:
    try:
        return typed.from_text(text, kind, separator=os.pathsep)
    except typed.Misfit:
        words = "texts joined by " + os.pathsep if get_origin(kind) is tuple else typed.words_for(kind)
        raise UsageError(f"{key} = {text!r} does not fit", hint=f"it must be {words}") from None


def _plain(value: Any) -> Any:
    if isinstance(value, StrEnum):
        return str(value)
    return list(cast("tuple[str, ...]", value)) if isinstance(value, tuple) else value


def _read(path: Path) -> tomlkit.TOMLDocument:
    try:
        text = documents.read_text(path)
        documents.parse_toml(text)
        return tomlkit.parse(text)
    except (FileNotFoundError, NotADirectoryError):
        return tomlkit.document()
    except OSError as error:
        raise read_error(path, error) from error
    except documents.Unreadable as error:
        raise UsageError(f"{path} {error}", hint="lens config edit") from error
    except TOMLKitError as error:  # what Python reads and this library does not
        raise UsageError(f"{path} is not valid TOML: {error}", hint="lens config edit") from error


def _shown_value(current: Settings, key: str) -> Any:
    value = value_of(current, key)
    return "(set)" if key in SECRETS and value else value


def _explained(owner: type = Settings, prefix: str = "") -> Iterator[tuple[str, str]]:
    """(key, what it is): of a drawing setting its option's help, of another the comment of its field."""
    lines = inspect.getsource(owner).splitlines()
    comments = {found[1]: found[2] for line in lines if (found := _COMMENT.match(line))}
    kinds = typed.types_of(owner)
    for item in fields(owner):
        kind = kinds[item.name]
        if item.name == "generate":
            yield from (
                (f"generate.{name}", row.help.replace("{packings}", quant_help())) for name, row in ROWS.items()
            )
        elif is_dataclass(kind) and isinstance(kind, type):
            yield from _explained(kind, f"{prefix}{item.name}.")
        else:
            yield prefix + item.name, comments.get(item.name, "")
