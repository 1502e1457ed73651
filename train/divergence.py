"""What a run says that stops before a step whose loss or gradient is not finite."""

from __future__ import annotations

import math
from pathlib import Path

from backend.errors import NumericsError
from train import checkpoint


def stopped_before(step: int, why: str, run_dir: Path, rate: str) -> NumericsError:
    """The error of a run that stops before `step` (from 0); `rate`: the field that lowers its rate.

    Nothing is saved there: the same weights would meet the same pictures, times and noise again, whatever the rate,
    which only enters after the loss. From the last checkpoint on a lower rate leads elsewhere.
    """
    found = checkpoint.latest(run_dir)
    kept = f"the last checkpoint, {found.name}, is untouched" if found else "there is no checkpoint yet"
    goes_on = "goes on from there" if found else "begins anew"
    return NumericsError(
        f"step {step}: {why}; stopped before it, {kept}",
        hint=f"run again with a lower rate, it {goes_on}: --set {rate}=…; "
        "if it stops at the same step once more, look at its pictures",
    )


def check_finite(step: int, loss: float, norm: float, run_dir: Path, rate: str) -> None:
    """Raises NumericsError where the loss or the gradient's norm before clipping is not finite."""
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise stopped_before(step, f"loss {loss:g}, gradient norm {norm:g}", run_dir, rate)
