"""`lens train rl measure` behind its flags: what adapters made of a model, as a table and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from backend.disk import write_atomic
from backend.errors import UsageError
from backend.lora.names import parse_lora
from backend.types import LoraMode, LoraUse
from lens_cli.terminal.console import Talk
from train.rl.measure import BASE, Measurements, MeasurePlan, measure


def run(
    model: str, adapters: Sequence[str], out: Path, talk: Talk, *, images: int, limit: int | None,
    guidances: Sequence[float], steps: int | None, scenes: int, compute: str,
) -> None:  # fmt: skip
    """Print the table, write OUT/measured.json. Raises LensError."""
    if compute not in ("bfloat16", "float32"):
        raise UsageError(f"--compute {compute!r} is neither bfloat16 nor float32")
    plan = MeasurePlan(
        model=model, adapters=named(adapters), out=out, images=images, limit=limit, guidances=tuple(guidances),
        steps=steps, scenes=scenes, compute=cast("Any", compute),
    )  # fmt: skip
    found = measure(plan, talk.say)
    for line in table(plan, found):
        talk.data(line)
    data = as_json(plan, found)
    write_atomic(out / "measured.json", json.dumps(data, indent=1).encode())
    talk.result(data)


def named(adapters: Sequence[str]) -> dict[str, LoraUse]:
    """Adapters by a short name: the folder's that a run lives in, with its strength where that is not 1.

    Raises UsageError for two of one name, and what `parse_lora` raises.
    """
    out: dict[str, LoraUse] = {}
    for text in adapters:
        use = parse_lora(text, LoraMode.fused)
        path = Path(use.path)
        name = path.parent.name if path.stem == "lora" else path.stem
        name = name if use.scale == 1.0 else f"{name}={use.scale:g}"
        if name in out:
            raise UsageError(f"two adapters would be called {name!r}", hint="rename one of the files")
        out[name] = use
    return out


def table(plan: MeasurePlan, found: Measurements) -> list[str]:
    """What a person reads."""
    lines: list[str] = []
    for guidance, each in found.at.items():
        for name in plan.adapters:
            low, high = each[BASE].report.overall, each[name].report.overall
            lines.append(f"{name} against {plan.model}, guidance {guidance:g}: {low:.3f} -> {high:.3f}")
            lines += [f"  {row}" for row in found.compared(guidance, name).table()]
        for name, one in each.items():
            spread = "" if one.spread is None else f"  spread {one.spread:.4f}"
            lines.append(f"  {name:<16} sharpness {one.sharpness:.5f}  saturation {one.saturation:.4f}{spread}")
    for name in plan.adapters if found.losses else ():
        change, half = found.loss_change(name)
        before = sum(found.losses[BASE]) / len(found.losses[BASE])
        lines.append(f"flow-matching loss of {plan.scenes} scenes, {name}: {before:.5f} {change:+.5f} +- {half:.5f}")
    return lines


def as_json(plan: MeasurePlan, found: Measurements) -> dict[str, Any]:
    """The same for programs."""
    return {
        "model": plan.model,
        "adapters": {name: {"sha256": use.sha256, "strength": use.scale} for name, use in plan.adapters.items()},
        "at": {
            f"{guidance:g}": {
                name: {
                    **one.report.data(),
                    "spread": one.spread,
                    "sharpness": one.sharpness,
                    "saturation": one.saturation,
                    **({} if name == BASE else {"against_base": found.compared(guidance, name).data()}),
                }
                for name, one in each.items()
            }
            for guidance, each in found.at.items()
        },
        "flow_matching_loss": {name: sum(each) / len(each) for name, each in found.losses.items()},
        "flow_matching_change": {name: found.loss_change(name) for name in plan.adapters} if found.losses else {},
    }
