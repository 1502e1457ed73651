"""The two streams: stdout is data, stderr is talk.

`Talk` is made once per command and passed down. User text is never read as Rich markup: lines go out as plain text, and
Rich consoles are made with markup off.

Light ring: Rich is imported inside the functions that draw.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backend.errors import LensError

if TYPE_CHECKING:
    from rich.console import Console

SCHEMA = "envelope/1"


@dataclass(kw_only=True)
class Talk:
    """How one command speaks. At most one of `json` and `stream` is set."""

    command: str  # "gen", "models pull", …
    json: bool = False  # one envelope on stdout at the end
    stream: bool = False  # NDJSON on stdout: events, then the envelope
    quiet: bool = False  # stderr: errors only
    verbosity: int = 0  # 1: details; 2: tracebacks too
    no_color: bool = False
    warnings: list[str] = field(default_factory=list[str])

    def say(self, text: str) -> None:
        """One line on stderr."""
        if not self.quiet:
            _write_error(text)

    def detail(self, text: str) -> None:
        """One line on stderr with -v."""
        if self.verbosity:
            self.say(text)

    def warn(self, text: str) -> None:
        """Something that was asked for and will not happen; also part of the JSON answer."""
        self.warnings.append(text)
        self.say(f"warning: {text}")

    def data(self, line: str | Path) -> None:
        """One line of data on stdout; nothing where JSON was asked for.

        File names go out as the bytes they are, but on a terminal, where the bytes of a name may be commands.
        """
        if self.json or self.stream:
            return
        if looking_at_stdout():
            text = printable(str(line))
            line = text.translate({10: "�", 9: "�"}) if isinstance(line, Path) else text
        _write_out(os.fsencode(line) if isinstance(line, Path) else line.encode("utf-8", "backslashreplace"))

    def heading(self, line: str) -> None:
        """The head of a table, for a person who looks at stdout; a pipe gets the rows alone."""
        if looking_at_stdout():
            self.data(line)

    def event(self, name: str, **fields: Any) -> None:
        """One NDJSON line on stdout with --json-stream."""
        if self.stream:
            _write_out(_json({"event": name, **fields}))

    def result(self, data: dict[str, Any]) -> None:
        """The envelope of a command that worked, where JSON was asked for."""
        if self.json or self.stream:
            self._envelope(data, None)

    def fail(self, error: LensError, data: dict[str, Any] | None = None) -> None:
        """The one-line error, or the envelope; `data` is what was finished nevertheless."""
        if self.json or self.stream:
            self._envelope(data, error)
        else:
            _write_error(f"error: {one_line(str(error))}")
            if error.hint:
                _write_error(f"hint: {one_line(error.hint)}")

    def _envelope(self, data: dict[str, Any] | None, error: LensError | None) -> None:
        answer: dict[str, Any] = {
            "schema": SCHEMA,
            "ok": error is None,
            "command": self.command,
            "data": data,
            "error": error and {"code": error.code, "message": str(error), "hint": error.hint},
        }
        if self.warnings:
            answer["warnings"] = self.warnings
        _write_out(_json({"event": "result", **answer} if self.stream else answer))

    def screen(self) -> Console:
        """A Rich console on stderr that takes every text literally."""
        from rich.console import Console  # 40 ms, only when something is drawn

        return Console(stderr=True, markup=False, highlight=False, emoji=False, no_color=self.no_color or None)


def printable(text: str) -> str:
    """`text` with � for every control and formatting character but line ends and tabs.

    Names, prompts, metadata and answers may come from anyone: they must not move the cursor, set the title, hide
    themselves or turn the direction of what follows (U+202E), nor begin a line that looks like one of ours (U+2028).
    Kept is what scripts and emoji need: the joiners U+200C and U+200D, and the soft marks of direction.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        character
        if character in _HARMLESS or unicodedata.category(character) not in ("Cc", "Cs", "Cf", "Zl", "Zp")
        else "�"
        for character in text
    )


_HARMLESS = "\n\t\u200c\u200d\u200e\u200f\u061c\u00ad"


def one_line(text: str) -> str:
    return " ".join(printable(text).split())


def write_bytes(data: bytes) -> None:
    """Bytes on stdout, at once. Raises OSError, BrokenPipeError where the reader has left among them."""
    if sys.stdout is None:  # pyright: ignore[reportUnnecessaryComparison]  closed by the caller: `lens gen … >&-`
        raise OSError(errno.EBADF, "stdout is closed")
    sys.stdout.flush()
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def _json(value: dict[str, Any]) -> bytes:
    # Surrogates (a file name that is no UTF-8) have no UTF-8 form: escaped ASCII carries them and any locale prints it.
    return json.dumps(value, allow_nan=False).encode()


def _write_out(line: bytes) -> None:
    write_bytes(line + b"\n")


def _write_error(text: str) -> None:
    if sys.stderr is None:  # pyright: ignore[reportUnnecessaryComparison]  closed by the caller: `lens gen … 2>&-`
        return
    with contextlib.suppress(OSError):  # talk that nobody can hear is no reason to lose a picture
        sys.stderr.write(printable(text) + "\n")
        sys.stderr.flush()


def talking_to_a_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()  # pyright: ignore[reportUnnecessaryComparison]


def looking_at_stdout() -> bool:
    return sys.stdout is not None and sys.stdout.isatty()  # pyright: ignore[reportUnnecessaryComparison]
