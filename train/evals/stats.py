"""Intervals for shares of right answers."""

from __future__ import annotations

import math

_Z = 1.959963984540054  # the normal distribution's 97.5 % point


def wilson(right: int, total: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share (E. B. Wilson, 1927): honest for few trials and shares near 0 or 1.

    Returns (0, 1), that is no knowledge, for no trials. Raises ValueError unless 0 <= right <= total.
    """
    if not 0 <= right <= total:
        raise ValueError(f"{right} right of {total} is impossible")
    if total == 0:
        return 0.0, 1.0
    p, z2 = right / total, _Z * _Z
    centre = (p + z2 / (2 * total)) / (1 + z2 / total)
    half = _Z / (1 + z2 / total) * math.sqrt(p * (1 - p) / total + z2 / (4 * total * total))
    return max(0.0, centre - half), min(1.0, centre + half)
