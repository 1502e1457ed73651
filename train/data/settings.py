"""What `lens train data` was told: `config.json` of a work folder, one section a stage, and `--set` on top of it.

Every stage has a frozen dataclass of its own settings. A value given once is remembered; `key=default` forgets it.

Light ring: standard library only.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from backend.disk import make_folder, write_atomic
from backend.errors import FileError, UsageError

Settings = TypeVar("Settings")
_MEND = "mend it, or delete it and give the settings anew"


def read_sections(folder: Path) -> dict[str, Any]:
    """All of `config.json`; empty where there is none. Raises FileError where it is no JSON object."""
    path = folder / "config.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise FileError(f"cannot read {path}: {error}", hint=_MEND) from error
    if not isinstance(found, dict):
        raise FileError(f"{path} is not a JSON object", hint=_MEND)
    return found


def read_section(folder: Path, name: str) -> dict[str, Any]:
    """One section, as it stands; empty where there is none. Raises FileError where it is no JSON object."""
    found = read_sections(folder).get(name, {})
    if not isinstance(found, dict):
        raise FileError(f"{folder / 'config.json'}: {name} is not a JSON object", hint=_MEND)
    return dict(typing.cast("dict[str, Any]", found))


def write_section(folder: Path, name: str, value: Any) -> None:
    """Remember one section; the others stay. Writes nothing where nothing changed."""
    sections = read_sections(folder)
    if sections.get(name) == value:
        return
    make_folder(folder)
    write_atomic(folder / "config.json", (json.dumps({**sections, name: value}, indent=1) + "\n").encode())


def section(
    kind: type[Settings], name: str, folder: Path, given: Sequence[str] = ()
) -> tuple[Settings, dict[str, Any]]:
    """A stage's settings from its defaults, `config.json` and the `key=value` texts of `--set`.

    Returns them with what is to be remembered (for `write_section`): only what differs from the defaults.
    Raises UsageError for an unknown key or a value of the wrong type.
    """
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(typing.cast(Any, kind))}
    remembered = read_section(folder, name)
    for setting in given:
        key, separator, text = setting.partition("=")
        key = key.strip()
        if not separator:
            raise UsageError(f"--set needs key=value, got {setting!r}")
        if key not in fields:
            raise UsageError(f"--set {key}: {name} has no such setting", hint=f"settings: {', '.join(fields)}")
        if text.strip() == "default":
            remembered.pop(key, None)
        else:
            remembered[key] = parse(key, text.strip(), hints[key])
    unknown = sorted(set(remembered) - set(fields))
    if unknown:
        raise UsageError(
            f"{folder / 'config.json'}: {name} has no setting {unknown[0]!r}", hint=f"settings: {', '.join(fields)}"
        )
    config = folder / "config.json"
    return kind(**{key: checked(f"{config}: {name}", key, v, hints[key]) for key, v in remembered.items()}), remembered


def checked(where: str, key: str, value: Any, kind: Any) -> Any:
    """A value of `config.json`, which anybody may have edited, as the annotation `kind` has it. Raises UsageError."""
    one = _one(kind)
    if value is None and one is not kind:
        return None
    if typing.get_origin(one) is tuple and isinstance(value, list):
        inner = typing.get_args(one)[0]
        return tuple(checked(where, key, part, inner) for part in typing.cast("list[Any]", value))
    if one is Path and isinstance(value, str):
        return Path(value)
    # bool is an int to Python, and a whole number a float to people
    if type(value) is one or (one is float and type(value) is int):
        return value
    raise UsageError(f"{where}: {key} = {value!r} is not {_called(one)}", hint=_MEND)


def _called(kind: Any) -> str:
    if typing.get_origin(kind) is tuple:
        return f"a list of {_called(typing.get_args(kind)[0])}"
    return {bool: "true or false", int: "a whole number", float: "a number", Path: "a path"}.get(kind, "a text")


def parse(key: str, text: str, kind: Any) -> Any:
    """`text` as JSON value of the annotation `kind`: bool, int, float, str, Path, tuple of str, or one of these | None.

    Raises UsageError naming `key`.
    """
    if isinstance(kind, types.UnionType) and text.lower() == "none":
        return None
    kind = _one(kind)
    if typing.get_origin(kind) is tuple:
        inner = typing.get_args(kind)[0]
        return [parse(key, part.strip(), inner) for part in text.split(",") if part.strip()]
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        if kind is float:
            if not math.isfinite(float(text)):
                raise ValueError
            return float(text)
        return int(text.replace("_", "")) if kind is int else text
    except (KeyError, ValueError):
        raise UsageError(f"--set {key}: {text!r} is not {_called(kind)}") from None


def _one(kind: Any) -> Any:
    """The annotation without `| None`."""
    if isinstance(kind, types.UnionType):
        return next(part for part in typing.get_args(kind) if part is not type(None))
    return kind
