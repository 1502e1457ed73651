"""How properties are tested: the same examples in every run, and no clock that a busy machine would fail."""

from __future__ import annotations

from hypothesis import HealthCheck, settings


def steady(examples: int = 100) -> settings:
    """The settings of a property: so many examples, always the same, however long they take to be drawn."""
    return settings(
        max_examples=examples, deadline=None, derandomize=True, database=None,
        suppress_health_check=[HealthCheck.too_slow],
    )  # fmt: skip
