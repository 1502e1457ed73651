"""`lens models quantize`: the plan and the progress on stderr, then what was written on stdout."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from backend.errors import CancelledError, human_bytes
from backend.hub.convert import Conversion, convert, missing_companions, plan_conversion
from backend.types import QuantTarget
from lens_cli.terminal.console import Talk, talking_to_a_terminal
from lens_cli.work.interrupt import Interrupt

EVERY = 10.0  # seconds between two lines of progress where no bar can be drawn


def quantize(source: str, target: QuantTarget, output: str, talk: Talk, *, modulation: bool, force: bool) -> None:
    """Plan, say so, write, and print the path that `lens gen -m` takes. Raises what planning and writing raise."""
    started = time.monotonic()
    plan = plan_conversion(source, target, Path(output), modulation=modulation, force=force)
    for note in plan.notes:
        talk.warn(note)
    talk.say(f"{plan.source.name} as {target}: about {human_bytes(plan.nbytes)}, {human_bytes(plan.free)} free")
    with (
        Interrupt("stopping; Ctrl-C again stops at once") as interrupt,
        _progress(plan, talk) as step,
    ):

        def on_tensor(nbytes: int) -> None:
            if interrupt.pressed:
                raise CancelledError("stopped: nothing was written")
            step(nbytes)

        written = convert(plan, on_tensor)
    kinds = ", ".join(f"{count} as {kind}" for kind, count in written.kinds.items())
    seconds = time.monotonic() - started
    talk.say(f"wrote {human_bytes(written.nbytes)} in {seconds:.1f} s; matrices: {kinds}")
    fallback = written.kinds.get("Q8_0", 0) if target.endswith("_k") else 0
    if fallback:
        plural = "matrices" if fallback > 1 else "matrix"
        talk.say(f"note: {fallback} {plural} as Q8_0: their width is no multiple of 256, which {target} needs")
    lacking = missing_companions(plan)
    if lacking is not None:
        talk.say(f"note: to run it, {lacking}")
    talk.data(plan.result)
    talk.result(
        {
            "path": str(plan.result),
            "file": str(plan.file),
            "bytes": written.nbytes,
            "quant": str(target),
            "modulation": plan.modulation,
            "matrices": written.kinds,
            "seconds": round(seconds, 3),
            "missing": lacking,
        }
    )


@contextmanager
def _progress(plan: Conversion, talk: Talk) -> Generator[Callable[[int], None]]:
    """Gives a function that is told the bytes of each tensor written: a bar, or a line every some seconds."""
    done, said = 0, time.monotonic()

    def write(nbytes: int) -> None:
        nonlocal done, said
        done += nbytes
        if time.monotonic() - said >= EVERY:
            said = time.monotonic()
            talk.say(f"{human_bytes(done)} of {human_bytes(plan.nbytes)}")

    if talk.quiet or not talking_to_a_terminal():
        yield write
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

    columns = (BarColumn(bar_width=30), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=talk.screen(), transient=True) as bar:
        task = bar.add_task("", total=plan.nbytes)
        yield lambda nbytes: bar.advance(task, nbytes)
