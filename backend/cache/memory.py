"""What one process keeps in memory to save time: values by name, each made for one key."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any


class Memory:
    """Keeps one value a name: under another key the name has another value, and the old one goes first."""

    def __init__(self) -> None:
        self._held: dict[str, tuple[Hashable, Any]] = {}

    def has(self, name: str, key: Hashable) -> bool:
        return name in self._held and self._held[name][0] == key

    def get(self, name: str, key: Hashable, make: Callable[[], Any]) -> Any:
        """The value for this key, made now where there is none."""
        if not self.has(name, key):
            self._held.pop(name, None)  # before the new one needs the room
            self.put(name, key, make())
        return self._held[name][1]

    def put(self, name: str, key: Hashable, value: Any) -> None:
        self._held[name] = key, value

    def value(self, name: str) -> Any:
        """Whatever is there under this name; None: nothing."""
        return self._held.get(name, (None, None))[1]

    def drop(self, *names: str) -> None:
        """Let go of these; of everything where none is named."""
        for name in names or list(self._held):
            self._held.pop(name, None)

    def drop_others(self, wanted: Mapping[str, Hashable]) -> bool:
        """Let go of what has these names and other keys; True: there was something."""
        others = [name for name, key in wanted.items() if name in self._held and not self.has(name, key)]
        if others:
            self.drop(*others)
        return bool(others)
