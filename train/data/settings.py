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

from backend.errors import FileError, UsageError
from backend.files import make_folder, write_atomic

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
        raise FileError(
            f"cannot read {path}: {error}", hint="mend it, or delete it and give the settings anew"
        ) from error
    if not isinstance(found, dict):
        raise FileError(f"{path} is not a JSON object", hint=_MEND)
    return found


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
    remembered = dict(read_sections(folder).get(name, {}))
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
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in remembered.items()}
    values = {key: Path(str(v)) if v is not None and _one(hints[key]) is Path else v for key, v in values.items()}
    return kind(**values), remembered


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
        raise UsageError(f"--set {key}: {text!r} is not {kind.__name__}") from None


def _one(kind: Any) -> Any:
    """The annotation without `| None`."""
    if isinstance(kind, types.UnionType):
        return next(part for part in typing.get_args(kind) if part is not type(None))
    return kind
