"""The person's own editor on a file, in the terminal."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from backend.errors import UsageError, os_reason, shown


def editor_words() -> list[str]:
    """The editor's command. Raises UsageError where there is none: asked for before anything is waited or paid for."""
    said = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    try:
        words = shlex.split(said)
    except ValueError as error:
        raise UsageError(f"$EDITOR is no command: {shown(said)}: {error}", hint="EDITOR=nano lens …") from None
    if not words:
        raise UsageError("$EDITOR is blank", hint="EDITOR=nano lens …")
    if shutil.which(words[0]) is None:
        raise UsageError(f"cannot start the editor {shown(words[0])}: not found", hint="set $EDITOR")
    return words


def open_editor(path: Path) -> None:
    """Open `path` in $VISUAL or $EDITOR and wait for its end. Raises UsageError for an editor that failed."""
    words = editor_words()
    try:
        with _terminal() as (keys, screen):
            code = subprocess.run([*words, str(path)], stdin=keys, stdout=screen, check=False).returncode
    except OSError as error:
        raise UsageError(f"cannot start the editor {words[0]!r}: {os_reason(error)}", hint="set $EDITOR") from error
    if code != 0:
        raise UsageError(f"the editor {words[0]!r} ended with {code}; nothing is used", hint="set $EDITOR")


@contextmanager
def _terminal() -> Generator[tuple[IO[bytes] | int | None, IO[bytes] | int | None]]:
    """Where an editor reads and draws: the terminal itself, since stdout may be a pipe to `lens gen -`."""
    try:
        terminal = open("/dev/tty", "r+b", buffering=0)
    except OSError:  # none here, as in a test or on Windows
        yield None, sys.stderr.fileno()
        return
    with terminal:
        yield terminal, terminal
