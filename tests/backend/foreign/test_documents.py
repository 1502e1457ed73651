"""Documents from elsewhere: whatever the bytes, an answer or one kind of error, soon and in little memory."""

from __future__ import annotations

import json
import os
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.foreign.documents import Unreadable, parse_json, parse_toml, read_bytes, read_text
from tests.properties import steady

FINITE = st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**80), 2**80)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@steady()
@given(JSON)
def test_json_is_what_was_written(value: object) -> None:
    assert parse_json(json.dumps(value)) == value


@steady()
@given(st.binary(max_size=200) | st.text(alphabet='{}[]",:0123456789eE.-+ NaIfinty\\u', max_size=200).map(str.encode))
def test_any_bytes_are_a_document_or_unreadable(data: bytes) -> None:
    try:
        found = parse_json(data)
    except Unreadable:
        return
    assert found == json.loads(data)


NO_JSON = ["", "{", "[" * 100_000, '{"a":' * 50_000, "1" * 5_000, "NaN", "Infinity", "-Infinity", "1e999"]
NO_JSON += ["[" * 65 + "]" * 65]
KEYS = ".".join("a" * 3_000)
NO_TOML = ["a = ", "a = " + "[" * 3_000, "a = " + "1" * 5_000, f"{KEYS} = 1", f"[{KEYS}]"]


@pytest.mark.parametrize("text", NO_JSON, ids=range(len(NO_JSON)))
def test_what_is_no_json_is_said(text: str) -> None:
    with pytest.raises(Unreadable):
        parse_json(text)


@pytest.mark.parametrize("text", NO_TOML, ids=range(len(NO_TOML)))
def test_what_is_no_toml_is_said(text: str) -> None:
    with pytest.raises(Unreadable):
        parse_toml(text)


def test_toml_is_what_was_written() -> None:
    text = "a = 1\n[b]\nc = [1.5, 'x']\n"
    assert parse_toml(text) == tomllib.loads(text)


def test_only_a_regular_file_of_its_size_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"\xef\xbb\xbfabc")
    assert (read_bytes(path, 6), read_text(path)) == (b"\xef\xbb\xbfabc", "abc")
    with pytest.raises(Unreadable, match="larger than 5 B"):
        read_bytes(path, 5)
    os.mkfifo(tmp_path / "fifo")
    for name in (tmp_path / "fifo", Path("/dev/zero")):
        with pytest.raises(Unreadable, match="no regular file"):
            read_bytes(name)
    with pytest.raises(OSError, match="directory"):
        read_bytes(tmp_path)
