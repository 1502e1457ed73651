"""A measurement as text for people, as JSON data and as bars. Standard library only."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from backend.errors import counted, human_bytes
from lens_cli.terminal.bars import Bar

if TYPE_CHECKING:
    from backend.bench.compare import Comparison, Difference, Distance, Race
    from backend.bench.measure import MeasuredMachine, Measurement
    from backend.bench.timing import TimeSpread
    from backend.types import GenerationRequest

_WIDE = 18  # characters of the first column
_INSIDE = {"fold": "  of it, folding", "step": "  of it, a step"}  # parts that lie in the one above


def label(r: GenerationRequest, random_tokens: int | None) -> str:
    """What sets one case apart, in one line."""
    weights = "" if random_tokens is None else f"random weights, {random_tokens} random text tokens"
    return ", ".join(
        filter(
            None,
            [
                Path(r.model).name,
                weights,
                f"{r.width}x{r.height}",
                counted(r.steps, "step"),
                f"guidance {r.guidance:g}",
            ],
        )
    )


def machine_line(measurement: Measurement) -> str:
    """Where it ran. The load is shown because other programs' share of the machine is not known."""
    m = measurement.machine
    load = "load unknown" if m.load is None else f"load {m.load:.1f} before"
    threads = f"{m.threads} CPU thread{'s' * (m.threads != 1)} ({m.processor})"
    dtype = ", ".join(
        filter(None, [measurement.dtype, measurement.packed and f"linears packed as {measurement.packed}"])
    )
    return f"{m.device}, {dtype}, {threads}, torch {m.torch}, {load}"


def describe(measurement: Measurement) -> list[str]:
    """The tables of one point."""
    m = measurement
    tokens = f"{m.image_tokens} image and {m.text_tokens} text tokens"
    lines = [
        f"{label(m.request, m.random_tokens)}: {tokens}, {m.parameters:,} parameters",
        f"{machine_line(m)}; what else was running is not known",
        f"plan: {m.plan.line()}",
        "",
        f"{'phase':<{_WIDE}}{'cold':>10}{'median':>10}{'min':>10}{'max':>10}{'cpu':>10}   peak memory",
    ]
    for p in m.phases:
        cells = [seconds(p.cold), *spread_cells(p.warm), seconds(p.processor and p.processor.median)]
        peak = "" if p.peak_bytes is None else human_bytes(p.peak_bytes)
        lines.append(
            f"{_INSIDE.get(p.part, p.part):<{_WIDE}}" + "".join(f"{cell:>10}" for cell in cells) + f"   {peak}".rstrip()
        )
    if m.machine.peak_since_start:
        lines.append("peak memory: since the process started; this system cannot reset it")
    if m.random_tokens is not None:
        lines.append("no text encoder: random features stand in for its output, and count nothing")
    if m.comparison is not None:
        lines += ["", *_compared(m.comparison)]
    return lines


def _compared(c: Comparison) -> list[str]:
    heads = f"{'lens':>10}{'reference':>12}{'ratio':>10}{'min':>8}{'max':>8}{'cpu ratio':>12}"
    lines = [f"{'against published':<{_WIDE}}{heads}"]
    for name, race in (("denoise", c.denoise), ("decode", c.decode), ("both", c.both)):
        ratios = race.ratios
        lines.append(
            f"{name:<{_WIDE}}{seconds(race.ours.median):>10}{seconds(race.reference.median):>12}{ratios.median:>9.2f}x"
            f"{ratios.low:>8.2f}{ratios.high:>8.2f}{race.processor_ratios.median:>11.2f}x"
        )
    lines += ["", f"{'relative error':<44}{'latent max':>12}{'rms':>10}{'picture max':>14}{'rms':>10}"]
    for d in c.differences:
        cells = f"{d.latent.maximum:>12.1e}{d.latent.rms:>10.1e}{d.picture.maximum:>14.1e}{d.picture.rms:>10.1e}"
        lines.append(f"{f'{d.what} - {d.against}':<44}{cells}")
    return lines


def seconds(value: float | None) -> str:
    """ "12.3 ms", "4.56 s"; a hyphen for what was not measured."""
    if value is None:
        return "-"
    if value < 0.9995e-3:
        return f"{value * 1e6:.0f} µs"
    return f"{value * 1e3:.3g} ms" if value < 0.9995 else f"{value:.3g} s" if value < 999.5 else f"{value:.0f} s"


def spread_cells(spread: TimeSpread | None) -> list[str]:
    return ["-"] * 3 if spread is None else [seconds(spread.median), seconds(spread.low), seconds(spread.high)]


def bars(m: Measurement) -> list[Bar]:
    """One row of warm phases, and one of the published pipeline where it ran (which encodes no text)."""
    r = m.request
    name = f"{r.width}x{r.height}, {counted(r.steps, 'step')}, g {r.guidance:g}, {m.packed or m.dtype}"
    parts = [(str(p.part), p.warm) for p in m.phases if str(p.part) in ("encode", "denoise", "decode")]
    whole = next(p.warm for p in m.phases if str(p.part) == "picture")
    assert whole is not None, "denoising and decoding always have warm runs"
    out = [Bar(name, tuple((part, warm.median) for part, warm in parts if warm is not None), whole.low, whole.high)]
    if m.comparison is not None:
        c, both = m.comparison, m.comparison.both.reference
        sides = (("denoise", c.denoise.reference.median), ("decode", c.decode.reference.median))
        out.append(Bar("published pipeline", sides, both.low, both.high))
    return out


def as_data(m: Measurement) -> dict[str, Any]:
    """JSON data; seconds and bytes."""
    r = m.request
    return {
        "model": Path(r.model).name,
        "random": m.random_tokens is not None,
        "width": r.width,
        "height": r.height,
        "image_tokens": m.image_tokens,
        "text_tokens": m.text_tokens,
        "steps": r.steps,
        "guidance": r.guidance,
        "seed": r.seeds[0],
        "dtype": m.dtype,
        "packed": m.packed,
        "parameters": m.parameters,
        "machine": _machine(m.machine),
        "plan": m.plan.data(),
        "phases": {
            str(p.part): {
                "cold": p.cold,
                "warm": p.warm and _spread(p.warm),
                "processor": p.processor and _spread(p.processor),
                "peak_bytes": p.peak_bytes,
            }
            for p in m.phases
        },
        "against": m.comparison and _comparison(m.comparison),
    }


def _machine(m: MeasuredMachine) -> dict[str, Any]:
    return {name: getattr(m, name) for name in m.__dataclass_fields__}


def _spread(spread: TimeSpread) -> dict[str, Any]:
    return {"median": spread.median, "min": spread.low, "max": spread.high, "samples": list(spread.samples)}


def _comparison(c: Comparison) -> dict[str, Any]:
    def race(race: Race) -> dict[str, Any]:
        return {
            "lens": _spread(race.ours),
            "reference": _spread(race.reference),
            "ratio": _spread(race.ratios),
            "processor_ratio": _spread(race.processor_ratios),
        }

    def distance(d: Distance) -> dict[str, float]:
        return {"max": d.maximum, "rms": d.rms}

    def difference(d: Difference) -> dict[str, Any]:
        return {"what": d.what, "against": d.against, "latent": distance(d.latent), "picture": distance(d.picture)}

    return {
        "rival": "reference",
        "denoise": race(c.denoise),
        "decode": race(c.decode),
        "both": race(c.both),
        "errors": [difference(d) for d in c.differences],
    }
