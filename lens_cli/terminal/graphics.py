"""What the terminal can draw: asked of it in one question, whose last part every terminal answers.

Light ring: standard library only.
"""

from __future__ import annotations

import os
import re
import select
import sys
import time
from dataclasses import dataclass
from enum import StrEnum


class Graphics(StrEnum):
    """How a picture is drawn."""

    auto = "auto"  # as the terminal answers
    kitty = "kitty"  # Kitty's protocol with Unicode placeholders
    sixel = "sixel"
    half = "half"  # two pixels a cell
    none = "none"  # no pictures at all


@dataclass(frozen=True)
class Answer:
    """What the terminal said, and what a person typed meanwhile."""

    graphics: Graphics
    typed: str = ""


TIMEOUT = 0.2  # seconds: a terminal far away answers in less, and one that never does costs no more
_SILENT = ("", "dumb", "linux", "vt100", "vt102")  # would print the question
_QUESTION = "\x1b_Gi=31,s=1,v=1,a=q,t=d,f=24;AAAA\x1b\\\x1b[c"  # a pixel for Kitty, and which terminal it is
_KITTY = re.compile(r"\x1b_G([^\x1b]*)\x1b\\")
_DEVICE = re.compile(r"\x1b\[\?([0-9;]*)c")


def read_answer(text: str) -> Answer:
    """The answer of a terminal. Sixel first: some that know Kitty's protocol do not know its placeholders."""
    device, kitty = _DEVICE.search(text), _KITTY.search(text)
    rest = re.sub(r"\x1b[^a-zA-Z~]*[a-zA-Z~]?", "", _DEVICE.sub("", _KITTY.sub("", text)))
    typed = "".join(character for character in rest if character.isprintable())
    if device is not None and "4" in device[1].split(";")[1:]:
        return Answer(Graphics.sixel, typed)
    if kitty is not None and kitty[1].endswith(";OK"):
        return Answer(Graphics.kitty, typed)
    return Answer(Graphics.half, typed)


def hears_answers() -> bool:
    """Whether a question to the terminal is answered: stdin is its keyboard, stdout its screen, and both are ours now.

    A pipe on stdin (`echo a cat | lens gen -`) has no keyboard to listen at, and a process in the background that
    touches the keyboard's settings is stopped (SIGTTOU) until somebody brings it to the front.
    """
    if not all(stream is not None and stream.isatty() for stream in (sys.__stdin__, sys.__stdout__)):
        return False
    if not hasattr(os, "tcgetpgrp"):  # Windows
        return True
    try:
        return os.tcgetpgrp(0) == os.getpgrp()
    except OSError:  # a terminal that is not the one that controls this process
        return False


def typed_ahead(keys: int = 0) -> bool:
    """Whether something was typed that nobody has read: the next command, while a picture was drawn. It stays there.

    Who asks the terminal and does not give back what was typed before the answer takes it from the shell.
    """
    try:
        import termios
        import tty
    except ImportError:  # Windows
        return False
    try:
        before = termios.tcgetattr(keys)
    except termios.error:  # no terminal
        return False
    try:
        tty.setcbreak(keys, termios.TCSANOW)  # else a line that is not ended yet would not be seen
        return bool(select.select([keys], [], [], 0)[0])
    finally:
        termios.tcsetattr(keys, termios.TCSANOW, before)


def may_be_asked() -> bool:
    """Whether textual-image may be imported, which then asks: the terminal answers, and nothing was typed ahead."""
    return hears_answers() and ("textual_image" in sys.modules or not typed_ahead())


def ask_terminal() -> Answer:
    """Ask the terminal behind stdin and stdout. Call it before anything else reads the keyboard."""
    if os.environ.get("TERM", "") in _SILENT or not hears_answers():
        return Answer(Graphics.half)
    try:
        import termios
        import tty
    except ImportError:  # Windows: its terminals draw half blocks
        return Answer(Graphics.half)
    keys = sys.stdin.fileno()
    before = termios.tcgetattr(keys)
    try:
        tty.setcbreak(keys, termios.TCSANOW)
        os.write(sys.stdout.fileno(), _QUESTION.encode())
        return read_answer(_read(keys))
    except OSError:
        return Answer(Graphics.half)
    finally:
        termios.tcsetattr(keys, termios.TCSANOW, before)


def _read(keys: int) -> str:
    data, until = b"", time.monotonic() + TIMEOUT
    while not _DEVICE.search(data.decode("utf-8", "replace")) and len(data) < 1 << 16:
        left = until - time.monotonic()
        if left <= 0 or not select.select([keys], [], [], left)[0]:
            break
        data += os.read(keys, 4096)
    return data.decode("utf-8", "replace")
