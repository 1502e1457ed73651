"""The report's plots as SVG text, drawn by matplotlib without a window or a global state.

Heavy ring: matplotlib.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib as mpl

from train.data.report.charts import STYLE, as_svg, new_axes

BETTER, WORSE, LINE, QUIET = "#3a7d44", "#c8553d", "#333333", "#9a9a9a"


def effects(rows: Sequence[tuple[str, float, float, float, bool]], label: str) -> str:
    """A line for each (name, mean, low, high, promoted): the difference with its interval, and zero."""
    with mpl.rc_context(STYLE):
        figure, axes = new_axes(6.5, 0.8 + 0.3 * len(rows))
        places = list(range(len(rows)))[::-1]
        for place, (_, mean, low, high, promoted) in zip(places, rows, strict=True):
            colour = BETTER if promoted else QUIET
            axes.plot([low, high], [place, place], color=colour, linewidth=2)
            axes.plot([mean], [place], "o", color=colour, markersize=5)
        axes.axvline(0.0, color=LINE, linewidth=0.8, linestyle="--")
        axes.set_yticks(places, [name for name, *_ in rows])
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axes.set_xlabel(label)
        return as_svg(figure)


def grouped(groups: Mapping[str, Sequence[float]], names: Sequence[str], label: str) -> str:
    """Horizontal bars: for each group one bar of each name."""
    with mpl.rc_context(STYLE):
        figure, axes = new_axes(6.5, 0.9 + 0.2 * len(groups) * len(names))
        height, colours = 0.8 / len(names), (QUIET, WORSE, BETTER)
        for number, name in enumerate(names):
            places = [-(place + number * height) for place in range(len(groups))]
            values = [values[number] for values in groups.values()]
            axes.barh(places, values, height * 0.92, color=colours[number % 3], label=name)
        axes.set_yticks([-(place + 0.4 - height / 2) for place in range(len(groups))], list(groups))
        axes.set_xlim(0, 1)
        axes.set_xlabel(label)
        axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        return as_svg(figure)


def scatter(before: Sequence[float], after: Sequence[float], first: str, second: str) -> str:
    """Each request's score before and after; above the line it won."""
    with mpl.rc_context(STYLE):
        figure, axes = new_axes(3.6, 3.4)
        axes.plot([0, 1], [0, 1], color=LINE, linewidth=0.8, linestyle="--")
        for wanted, colour in ((1, BETTER), (-1, WORSE), (0, QUIET)):
            points = [(b, a) for b, a in zip(before, after, strict=True) if (a > b) - (a < b) == wanted]
            axes.scatter([b for b, _ in points], [a for _, a in points], s=10, color=colour, alpha=0.5, linewidths=0)
        axes.set_xlim(-0.03, 1.03)
        axes.set_ylim(-0.03, 1.03)
        axes.set_xlabel(first)
        axes.set_ylabel(second)
        return as_svg(figure)


def steps(pictures: Sequence[int], scores: Sequence[float], names: Sequence[str]) -> str:
    """The validation score of the prompt in force over the pictures that were drawn."""
    with mpl.rc_context(STYLE):
        figure, axes = new_axes(6.5, 2.3)
        axes.step(pictures, scores, where="post", color=BETTER, linewidth=1.6)
        for x, y, name in zip(pictures, scores, names, strict=True):
            if name:
                axes.annotate(name, (x, y), (3, 3), textcoords="offset points")
        low, high = min(scores), max(scores)
        margin = max(0.02, 0.2 * (high - low))
        axes.set_ylim(low - margin, high + margin)
        axes.set_xlabel("candidates that were tried")
        axes.set_ylabel("validation score")
        return as_svg(figure)
