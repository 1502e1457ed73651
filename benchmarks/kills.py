"""End commands with TERM, INT and KILL at random moments: is anything left over, is what was finished whole?

    python -m benchmarks.kills --folder runs/kills [--kills 34] [--stage gen] [--stage …] [--minutes 40]

For each command: once undisturbed, then `--kills` times ended, each signal in turn; every other time at the moment when
a file is half written. A command that goes on where it stopped is ended again and again until it is through, and what
it made is compared with what the undisturbed one made. At last it runs to its end, and no file may lie there that the
undisturbed one has not. The same line again goes on. Networks are tiny, or Lens-Nano's. The commands are forked from
a process that has imported everything: none of these moments is an import, as `tests/lens_cli/test_interrupt.py` has.
"""

from __future__ import annotations

import argparse
import atexit
import importlib
import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
from PIL import Image

from benchmarks.kill_resume import TIMES
from tests.backend.scripted_endpoint import Endpoint, decision
from tests.backend.tiny_weights import write_runnable
from tests.train.drawn_folder import draw_folder

Row = dict[str, Any]  # a line of the log
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGKILL)
HEAVY = ("torch", "backend", "train", "lens_cli", "openai", "PIL", "pyarrow", "safetensors", "gguf", "numpy", "rich")
PATIENCE = 300.0  # seconds for one command; the machine may be busy
FIELDS = (
    "params.num_layers=2", "params.num_attention_heads=2", "params.mlp_hidden_dim=64", "data.align.weight=0",
    "stages.0.base=64", "stages.0.steps=24", "stages.0.batch=2", "saving.save_every=2", "saving.log_every=1",
)  # fmt: skip
TUNED = (
    "steps=12", "previews=0", "rank=4", "batch=2", "bases=64", "held_out=0", "saving.save_every=2", "saving.log_every=1"
)  # fmt: skip
DATA = (
    "select.area=none", "select.clarity=none", "select.entropy=none", "bucket.bases=64", "pack.format=png",
    "scan.shard_size=6",
)  # fmt: skip


def sets(fields: tuple[str, ...]) -> list[str]:
    return [word for field in fields for word in ("--set", field)]


@dataclass(frozen=True)
class Stage:
    """A command. `words`: of the inputs' folder and the number of the try; what it writes goes to `out`."""

    name: str
    words: Callable[[Path, int], list[str]]
    goes_on: bool  # where it stopped
    whole: Callable[[Path], object]  # of `out`: what was finished, to be compared, or checked alone; raises


def whole_pictures(out: Path) -> int:
    for path in out.glob("*.png"):
        Image.open(path).load()
    return 0


def digest(out: Path) -> object:
    from backend.disk import file_sha256

    return {str(path.relative_to(out)): file_sha256(path) for path in sorted(out.rglob("*")) if path.is_file()}


def run_folder(out: Path) -> object:
    """The log without its times, and every tensor of the last checkpoint."""
    import torch

    from train.run import checkpoints
    from train.run.distributed import Ranks

    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    found = checkpoints.latest(out, Ranks(torch.device("cpu")))
    assert found is not None
    parts = {name: tensor.numpy().tobytes() for name, tensor in checkpoints.read_whole(found, "model").items()}
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows], parts


def tars(out: Path) -> object:
    return digest(out / "pack")


STAGES = (
    Stage("gen", lambda at, n: ["gen", "a red fish", "-s", "1..4", "--steps", "2", "--base", "128", "-o", "out/"],
          False, whole_pictures),
    Stage("refine", lambda at, n: ["refine", f"cats {n}", "-m", "nano", "--reasoner", "api"], False, lambda out: 0),
    Stage("quantize", lambda at, n: ["models", "quantize", "nano", "--to", "q4_k", "-o", "out/q.gguf", "--force"],
          False, digest),
    Stage("data", lambda at, n: ["train", "data", "run", "out", str(at / "photos"), "--workers", "1", *sets(DATA)],
          True, tars),
    Stage("pretrain", lambda at, n: ["train", "pretrain", "--recipe", "nano-smoke", "--random", "--run-dir", "out",
                                     *sets(FIELDS)], True, run_folder),
    Stage("lora", lambda at, n: ["train", "lora", str(at / "photos"), "-m", str(at / "model"), "--run-dir", "out",
                                 *sets(TUNED)], True, run_folder),
)  # fmt: skip


def start(words: list[str], here: Path, modules: Path | None = None) -> int:
    """Fork a child that is `lens` with these words; its process id. Signals reach it once somebody answers them."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    child = os.fork()
    if child:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        return child
    try:
        os.chdir(here)
        os.environ["LENS_HOME"] = str(here / "home")
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(here / name, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600), number)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        from lens_cli import app, entry

        inner = app.main

        def run(**more: object) -> None:
            with suppress(KeyboardInterrupt):  # one that came by now was noted, and is answered
                signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            inner(**more)  # pyright: ignore[reportArgumentType]

        app.main, sys.argv = run, ["lens", *words]
        entry.main()
    except SystemExit as ended:
        if modules is not None:
            modules.write_text("\n".join(name for name in sys.modules if name.partition(".")[0] in HEAVY))
        atexit._run_exitfuncs()  # what an interpreter does at its end; this one is a copy, and ends here
        os._exit(ended.code if isinstance(ended.code, int) else 0)
    except BaseException as error:  # noqa: BLE001
        os.write(2, f"Traceback: {error!r}".encode())
    os._exit(99)


def finish(child: int) -> int:
    """The exit code; negative: the signal that ended it."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return 98


def half_written(here: Path) -> Iterator[Path]:
    """By `os.walk`, which passes over what vanishes meanwhile."""
    for folder, inner, files in os.walk(here):
        yield from (Path(folder, name) for name in (*inner, *files) if name.endswith(".tmp"))


def end_one(stage: Stage, here: Path, inputs: Path, number: int, took: float, chance: random.Random) -> Row:
    """Start the command, end it, and say what was wrong."""
    sent, aimed = SIGNALS[number % 3], number % 2 == 1
    old = set(half_written(here))
    child = start(stage.words(inputs, number), here)
    until = time.monotonic() + (3 * took if aimed else chance.uniform(0, took))
    ended, code = False, 0
    while time.monotonic() < until and not ended:
        done, status = os.waitpid(child, os.WNOHANG)
        ended, code = bool(done), os.waitstatus_to_exitcode(status) if done else 0
        if aimed and not old.issuperset(half_written(here)):
            break
        time.sleep(0.002)
    workers: list[psutil.Process] = []
    if not ended:
        with suppress(psutil.NoSuchProcess):
            workers = psutil.Process(child).children(recursive=True)
        os.kill(child, sent)
        code = finish(child)
    faults: list[str] = []
    _, alive = psutil.wait_procs(workers, timeout=30)
    if alive:
        faults.append(f"{len(alive)} processes stayed")
    said = (here / "stderr").read_text(errors="replace")
    wanted = (0,) if ended else (0, 130) if sent != signal.SIGKILL else (0, -9)
    if code not in wanted:
        faults.append(f"exit code {code}")
    if any(word in said for word in ("Traceback", "internal error", "resource_tracker", "Exception ignored")):
        faults.append(said[-300:])
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    if sent != signal.SIGKILL and len(lines) != (code != 0):
        faults.append(f"not one line: {said[-300:]!r}")
    with suppress(FileNotFoundError):
        if not stage.goes_on:
            stage.whole(here / "out")
    return {"stage": stage.name, "number": number, "signal": sent.name, "aimed": aimed, "code": code, "faults": faults}


def names(here: Path) -> set[str]:
    """Every file; what has a number or a hash in its name once."""
    found = (path.relative_to(here) for path in here.rglob("*") if path.is_file())
    return {"".join(sign for sign in str(path) if not (sign.isdigit() or sign in "abcdef-")) for path in found}


def clean(here: Path) -> Path:
    shutil.rmtree(here, ignore_errors=True)
    here.mkdir(parents=True)
    (here / "out").mkdir()
    return here


def measure(
    stage: Stage, folder: Path, inputs: Path, kills: int, until: float, write: Callable[[Row], None], before: list[Row]
) -> None:
    """One command undisturbed, ended often, and at last to its end."""
    here, whole = folder / stage.name, folder / f"{stage.name}-whole"
    if stage.goes_on:
        stage = replace(stage, words=lambda at, n, words=stage.words: words(at, 0))
    took = 0.0
    for _ in range(2):  # the second time everything is imported
        clean(whole)
        if stage.goes_on:
            (whole / "out").rmdir()
        began = time.monotonic()
        code = finish(start(stage.words(inputs, 10**6), whole, folder / "modules"))
        took = time.monotonic() - began
        assert code == 0, (whole / "stderr").read_text()
        for name in (folder / "modules").read_text().split():
            with suppress(Exception):
                importlib.import_module(name)
    reference = stage.whole(whole / "out")
    done = [row for row in before if row["stage"] == stage.name and "number" in row]
    if not here.exists():
        clean(here)
    chance = random.Random(len(done))
    for number in range(len(done), kills):
        if time.monotonic() > until:
            break
        row = end_one(stage, here, inputs, number, took, chance)
        if stage.goes_on and row["code"] == 0:
            if stage.whole(here / "out") != reference:
                row["faults"] = [*row["faults"], "not what the undisturbed one made"]
            shutil.rmtree(here / "out")
        write(row)
    code = finish(start(stage.words(inputs, 10**6), here))
    left = sorted(names(here) - names(whole))
    if stage.name == "gen":
        left = [name for name in left if not name.endswith(".png")]
    same = code == 0 and stage.whole(here / "out") == reference
    write({"stage": stage.name, "next": code, "left": left, "tmp": [str(p) for p in half_written(here)], "same": same})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=34, help="of each command")
    parser.add_argument("--stage", choices=[stage.name for stage in STAGES], action="append")
    parser.add_argument("--minutes", type=float, default=40, help="after which no command is started")
    words = parser.parse_args()
    until = time.monotonic() + 60 * words.minutes
    folder: Path = words.folder.resolve()
    inputs = folder / "inputs"
    if not inputs.exists():
        write_runnable(inputs / "model")
        draw_folder(inputs / "photos", 12)
    log = folder / "kills.jsonl"
    before = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    def write(row: Row) -> None:
        with log.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)

    with ExitStack() as stack:
        endpoint = stack.enter_context(Endpoint(lambda body: replace(decision("two red cats"), delay=0.05)))
        os.environ |= {"NO_PROXY": "127.0.0.1", "LENS_REASONER__BASE_URL": endpoint.url, "LENS_REASONER__MODEL": "m"}
        for stage in STAGES:
            if (not words.stage or stage.name in words.stage) and time.monotonic() < until:
                measure(stage, folder, inputs, words.kills, until, write, before)
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    ended = [row for row in rows if "number" in row]
    print(f"{len(ended)} ended: {dict(Counter((row['stage'], row['signal']) for row in ended))}")
    print(f"with a fault: {sum(bool(row['faults']) for row in ended)}")
    bad = [row for row in rows if "next" in row and (row["next"] or row["left"] or row["tmp"] or not row["same"])]
    sys.exit(bool(bad) or any(row["faults"] for row in ended))


if __name__ == "__main__":
    main()
