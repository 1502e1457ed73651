"""`key=value` overrides of a frozen config, and a config as text and as JSON.

Light ring: standard library only.
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
import types
import typing
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from backend import fields
from backend.errors import UsageError

Config = TypeVar("Config")


def set_fields(config: Config, settings: list[str]) -> Config:
    """Apply `key=value` texts: keys are field names, `optim.clip` and `stages.0.steps` reach inside.

    Raises UsageError for an unknown key, with the nearest one there is, or for a value of the wrong type.
    """
    for setting in settings:
        key, separator, value = setting.partition("=")
        if not separator:
            raise UsageError(f"--set needs key=value, got {setting!r}")
        try:
            config = _set(config, key.strip(), key.strip().split("."), value.strip())
        except _UnknownFieldError as error:
            raise UsageError(f"--set {key.strip()}: {error}", hint=_nearest(config, key.strip())) from None
    return config


class _UnknownFieldError(Exception):
    """A key that names no field."""


def _set(target: Any, full: str, path: list[str], value: str) -> Any:
    if isinstance(target, tuple):
        items = typing.cast("tuple[Any, ...]", target)
        index = int(path[0]) if path[0].isascii() and path[0].isdigit() and len(path[0]) < 9 else -1
        if not 0 <= index < len(items) or len(path) < 2:
            raise UsageError(f"--set {full}: there are {len(items)} of these, numbered from 0")
        return (*items[:index], _set(items[index], full, path[1:], value), *items[index + 1 :])
    if path[0] not in (field.name for field in dataclasses.fields(target)):
        raise _UnknownFieldError(f"unknown field {path[0]!r}")
    current = getattr(target, path[0])
    if len(path) > 1:
        if not (isinstance(current, tuple) or dataclasses.is_dataclass(current)):
            raise _UnknownFieldError(f"{path[0]} has no fields of its own")
        return replace(target, **{path[0]: _set(current, full, path[1:], value)})
    return replace(target, **{path[0]: _parse(full, value, typing.get_type_hints(type(target))[path[0]])})


def _nearest(config: Any, key: str) -> str:
    """What was meant, as a hint: the keys that are most like it, or what the part that was named has."""
    known = list(_keys(config, ""))
    near = _same_words(key, known) or difflib.get_close_matches(key, known, n=1) or _like_the_end(key, known)
    if near:
        return f"did you mean {' or '.join(near[:3])}?"
    front = key.rpartition(".")[0] + "."
    inside = [one.removeprefix(front) for one in known if one.startswith(front)]
    if inside:
        return f"{front[:-1]} has {', '.join(inside)}"
    return f"fields: {', '.join(field.name for field in dataclasses.fields(config))}; --settings lists all"


def _same_words(key: str, known: list[str]) -> list[str]:
    """Keys whose last name is the same, or has the same words or initials: kl for nft.kl_weight, lr, batch_size.

    Those of the part that was named stand first, and alone where there are any.
    """
    front, _, typed = key.rpartition(".")
    ends = {one: one.rpartition(".")[2] for one in known}
    words = set(typed.split("_")) - {""}
    for alike in (
        lambda end: end == typed,
        lambda end: bool(words) and words <= set(end.split("_")),
        lambda end: len(typed) > 1 and "".join(word[:1] for word in end.split("_")) == typed,
        lambda end: "_" in typed and end in words,
    ):
        found = [one for one, end in ends.items() if alike(end)]
        if found:
            return [one for one in found if one.rpartition(".")[0] == front] or found
    return []


def _like_the_end(key: str, known: list[str]) -> list[str]:
    ends = {one.rpartition(".")[2]: one for one in reversed(known)}
    return [ends[end] for end in difflib.get_close_matches(key.rpartition(".")[2], ends, n=1)]


def _keys(config: Any, front: str) -> Iterator[str]:
    """Every key that holds a single value."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from _keys(value, f"{front}{field.name}.")
        elif isinstance(value, tuple) and value and dataclasses.is_dataclass(value[0]):
            for number, one in enumerate(typing.cast("tuple[Any, ...]", value)):
                yield from _keys(one, f"{front}{field.name}.{number}.")
        else:
            yield front + field.name


def _parse(key: str, text: str, kind: Any) -> Any:
    nested = [part for part in (kind, *typing.get_args(kind)) if dataclasses.is_dataclass(part)]
    if nested and not (type(None) in typing.get_args(kind) and text.lower() == "none"):
        inner = dataclasses.fields(typing.cast(Any, nested[0]))[0].name
        example = f"{key}.0.{inner}" if typing.get_origin(kind) is tuple else f"{key}.{inner}"
        raise UsageError(f"--set {key}: this field holds several values; set one of them, for example {example}")
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
    return f"{error.value!r} is not {fields.words_for(kind)}"


def settings_of(config: Any) -> list[tuple[str, str]]:
    """Every (key, value) of a config, however deep, as `set_fields` names and takes them."""
    return [(key, _text(_at(config, key.split(".")))) for key in _keys(config, "")]


def _at(config: Any, path: list[str]) -> Any:
    for name in path:
        config = config[int(name)] if isinstance(config, tuple) else getattr(config, name)
    return config


def _text(value: Any) -> str:
    """A value as --set takes it."""
    if isinstance(value, tuple):
        return ",".join(_text(part) for part in typing.cast("tuple[Any, ...]", value))
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


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


def _member(kind: Any, value: Any) -> Any:
    """Which of a union's types a value has: of several dataclasses the one whose field `kind` has that default."""
    members = [member for member in typing.get_args(kind) if member is not type(None)]
    said = value.get("kind") if isinstance(value, dict) else None
    return next(
        (member for member in members if said is not None and getattr(member, "kind", None) == said), members[0]
    )


def _restore(kind: Any, value: Any, path: str) -> Any:
    if isinstance(kind, types.UnionType):
        if value is None:
            return None
        kind = _member(kind, value)
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
