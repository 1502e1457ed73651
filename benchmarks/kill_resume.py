"""Kill a training run with SIGKILL at random moments, again and again, and compare it with one left alone.

    python -m benchmarks.kill_resume [--stage random|packed|lora] [--kills 10] [--steps 150] [--background]

`random` is pre-training on noise: the bookkeeping alone. `packed` is pre-training on tars of pictures and captions,
which frozen networks encode and keep on the disk; `lora` is fine-tuning on a folder. Networks are tiny. Prints one line
a kill and a verdict; exits with 1 where any number of the log or any weight differs in a single bit.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from backend.checkpoints.resolve import resolve_model
from tests.backend.tiny_weights import write_runnable
from tests.train import fine_tuning, packed, ranks
from tests.train.changed import changed
from tests.train.drawn_folder import draw_folder
from train import pretrain
from train.config import Base, FrozenNames, PackedData, Stage
from train.lora import run as lora
from train.run import checkpoints
from train.run.distributed import Ranks

TIMES = ("seconds", "pictures_per_s", "tflops", "eta_s")
Run = Callable[[Path, Path, int, bool], object]  # inputs, run folder, steps, checkpoints in the background


def saving(background: bool) -> dict[str, object]:
    """A checkpoint every third step."""
    return {"saving.save_every": 3, "saving.background": background}


def run_random(_inputs: Path, run: Path, steps: int, background: bool) -> object:
    return pretrain.run(changed(ranks.config(run, steps=steps), saving(background)))


def run_packed(inputs: Path, run: Path, steps: int, background: bool) -> object:
    params = resolve_model(str(inputs / "model")).preset.params
    mix = (Base(base=32, batch=3), Base(base=64, batch=2))
    stage = Stage(base=64, steps=steps, batch=2, groups=2, mix=mix, learning_rate=1e-3)
    return pretrain.run(
        changed(
            ranks.config(run), saving(background) | {"saving.validate_every": 10}, params=params.dit,
            template=params.text.template, stages=(stage,), frozen=FrozenNames(encoders=str(inputs / "model")),
            data=PackedData(work=inputs / "work", held_out=inputs / "held", cache=run.parent / "cache"),
        )
    )  # fmt: skip


def run_lora(inputs: Path, run: Path, steps: int, background: bool) -> object:
    config = fine_tuning.plan(
        run, inputs / "photos", inputs / "model", run.parent / "cache", steps=steps, learning_rate=1e-3,
        optim__ema_decay=0.9,
    )  # fmt: skip
    return lora.run(changed(config, saving(background) | {"saving.validate_every": 10}))


STAGES: dict[str, Run] = {"random": run_random, "packed": run_packed, "lora": run_lora}


def make_inputs(folder: Path) -> Path:
    """What the stages read: a tiny model, tars of pictures, a folder of pictures."""
    write_runnable(folder / "model")
    sizes = ((64, 64), (128, 64), (40, 40))
    packed.pack(folder / "work", [range(0, 20), range(20, 36)], sizes)
    packed.pack(folder / "held", [range(36, 42)], sizes)
    draw_folder(folder / "photos")
    return folder


def curve(run: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


def weights(run: Path) -> dict[str, torch.Tensor]:
    """As the optimiser left them, and averaged."""
    found = checkpoints.latest(run, Ranks(torch.device("cpu")))
    assert found is not None
    return {f"{part}.{name}": t for part in ("model", "ema") for name, t in checkpoints.read_whole(found, part).items()}


def killed(stage: str, inputs: Path, run: Path, steps: int, background: bool, after: float) -> str:
    """Start the run, let it train for `after` seconds, kill it; says where it stood."""
    code = (
        "from pathlib import Path; from benchmarks.kill_resume import STAGES; "
        f"STAGES[{stage!r}](Path({str(inputs)!r}), Path({str(run)!r}), {steps}, {background})"
    )
    log = run / "metrics.jsonl"
    before = log.stat().st_mtime_ns if log.exists() else 0
    child = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while child.poll() is None and not (log.exists() and log.stat().st_mtime_ns > before):
        time.sleep(0.005)
    time.sleep(after)
    child.kill()
    code_of = child.wait()
    lines = len(log.read_text().splitlines()) if log.exists() else 0
    return f"{'killed' if code_of < 0 else 'was through'} after {after:.2f} s, {lines} lines in the log"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=tuple(STAGES), default="random")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--background", action="store_true", help="write checkpoints in the background")
    parser.add_argument("--seed", type=int, default=0)
    words = parser.parse_args()
    rng, go = random.Random(words.seed), STAGES[words.stage]
    with tempfile.TemporaryDirectory() as temporary:
        inputs = make_inputs(Path(temporary) / "inputs")
        whole, cut = Path(temporary) / "one" / "run", Path(temporary) / "other" / "run"  # each with a cache of its own
        began = time.monotonic()
        go(inputs, whole, words.steps, words.background)
        took = time.monotonic() - began
        for number in range(words.kills):
            after = rng.uniform(0, 1.8 * took / words.kills)  # nine tenths of the run, on average
            print(number + 1, killed(words.stage, inputs, cut, words.steps, words.background, after), flush=True)
        go(inputs, cut, words.steps, words.background)
        ours, theirs = weights(cut), weights(whole)
        same = curve(cut) == curve(whole) and all(torch.equal(ours[name], theirs[name]) for name in theirs)
        verdict = "the same, bit for bit" if same else "DIFFERENT"
        print(f"{words.stage}: {len(curve(whole))} lines and {len(theirs)} tensors: {verdict}")
    sys.exit(not same)


if __name__ == "__main__":
    main()
