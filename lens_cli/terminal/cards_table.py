"""The answer to "will it run on my card?" as lines of a table that fits 80 columns. Standard library only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from backend.errors import counted, human_bytes
from backend.memory.cards import BASIS, Drawing, Outlook, encoder_seconds, outlooks
from backend.presets import Preset

NAMES = {"BF16": "bfloat16", "F32": "float32"}  # of `HubSource.weights` for a person
HEADER = f"{'CARD':<10} {'SUCH AS':<13} {'WEIGHTS':<7} {'WHERE THEY LIE':<21} {'PEAK':>8} {'A PICTURE':>10}"


def answers(preset: Preset, drawing: Drawing) -> list[Outlook]:
    """Every card with the first source, and with the quantised one where there is one. Nothing for what is embedded."""
    chosen = (*preset.sources[:1], *preset.packed[:1])
    found = [outlooks(drawing, source) for source in chosen]
    # A processor multiplies what is quantised no faster, and decodes it first.
    return [one for number, rows in enumerate(found) for one in rows if number == 0 or one.card.device != "cpu"]


def table(preset: Preset, drawing: Drawing, found: Sequence[Outlook]) -> Iterator[str]:
    """Lines for a person."""
    guided = "with guidance" if drawing.guided else "without guidance"
    steps = counted(drawing.steps, "step")
    yield f"will it run? {drawing.width}x{drawing.height}, {steps} {guided}; seconds are calculated"
    yield HEADER
    for one in found:
        peak = "" if one.plan is None else human_bytes(one.plan.peak.most)
        took = "" if one.seconds is None else seconds(one.seconds)
        weights = NAMES.get(one.source.weights, "-") if one.plan is None else one.plan.held
        row = f"{one.card.name:<10} {one.card.example:<13} {weights:<7} {one.where:<21} {peak:>8} {took:>10}"
        yield row.rstrip()
    more = encoder_seconds(drawing.params.text)
    yield f"a new prompt: about {more:.0f} s more, for the text encoder read from a disk of 2 GB/s"
    for source, flag in ((preset.sources[0], ""), *((packed, " --packed") for packed in preset.packed[:1])):
        size = "size unknown" if source.total is None else human_bytes(source.total)
        weights = NAMES.get(source.weights, source.weights)
        yield f"to fetch, {weights:<8} {size:>8}: lens models pull {preset.name}{flag}"
    yield from BASIS


def seconds(value: float) -> str:
    """Two digits, since no more can be known: 3.74 -> "~3.7 s", 187 -> "~190 s", 812 -> "~14 min"."""
    if value >= 300:
        return f"~{value / 60:.0f} min"
    return f"~{float(f'{value:.2g}'):g} s"
