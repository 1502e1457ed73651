"""The report's charts as SVG text, drawn by matplotlib without a window or a global state.

Heavy ring: matplotlib, numpy.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

KEPT, DROPPED, LINE = "#3a7d44", "#c8553d", "#333333"
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: small, searchable, in the reader's font
    "svg.hashsalt": "lens",  # the same numbers give the same file
    "font.family": "sans-serif",
    "font.size": 9.0,
    "text.parse_math": False,  # names of sources are text, whatever dollar signs they have
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def histogram(
    edges: np.ndarray,
    kept: np.ndarray,
    dropped: np.ndarray,
    label: str,
    *,
    log: bool = False,
    lines: Mapping[str, float] | None = None,
) -> str:
    """Counts of kept pictures with the dropped ones on top, and named vertical lines. `log`: the horizontal axis."""
    with mpl.rc_context(STYLE):
        figure, axes = new_axes(4.6, 2.3)
        widths = np.diff(edges)
        axes.bar(edges[:-1], kept, widths, align="edge", color=KEPT, label="kept")
        axes.bar(edges[:-1], dropped, widths, bottom=kept, align="edge", color=DROPPED, label="dropped")
        for name, at in (lines or {}).items():
            axes.axvline(at, color=LINE, linewidth=1.0, linestyle="--")
            axes.annotate(
                name, (at, 1.0), (2, 0), xycoords=("data", "axes fraction"), textcoords="offset points", va="top"
            )
        if log:
            axes.set_xscale("log")
            ticks = _log_ticks(float(edges[0]), float(edges[-1]))
            axes.set_xticks(ticks, [_short(tick) for tick in ticks])
            axes.set_xticks([], minor=True)
        axes.set_xlim(edges[0], edges[-1])
        axes.set_xlabel(label)
        axes.set_ylabel("pictures")
        return as_svg(figure)


def _log_ticks(first: float, last: float) -> list[float]:
    """Powers of ten within the axis; where they are few, twice and five times them as well.

    Set by hand: what the library labels a logarithmic axis with is a formula, and formulas are off.
    """
    tens = [10.0**power for power in range(math.floor(math.log10(first)), math.ceil(math.log10(last)) + 1)]
    found = [tick for tick in tens if first <= tick <= last]
    if len(found) < 4:
        found = [tick for ten in tens for tick in (ten, 2 * ten, 5 * ten) if first <= tick <= last]
    return found


def _short(number: float) -> str:
    """20000 -> "20k"."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:g}{unit}"
    return f"{number:g}"


def bars(names: Sequence[str], values: Sequence[float], label: str) -> str:
    """Horizontal bars from top to bottom, each with its number."""
    with mpl.rc_context(STYLE):
        figure, axes = new_axes(6.5, 0.6 + 0.26 * len(names))
        where = np.arange(len(names))[::-1]
        drawn = axes.barh(where, values, color=KEPT)
        axes.bar_label(drawn, [f"{value:,.0f}" for value in values], padding=3)
        axes.set_yticks(where, names)
        axes.margins(x=0.15)
        axes.set_xlabel(label)
        return as_svg(figure)


def new_axes(width: float, height: float) -> tuple[Figure, Any]:
    """A figure with one plot; inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def as_svg(figure: Figure) -> str:
    """The figure as it stands inside HTML; the same figure gives the same text."""
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    return text[text.index("<svg") :]  # inside HTML there is no XML declaration
