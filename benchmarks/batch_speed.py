"""How much faster 100 prompts are by `--prompts` than by as many processes, which ten stand for.

    python -m benchmarks.batch_speed [FLAG]...

The ten run five before and five after the batch, in one home of their own; no prompt is drawn twice. Flags, such as
`--base 128`, go to every `lens gen`.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

COLOURS = "red blue green yellow pink".split()
THINGS = "fish cat star house tree boat car ball moon bird".split()
PLACES = ("on grass", "at night")
LENS = [sys.executable, "-c", "from lens_cli.entry import main; main()", "gen"]
ROOT = Path(__file__).resolve().parent.parent


def main(flags: Sequence[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        many = [f"a {colour} {thing} {where}" for colour in COLOURS for thing in THINGS for where in PLACES]
        (home / "prompts.txt").write_text("\n".join(many))
        run(home, "a warm up", "-s", "0", *flags)  # what is kept for every prompt is made once
        ones = [run(home, f"a small {thing}", "-s", "1", *flags) for thing in THINGS[:5]]
        batch = run(home, "--prompts", "prompts.txt", "-s", "1", "-o", "out/", *flags)
        ones += [run(home, f"a small {thing}", "-s", "1", *flags) for thing in THINGS[5:]]
        assert len(list((home / "out").glob("*.png"))) == len(many)
    for name, at in (("seconds", 0), ("processor seconds", 1)):
        alone = sum(took[at] for took in ones) / len(ones) * len(many)
        ratio = f"{alone / batch[at]:.2f} times"
        print(f"{name}: {batch[at]:.1f} for {len(many)} prompts in one run, {alone:.1f} alone: {ratio}")


def run(home: Path, *words: str) -> tuple[float, float]:
    """(seconds, processor seconds) of one `lens gen`."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    environment = {**os.environ, "LENS_HOME": str(home / "lens"), "PYTHONPATH": str(ROOT)}
    subprocess.run([*LENS, *words], cwd=home, env=environment, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - began, processor


if __name__ == "__main__":
    main(sys.argv[1:])
