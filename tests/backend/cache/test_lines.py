"""Files of JSON Lines. Trusted because the file is cut at every byte, as a crash might."""

from __future__ import annotations

from pathlib import Path

import pytest

from backend.cache.lines import JsonLines
from backend.errors import FileError


def test_a_line_cut_anywhere_costs_itself_alone(tmp_path: Path) -> None:
    path = tmp_path / "new" / "lines.jsonl"
    JsonLines(path).append({"a": "é"})
    JsonLines(path).append({"b": 2}, flush=True)
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for cut in range(first, len(whole) + 1):
        path.write_bytes(whole[:cut])
        JsonLines(path).append({"c": 3})  # by a process that has not read the file
        found = list(JsonLines(path).read())
        kept = [{"b": 2}] if cut >= len(whole) - 1 else []  # the last byte is the line's end
        assert found == [{"a": "é"}, *kept, {"c": 3}], cut


def test_what_is_no_object_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'[1]\n"x"\n\xff\n' + b"[" * 100_000 + b'\n{"a": 1}\n')
    assert list(JsonLines(path).read()) == [{"a": 1}]
    assert list(JsonLines(tmp_path / "none").read()) == []
    with pytest.raises(FileError):
        list(JsonLines(tmp_path).read())


def test_half_of_a_pair_is_written_and_read_back(tmp_path: Path) -> None:
    """What an endpoint answered was paid for, and a file's name need not be UTF-8."""
    lines = JsonLines(tmp_path / "a.jsonl")
    lines.append({"text": "a \ud83d cat"})
    assert list(JsonLines(tmp_path / "a.jsonl").read()) == [{"text": "a \ud83d cat"}]
