"""The report's charts: what stands at their axes, read from the SVG's own text."""

from __future__ import annotations

import re

import numpy as np
import pytest

from train.data.report.charts import histogram


@pytest.mark.parametrize(
    ("first", "last", "labels"),
    [(1e3, 1e8, "1k 10k 100k 1M 10M 100M"), (0.1, 1e5, "0.1 1 10 100 1k 10k 100k"), (1, 10, "1 2 5 10"),
     (0.5, 150, "0.5 1 2 5 10 20 50 100")],
)  # fmt: skip
def test_a_logarithmic_axis_has_plain_numbers(first: float, last: float, labels: str) -> None:
    """Formulas are off, as names may hold dollar signs: the library's own labels would stand there as formulas."""
    edges = np.geomspace(first, last, 21)
    svg = histogram(edges, np.arange(20), np.zeros(20), "area $x$", log=True, lines={"$3": float(edges[4])})
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", svg)
    assert texts[: texts.index("area $x$")] == labels.split() and texts[-1] == "$3"
