"""What a difference's interval says of a claim, and the table; drawing is the other tests' matter."""

from __future__ import annotations

import pytest

from tests.train.results import result
from train.evals.nano import EvalReport
from train.suites.claims import (
    CLAIMS,
    NOT_SHOWN,
    OPPOSITE,
    ROLES,
    SHOWN,
    UNMEASURED,
    Finding,
    arms_of,
    finding,
    page,
    recorded_finding,
    verdict_of,
)

BY_ID = {claim.id: claim for claim in CLAIMS}


def reports(before: int, after: int, of: int = 40, kind: str = "colors") -> tuple[EvalReport, EvalReport]:
    """The first `before` and the first `after` of so many prompts right."""
    one, two = (EvalReport(results=[result(kind, n, n < k) for n in range(of)]) for k in (before, after))
    return one, two


@pytest.mark.parametrize(
    ("claim", "interval", "verdict"),
    [
        ("rl", (0.01, 0.2), SHOWN), ("rl", (-0.01, 0.2), NOT_SHOWN), ("rl", (-0.2, -0.01), OPPOSITE),
        ("turbo", (-0.04, 0.1), SHOWN), ("turbo", (-0.06, 0.1), NOT_SHOWN), ("turbo", (-0.2, -0.06), OPPOSITE),
    ],
)  # fmt: skip
def test_an_interval_decides(claim: str, interval: tuple[float, float], verdict: str) -> None:
    assert verdict_of(BY_ID[claim], interval) == verdict


def test_findings_of_known_answers() -> None:
    gained, none = finding(BY_ID["rl"], *reports(10, 30)), finding(BY_ID["rl"], *reports(20, 21))
    assert gained.verdict == SHOWN and gained.difference == pytest.approx(0.5) and gained.pairs == 40
    assert none.verdict == NOT_SHOWN and (none.before, none.after) == (0.5, 0.525)
    assert finding(BY_ID["rl"], *reports(30, 10)).verdict == OPPOSITE
    assert finding(BY_ID["turbo"], *reports(40, 40)).interval[0] > -0.06  # type: ignore[index]
    # Only prompts of text count for the claim about them.
    with pytest.raises(ValueError):
        finding(BY_ID["rl-no-text"], *reports(10, 30))
    assert finding(BY_ID["rl-no-text"], *reports(10, 30, kind="text")).verdict == SHOWN


def test_what_was_measured_before_is_said_as_it_was() -> None:
    """43 of 90 right after brief captions and 35 after dense ones: no advantage of dense ones."""
    found = recorded_finding(BY_ID["captions"])
    assert found.verdict == NOT_SHOWN and found.difference == -0.09 == pytest.approx((35 - 43) / 90, abs=0.002)
    assert "benchmarks.caption_ablation" in found.why


def test_the_table_has_every_claim_once_and_the_papers_numbers() -> None:
    text = page([Finding(claim=claim, verdict=UNMEASURED, why="no weights: x") for claim in CLAIMS], about=["here"])
    rows = [line for line in text.splitlines() if line.startswith("|")][2:]
    assert len(rows) == len(CLAIMS) == 13 and all(row.count("|") == 7 for row in rows)
    for number in (
        "0.843 → 0.930",
        "0.916 → 0.930",
        "0.920 → 0.930",
        "0.930 → 0.914",
        "0.832 → 0.869",
        "0.868 → 0.926",
        "three pictures of each prompt, drawn with an earlier decoder",
    ):
        assert number in text, number
    assert all(arm.role in ROLES and (arm.prompt is None or arm.prompt in ROLES) for arm in arms_of(CLAIMS))
    assert len({claim.id for claim in CLAIMS}) == 13
