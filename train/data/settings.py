"""What `lens train data` was told: `config.json` of a work folder, one section a stage, and `--set` on top of it.

Every stage has a frozen dataclass of its own settings. A value given once is remembered; `key=default` forgets it.

Light ring: standard library only.
"""

from __future__ import annotations

import json
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from backend import fields
from backend.disk import make_folder, write_atomic
from backend.errors import FileError, UsageError
from backend.foreign import documents

Settings = TypeVar("Settings")
_MEND = "mend it, or delete it and give the settings anew"


def read_sections(folder: Path) -> dict[str, Any]:
    """All of `config.json`; empty where there is none. Raises FileError where it is no JSON object."""
    path = folder / "config.json"
    try:
        found = documents.parse_json(documents.read_bytes(path))
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
    hints = fields.types_of(kind)
    known = ", ".join(hints)
    config, remembered = folder / "config.json", read_section(folder, name)
    for setting in given:
        key, separator, text = setting.partition("=")
        key = key.strip()
        if not separator:
            raise UsageError(f"--set needs key=value, got {setting!r}")
        if key not in hints:
            raise UsageError(f"--set {key}: {name} has no such setting", hint=f"settings: {known}")
        if text.strip() == "default":
            remembered.pop(key, None)
        else:
            remembered[key] = parse(key, text.strip(), hints[key])
    unknown = sorted(set(remembered) - set(hints))
    if unknown:
        raise UsageError(f"{config}: {name} has no setting {unknown[0]!r}", hint=f"settings: {known}")
    return kind(**{key: checked(f"{config}: {name}", key, v, hints[key]) for key, v in remembered.items()}), remembered


def checked(where: str, key: str, value: Any, kind: Any) -> Any:
    """A value of `config.json`, which anybody may have edited, as the annotation `kind` has it. Raises UsageError."""
    try:
        return fields.from_data(value, kind)
    except fields.Misfit:
        raise UsageError(f"{where}: {key} = {value!r} is not {fields.words_for(kind)}", hint=_MEND) from None


def parse(key: str, text: str, kind: Any) -> Any:
    """`text` of the annotation `kind` as JSON value. Raises UsageError naming `key`."""
    try:
        return fields.as_data(fields.from_text(text, kind))
    except fields.Misfit:
        raise UsageError(f"--set {key}: {text!r} is not {fields.words_for(kind)}") from None
