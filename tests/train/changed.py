"""A config with some of its fields changed, wherever they are nested."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

Config = TypeVar("Config")


def changed(config: Config, fields: Mapping[str, Any] | None = None, **top: Any) -> Config:
    """`changed(config, {"saving.keep": 9}, seed=1)`: values as they are, not texts."""
    out: Any = replace(config, **top)  # type: ignore[type-var]
    for key, value in (fields or {}).items():
        out = _changed(out, key.split("."), value)
    return out


def _changed(target: Any, path: list[str], value: Any) -> Any:
    if isinstance(target, tuple):
        items = list(target)
        items[int(path[0])] = _changed(items[int(path[0])], path[1:], value) if path[1:] else value
        return tuple(items)
    inner = _changed(getattr(target, path[0]), path[1:], value) if path[1:] else value
    return replace(target, **{path[0]: inner})
