"""What a process says of its own memory."""

from __future__ import annotations

import subprocess
import sys

_LARGE = 400 * 10**6
_CHILD = "from backend.memory.exhausted import process_peak_bytes; print(process_peak_bytes())"


def test_a_child_does_not_inherit_the_peak_of_a_large_parent() -> None:
    """As ru_maxrss would on Linux; `lens gen` called by a large program says what it took itself."""
    held = bytearray(b"x") * _LARGE
    done = subprocess.run([sys.executable, "-c", _CHILD], check=True, capture_output=True, timeout=120)
    assert len(held) == _LARGE
    assert 5 * 10**6 < int(done.stdout) < _LARGE
