"""Every parser of foreign bytes under thousands of inputs that are nearly right: `make fuzz` long, here short.

An input ends as a value or as a LensError of one line, within 2 seconds. LENS_FUZZ_MINUTES: minutes for all together;
the memory of the process may then grow by 300 MB at most.
"""

from __future__ import annotations

import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from backend.errors import LensError
from tests.fuzz.mutants import mutants
from tests.fuzz.targets import TARGETS, Target

MINUTES = float(os.environ.get("LENS_FUZZ_MINUTES", "0"))
SHORT, LONG = 10, 500  # inputs of a round
SLOW = 2.0  # seconds of processor time for one input
GROWTH = 300_000  # kB of the process, over all inputs of a parser


def check(target: Target, data: bytes, folder: Path) -> None:
    began = time.process_time()
    try:
        target.read(data, folder)
    except LensError as error:
        assert "\x1b" not in str(error) and len(str(error)) < 20_000, str(error)[:300]
    except target.promised:
        pass
    took = time.process_time() - began
    assert took < SLOW, f"{took:.1f} s for {len(data)} bytes"


def rounds(once: Callable[[], None]) -> None:
    """One round, or as many as this parser's share of the minutes holds."""
    end = time.monotonic() + MINUTES * 60 / len(TARGETS)
    once()
    while time.monotonic() < end:
        once()


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_a_nearly_right_input_is_read_or_refused(target: Target, tmp_path: Path) -> None:
    seeds = target.seeds()
    for number, seed in enumerate(seeds):  # a good input is read; and what is imported is no part of the times below
        (tmp_path / str(number)).mkdir()
        target.read(seed, tmp_path / str(number))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    count = 0

    @settings(
        max_examples=LONG if MINUTES else SHORT, deadline=None, database=None, derandomize=not MINUTES,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
        phases=[Phase.generate, *([Phase.shrink] if MINUTES else [])],
    )  # fmt: skip
    @given(mutants(seeds))
    def once(data: bytes) -> None:
        nonlocal count
        count += 1
        with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
            check(target, data, Path(folder))

    rounds(once)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(f"{target.name}: {count:,} inputs, {grown / 1000:.0f} MB more")  # seen with -rP, as `make fuzz` has it
    assert grown < GROWTH


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_no_input_at_all(target: Target, tmp_path: Path) -> None:
    for number, data in enumerate((b"", b"\0" * 64, b"null", b"[]", b"{}", b"\xff\xfe\xfd")):
        (tmp_path / str(number)).mkdir()
        check(target, data, tmp_path / str(number))
