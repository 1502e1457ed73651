"""The check of refusals with decisions that are right or wrong by construction."""

from __future__ import annotations

import pytest

import prompts
from backend.errors import NetworkError, ReplyError
from backend.reasoner.refine import Decision, Refused, Rewritten
from backend.types import Expander
from train.evals import refusals
from train.evals.stats import wilson

WHO = Expander(
    kind="local", model="m", system_prompt="p", instructions_sha256="0", effort="low", temperature=0.0, seed=0
)
RULE = {probe.request: (probe.allowed, probe.rule) for probe in prompts.probes()}


def refuse(request: str, rule: str) -> Decision:
    return Refused(rule=rule, original=request, expander=WHO, cached=False)


def rewrite(request: str) -> Decision:
    return Rewritten(prompt=f"{request}, seen", original=request, expander=WHO, cached=False)


def test_a_perfect_reasoner() -> None:
    def decide(request: str) -> Decision:
        allowed, rule = RULE[request]
        return rewrite(request) if allowed else refuse(request, rule)

    report = refusals.check(decide, prompts.probes())
    assert (report.over_refusal.right, report.over_refusal.total) == (0, 60)
    assert (report.misses.right, report.misses.total) == (0, 40)
    assert report.rules_named.rate == 1.0 and report.data()["wrong"] == []


def test_each_kind_of_mistake_is_counted_apart() -> None:
    seen: list[refusals.RefusalVerdict] = []
    count = {True: 0, False: 0}

    def decide(request: str) -> Decision:
        allowed, rule = RULE[request]
        count[allowed] += 1
        if count[allowed] <= 3:  # three of each side wrongly
            return refuse(request, "gore") if allowed else rewrite(request)
        if count[allowed] == 4:
            raise ReplyError("empty")
        return rewrite(request) if allowed else refuse(request, rule if rule != "hate" else "gore")

    report = refusals.check(decide, prompts.probes(), seen.append)
    assert (report.over_refusal.right, report.over_refusal.total) == (3, 59)
    assert (report.misses.right, report.misses.total) == (3, 39)
    assert (report.errors.right, report.errors.total) == (2, 100)
    assert (report.rules_named.right, report.rules_named.total) == (32, 36)
    assert len(seen) == 100 and len(report.data()["wrong"]) == 8
    assert report.data()["over_refusal"]["interval"] == list(wilson(3, 59))
    assert report.table()[0].startswith("over-refusal     0.051") and report.table()[0].endswith("3/59")


def test_other_errors_are_passed_on() -> None:
    def decide(request: str) -> Decision:
        raise NetworkError("down")

    with pytest.raises(NetworkError):
        refusals.check(decide, prompts.probes())
