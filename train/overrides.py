"""`key=value` overrides of a frozen config, and a config as text and as JSON.

Light ring: standard library only.
"""

from __future__ import annotations

import dataclasses
import enum
import types
import typing
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from backend import fields
from backend.errors import UsageError

Config = TypeVar("Config")


def set_fields(config: Config, settings: list[str]) -> Config:
    """Apply `key=value` texts: keys are field names, `stages.0.steps` reaches into the stages.

    Raises UsageError for an unknown key or a value of the wrong type.
    """
    for setting in settings:
        key, separator, value = setting.partition("=")
        if not separator:
            raise UsageError(f"--set needs key=value, got {setting!r}")
        config = _set(config, key.strip(), key.strip().split("."), value.strip())
    return config


def _set(target: Any, full: str, path: list[str], value: str) -> Any:
    if isinstance(target, tuple):
        items = typing.cast("tuple[Any, ...]", target)
        index = int(path[0]) if path[0].isdigit() else -1
        if not 0 <= index < len(items) or len(path) < 2:
            raise UsageError(f"--set {full}: there are {len(items)} of these, numbered from 0")
        return (*items[:index], _set(items[index], full, path[1:], value), *items[index + 1 :])
    names = [field.name for field in dataclasses.fields(target)]
    if path[0] not in names:
        raise UsageError(f"--set {full}: unknown field {path[0]!r}", hint=f"fields: {', '.join(names)}")
    current = getattr(target, path[0])
    if len(path) > 1:
        if not (isinstance(current, tuple) or dataclasses.is_dataclass(current)):
            raise UsageError(f"--set {full}: {path[0]} has no fields of its own")
        return replace(target, **{path[0]: _set(current, full, path[1:], value)})
    return replace(target, **{path[0]: _parse(full, value, typing.get_type_hints(type(target))[path[0]])})


def _parse(key: str, text: str, kind: Any) -> Any:
    if dataclasses.is_dataclass(fields.plain(kind)) or any(map(dataclasses.is_dataclass, typing.get_args(kind))):
        raise UsageError(f"--set {key}: this field holds several values; set one of them, for example {key}.0.steps")
    try:
        return fields.from_text(text, kind, finite=False)
    except fields.Misfit as error:
        raise UsageError(f"--set {key}: {_complaint(error)}") from None


def _complaint(error: fields.Misfit) -> str:
    kind = error.kind
    if typing.get_origin(kind) is tuple:
        return f"needs {len(typing.get_args(kind))} numbers, like 1,2"
    if known := typing.get_args(kind) or (list(kind) if issubclass(kind, enum.StrEnum) else ()):
        return f"{error.value!r} is none of {', '.join(known)}"
    return f"{error.value!r} is not {kind.__name__}"


def describe(config: Any) -> str:
    """The resolved config as aligned `key = value` lines, nested parameters as one line each."""
    rows: list[tuple[str, object]] = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name == "stages":
            rows += [(f"stages.{i}", stage) for i, stage in enumerate(value)]
        elif field.name == "params" and not hasattr(value, "num_layers"):  # three networks: a line each
            rows += [(f"params.{part.name}", getattr(value, part.name)) for part in dataclasses.fields(value)]
        else:
            rows.append((field.name, value))
    width = max(len(key) for key, _ in rows)
    return "\n".join(f"{key:<{width}}  {value}" for key, value in rows)


def as_json(config: Any) -> Any:
    """A config as JSON holds it: dataclasses are objects, tuples are lists, paths are texts."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {field.name: as_json(getattr(config, field.name)) for field in dataclasses.fields(config)}
    if isinstance(config, (tuple, list)):
        return [as_json(part) for part in typing.cast("list[Any]", config)]
    return str(config) if isinstance(config, Path) else config


def from_json(kind: type[Config], value: Any, path: str = "config") -> Config:
    """What `as_json` gave, as `kind` again. Raises UsageError for a field that `kind` does not have."""
    return typing.cast(Config, _restore(kind, value, path))


def _restore(kind: Any, value: Any, path: str) -> Any:
    if isinstance(kind, types.UnionType):
        if value is None:
            return None
        kind = next(k for k in typing.get_args(kind) if k is not type(None))
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        unknown = [key for key in value if key not in hints]
        if unknown:
            raise UsageError(f"{path}: unknown field {unknown[0]!r}", hint="was it written by another version?")
        return typing.cast(Any, kind)(**{k: _restore(hints[k], v, f"{path}.{k}") for k, v in value.items()})
    if typing.get_origin(kind) is tuple:
        inner = typing.get_args(kind)
        parts = [inner[0]] * len(value) if inner[-1] is Ellipsis else inner
        return tuple(
            _restore(part, item, f"{path}.{i}") for i, (part, item) in enumerate(zip(parts, value, strict=True))
        )
    return kind(value) if kind is Path else value
