"""Scores and intervals, against closed forms: Wilson's interval, and differences that are known by construction."""

from __future__ import annotations

import pytest

from tests.train.suites import published  # noqa: F401  the folder is a package
from train.evals.stats import wilson
from train.suites.metrics import Edges, Metric, difference, estimate, mean_of_kinds, oneig_text, pooled

EDGES = {kind: Edges(worst={"right": 0.0}, best={"right": 1.0}, images=1) for kind in "ab"}


def answers(right: int, total: int, pictures: int = 1) -> dict[str, list[dict[str, float]]]:
    return {str(n): [{"right": float(n < right)}] * pictures for n in range(total)}


@pytest.mark.parametrize(("right", "total"), [(50, 50), (0, 50), (25, 50), (500, 553), (3, 4)])
def test_an_interval_is_about_wilsons(right: int, total: int) -> None:
    found = estimate(Metric(name="m", value=pooled("right")), {"a": answers(right, total)}, EDGES)
    low, high = wilson(right, total)
    assert found is not None and found.value == right / total
    assert abs(found.low - low) < 0.06 and abs(found.high - high) < 0.06


def test_pictures_of_one_prompt_tell_no_more_than_the_prompt() -> None:
    one = estimate(Metric(name="m", value=pooled("right")), {"a": answers(10, 20)}, EDGES)
    four = {"a": Edges(worst={"right": 0.0}, best={"right": 1.0}, images=4)}
    many = estimate(Metric(name="m", value=pooled("right")), {"a": answers(10, 20, pictures=4)}, four)
    assert one is not None and many is not None and abs((one.high - one.low) - (many.high - many.low)) < 1e-9


def test_the_mean_of_kinds_weighs_kinds_and_the_pooled_one_pictures() -> None:
    rows = {"a": answers(1, 1), "b": answers(0, 9)}
    of_kinds = estimate(Metric(name="m", value=mean_of_kinds("right")), rows, EDGES)
    together = estimate(Metric(name="m", value=pooled("right")), rows, EDGES)
    assert of_kinds is not None and together is not None and (of_kinds.value, together.value) == (0.5, 0.1)


def test_a_difference_is_paired_over_common_prompts() -> None:
    """A constant gain on noisy prompts: unpaired the interval would hold 0, paired it does not."""
    noisy = [n % 10 / 10 for n in range(60)]
    edges = {"a": Edges(worst={"x": 0.0}, best={"x": 1.0}, images=1)}
    before = {"a": {str(n): [{"x": value}] for n, value in enumerate(noisy)}}
    after = {"a": {str(n): [{"x": value + 0.1}] for n, value in enumerate(noisy)} | {"new": [{"x": 9.0}]}}
    found = difference(Metric(name="m", value=pooled("x")), before, after, edges)
    assert found is not None and found.prompts == 60 and found.value == pytest.approx(0.1)
    assert 0.03 < found.low <= 0.1 <= found.high < 0.2
    assert difference(Metric(name="m", value=pooled("x")), {"a": {}}, after, edges) is None


def test_the_best_of_a_prompt_and_the_mean_of_prompts() -> None:
    rows = {"a": {"0": [{"right": 0.0}, {"right": 1.0}], "1": [{"right": 0.0}]}}
    best = estimate(Metric(name="m", value=pooled("right"), reduce="best"), rows, EDGES)
    mean = estimate(Metric(name="m", value=pooled("right"), reduce="mean"), rows, EDGES)
    assert best is not None and mean is not None and (best.value, mean.value) == (0.5, 0.25)


def test_oneigs_text_score_is_its_formula() -> None:
    value = oneig_text(100, "edits", "exact", "matched", "words")
    row = {"edits": 20.0, "exact": 1.0, "matched": 6.0, "words": 8.0, "n": 2}
    assert value({"text": row}) == pytest.approx(1 - 10 * (1 - 0.5) * (1 - 0.75) / 100)
    assert value({"text": {**row, "edits": 999.0, "exact": 0, "matched": 0}}) == pytest.approx(0.0)
