"""Answers of a model on disk, as they came: a line of JSON each, flushed to the disk before it is used.

Light ring: standard library only.
"""

from __future__ import annotations

from pathlib import Path

from backend.cache.lines import JsonLines


class Journal:
    """Answers by their key, in memory and in a file. Safe from several threads; a line torn by a crash is ignored."""

    def __init__(self, path: Path) -> None:
        """Raises FileError for a file that cannot be read."""
        self._lines = JsonLines(path)
        rows = (row for row in self._lines.read() if "key" in row and "answer" in row)  # else: edited by hand
        self._answers = {str(row["key"]): str(row["answer"]) for row in rows}

    def get(self, key: str) -> str | None:
        return self._answers.get(key)

    def add(self, key: str, answer: str) -> None:
        """On return it survives a power cut. Raises FileError, a full disk among them."""
        self._lines.append({"key": key, "answer": answer}, flush=True)
        self._answers[key] = answer
