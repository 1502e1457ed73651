"""Horizontal stacked bars as SVG, in well under a hundred lines: a plotting library would be the heaviest dependency
of a program that draws one kind of chart. Standard library only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

WIDTH, ROW, TOP, BOTTOM = 900, 34, 84, 44  # pixels
COLOURS = ("#7f8c9a", "#2f6fb0", "#e08a2e", "#4d9a57", "#a0529a")


@dataclass(frozen=True)
class Bar:
    """One row: parts from left to right, and how far the total went down and up over the runs."""

    label: str
    parts: tuple[tuple[str, float], ...]  # (series, seconds); the same series has the same colour in every row
    low: float
    high: float

    @property
    def total(self) -> float:
        return sum(seconds for _, seconds in self.parts)


def draw(title: str, note: str, bars: Sequence[Bar]) -> str:
    """An SVG document. Times are finite and not negative; at least one is above 0."""
    series = list(dict.fromkeys(name for bar in bars for name, _ in bar.parts))
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(series)}
    left = 20 + 7 * max(len(bar.label) for bar in bars)
    step = nice_step(max(max(bar.high, bar.total) for bar in bars))
    ticks = math.ceil(max(max(bar.high, bar.total) for bar in bars) / step)
    scale = (WIDTH - left - 90) / (ticks * step)
    height = TOP + ROW * len(bars) + BOTTOM
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        _text(20, 26, title, 'font-size="16" font-weight="bold"'),
        _text(20, 46, note, 'fill="#555"'),
    ]
    for i, name in enumerate(series):
        out.append(f'<rect x="{left + 110 * i}" y="58" width="12" height="12" fill="{colours[name]}"/>')
        out.append(_text(left + 110 * i + 18, 68, name))
    bottom = height - BOTTOM
    for tick in range(ticks + 1):
        x = left + tick * step * scale
        out.append(f'<line x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{bottom}" stroke="#ddd"/>')
        out.append(_text(x, bottom + 18, f"{tick * step:g} s", 'text-anchor="middle" fill="#555"'))
    for i, bar in enumerate(bars):
        out += _bar(bar, TOP + ROW * i, left, scale, colours)
    return "\n".join([*out, "</svg>\n"])


def _bar(bar: Bar, y: float, left: float, scale: float, colours: dict[str, str]) -> list[str]:
    middle, x = y + ROW / 2, float(left)
    out = [_text(left - 8, middle + 4, bar.label, 'text-anchor="end"')]
    for name, seconds in bar.parts:
        wide = seconds * scale
        out.append(
            f'<rect x="{x:.1f}" y="{y + 6}" width="{wide:.1f}" height="{ROW - 12}" fill="{colours[name]}">'
            f"<title>{escape(name)}: {seconds:.4g} s</title></rect>"
        )
        x += wide
    low, high = left + bar.low * scale, left + bar.high * scale
    out.append(
        f'<path d="M{low:.1f} {middle}H{high:.1f}M{low:.1f} {middle - 4}v8M{high:.1f} {middle - 4}v8" stroke="#222"/>'
    )
    out.append(_text(max(x, high) + 8, middle + 4, f"{bar.total:.3g} s"))
    return out


def _text(x: float, y: float, text: str, style: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(text)}</text>'


def nice_step(most: float) -> float:
    """1, 2 or 5 times a power of ten, so that 4 to 10 of them reach `most`."""
    power = 10.0 ** math.floor(math.log10(most / 4))
    return max((factor * power for factor in (1, 2, 5) if factor * power <= most / 4), default=power)
