"""A curve in the terminal (Braille, two by four dots a character) and as SVG. Standard library only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from lens_cli.terminal.bars import COLOURS

Points = Sequence[tuple[float, float]]

_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # Unicode's numbering, by row and column


@dataclass(frozen=True)
class Frame:
    """What a plot spans."""

    left: float
    right: float
    low: float
    high: float


def frame(series: Sequence[Points]) -> Frame:
    """Find the frame that holds all points. A single value gets room above and below."""
    xs, ys = [x for points in series for x, _ in points], [y for points in series for _, y in points]
    low, high = min(ys), max(ys)
    if low == high:
        low, high = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)
    return Frame(min(xs), max(max(xs), min(xs) + 1), low, high)


def smooth(points: Points, most: int) -> list[tuple[float, float]]:
    """At most `most` points: means of so many neighbours."""
    size = max(1, math.ceil(len(points) / most))
    parts = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]


def braille(points: Points, *, columns: int, rows: int) -> list[str]:
    """Lines of a plot with its scale at the left and below. `points`: at least one."""
    span = frame([points])
    label = max(len(f"{value:.4g}") for value in (span.low, span.high))
    wide, high = 2 * max(4, columns - label - 2), 4 * rows
    cells = [[0] * (wide // 2) for _ in range(rows)]

    def mark(x: float, y: float) -> None:
        column = min(wide - 1, int((x - span.left) / (span.right - span.left) * (wide - 1) + 0.5))
        row = high - 1 - min(high - 1, int((y - span.low) / (span.high - span.low) * (high - 1) + 0.5))
        cells[row // 4][column // 2] |= _DOTS[row % 4][column % 2]

    drawn = smooth(points, wide)
    for (x0, y0), (x1, y1) in zip(drawn, [*drawn[1:], drawn[-1]], strict=True):
        parts = 2 * max(high, 8)
        for i in range(parts + 1):  # a line from each point to the next
            mark(x0 + (x1 - x0) * i / parts, y0 + (y1 - y0) * i / parts)
    out: list[str] = []
    for number, row in enumerate(cells):
        value = f"{span.high:.4g}" if number == 0 else f"{span.low:.4g}" if number == rows - 1 else ""
        out.append(f"{value:>{label}} ┤{''.join(chr(0x2800 + cell) for cell in row)}")
    ends = f"{span.left:.0f}", f"{span.right:.0f}"
    out.append(f"{'':{label}}  {ends[0]}{ends[1]:>{max(1, wide // 2 - len(ends[0]))}}")
    return out


def svg(title: str, series: Sequence[tuple[str, Points]]) -> str:
    """An SVG document with one line a series; each has at least one point."""
    width, height, left, top, bottom = 900, 420, 80, 60, 50
    span = frame([points for _, points in series])

    def place(x: float, y: float) -> tuple[float, float]:
        right, down = (x - span.left) / (span.right - span.left), (span.high - y) / (span.high - span.low)
        return left + right * (width - left - 30), top + down * (height - top - bottom)

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="20" y="26" font-size="16" font-weight="bold">{escape(title)}</text>',
    ]
    for i in range(6):
        step, value = span.left + (span.right - span.left) * i / 5, span.low + (span.high - span.low) * i / 5
        x, y = place(step, value)
        out.append(f'<line x1="{left}" y1="{y:.1f}" x2="{width - 30}" y2="{y:.1f}" stroke="#ddd"/>')
        out.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end" fill="#555">{value:.4g}</text>')
        out.append(f'<text x="{x:.1f}" y="{height - 24}" text-anchor="middle" fill="#555">{step:.0f}</text>')
    for i, (name, points) in enumerate(series):
        colour = COLOURS[(i + 1) % len(COLOURS)]
        dots = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in smooth(points, 2000)))
        out.append(f'<polyline points="{dots}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        out.append(f'<text x="{left + 130 * i}" y="48" fill="{colour}">{escape(name)}</text>')
    return "\n".join([*out, "</svg>\n"])
