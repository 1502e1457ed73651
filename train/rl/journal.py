"""Answers of a model on disk, as they came: a line of JSON each, flushed to the disk before it is used.

Light ring: standard library only.
"""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

from backend.disk import write_error
from backend.errors import FileError, os_reason


class Journal:
    """Answers by their key, in memory and in a file. Safe from several threads; a line torn by a crash is ignored."""

    def __init__(self, path: Path) -> None:
        """Raises FileError for a file that cannot be read."""
        self._path = path
        self._lock = threading.Lock()
        self._answers: dict[str, str] = {}
        self._torn = False  # the last line has no end: the next one begins anew
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return
        except OSError as error:
            raise FileError(f"cannot read {path}: {os_reason(error)}") from error
        self._torn = bool(data) and not data.endswith(b"\n")
        for line in data.split(b"\n"):
            try:
                said: Any = json.loads(line)
                self._answers[str(said["key"])] = str(said["answer"])
            except (ValueError, TypeError, KeyError):  # torn, empty or edited by hand: it is asked for again
                continue

    def get(self, key: str) -> str | None:
        with self._lock:
            return self._answers.get(key)

    def add(self, key: str, answer: str) -> None:
        """On return it survives a power cut. Raises FileError, a full disk among them."""
        line = json.dumps({"key": key, "answer": answer}, ensure_ascii=False).encode() + b"\n"
        with self._lock:
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                with self._path.open("ab") as file:
                    file.write(b"\n" + line if self._torn else line)
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:
                self._torn = True  # part of it may be there
                raise write_error(self._path, error) from error
            self._torn = False
            self._answers[key] = answer
