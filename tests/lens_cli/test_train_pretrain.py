"""`lens train pretrain`, `status` and `export` through the command line, on a run of a few thousand parameters.

The run is made by the commands themselves; what they print is compared with the files that the run left, and the
exported network with the checkpoint's tensors, read back by the loader that `lens gen` uses.
"""

from __future__ import annotations

import importlib.util
import io
import json
import re
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch
from xml.etree import ElementTree as ET

import pytest
import torch

from lens_cli.app import main
from tests.train import packed as made
from train.run import checkpoints
from train.run.distributed import Ranks


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


def run(*words: str) -> Done:
    """The command in this process: a child would spend its time on importing torch once more."""
    out, err = io.TextIOWrapper(io.BytesIO(), encoding="utf-8"), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), patch.object(sys, "argv", ["lens", *words]):
        try:
            main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
    out.flush()
    return Done(code, out.buffer.getvalue().decode(), err.getvalue())  # type: ignore[attr-defined]


TINY = [
    "params.num_layers=2", "params.num_attention_heads=2", "params.mlp_hidden_dim=64", "data.align.weight=0",
    "stages.0.base=64", "stages.0.steps=4", "stages.0.batch=2", "saving.save_every=2", "saving.log_every=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "first"
    done = run(*command(folder))
    assert done.code == 0, done.err
    assert done.out.splitlines() == [str(folder)]  # stdout is data
    return folder


def command(folder: Path, *more: str) -> list[str]:
    sets = [word for setting in TINY for word in ("--set", setting)]
    return ["train", "pretrain", "--recipe", "nano-smoke", "--random", "--run-dir", str(folder), *sets, *more]


def test_the_log_has_step_and_loss_and_the_board_has_them_too(trained: Path) -> None:
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4] and all(row["loss"] > 0 for row in rows)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # its own reader

    board = EventAccumulator(str(trained / "tensorboard"))
    board.Reload()
    assert [round(event.value, 4) for event in board.Scalars("loss")] == [round(row["loss"], 4) for row in rows]


def test_status(trained: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    drawn = tmp_path / "loss.svg"
    done = run("train", "status", str(trained), "--svg", str(drawn))
    assert done.code == 0 and "step 4 of 4 (100.0 %)" in done.out
    assert f"loss {rows[-1]['loss']:.4f}" in done.out and "checkpoints: 2, 4" in done.out
    plot = [line for line in done.out.splitlines() if "┤" in line]
    assert len(plot) == 10 and any(0x2800 < ord(character) < 0x2900 for line in plot for character in line)
    line = next(e for e in ET.fromstring(drawn.read_text()).iter() if e.tag.endswith("polyline"))
    heights = [float(point.split(",")[1]) for point in line.attrib["points"].split()]
    losses = [row["loss"] for row in rows]
    assert sorted(range(4), key=lambda i: heights[i]) == sorted(range(4), key=lambda i: -losses[i])  # y grows downwards
    answer = json.loads(run("train", "status", str(trained.parent), "--json").out)  # a folder of runs
    assert [(one["step"], one["steps"]) for one in answer["data"]["runs"]] == [(4, 4)]


def test_export_gives_the_averaged_network(trained: Path) -> None:
    from backend.checkpoints.resolve import resolve_model
    from backend.loading import load_transformer

    done = run("train", "export", str(trained), "--dtype", "float32")
    assert done.code == 0, done.err
    found = checkpoints.latest(trained, Ranks(torch.device("cpu")))
    assert found is not None
    average = checkpoints.read_whole(found, "ema")
    for path in done.out.splitlines():
        loaded = load_transformer(resolve_model(path), torch.float32, "cpu").state_dict()
        assert loaded.keys() == average.keys()
        assert all(torch.equal(loaded[name], average[name]) for name in average)
    assert (trained / "export" / "first.safetensors").is_file()
    done = run("train", "export", str(trained), "--weights", "model", "--out", str(trained / "raw"))
    raw = load_transformer(resolve_model(str(trained / "raw" / "transformer")), torch.float32, "cpu").state_dict()
    last = checkpoints.read_whole(found, "model")
    assert all(torch.equal(raw[name], last[name].bfloat16().float()) for name in last)


def test_the_plan_starts_nothing(tmp_path: Path) -> None:
    done = run("train", "pretrain", "--recipe", "paper-512", "--dry-run", "--set", "hardware.price=2", "--run-dir",
               str(tmp_path / "run"))  # fmt: skip
    assert done.code == 0 and not (tmp_path / "run").exists()
    assert "4,104,225,152 parameters" in done.out and "1,228,800,000 pictures" in done.out
    hours = float(re.findall(r"([\d,]+) GPU-hours", done.out)[0].replace(",", ""))
    money = float(re.findall(r"money +about ([\d,]+)", done.out)[0].replace(",", ""))
    assert money == pytest.approx(2 * hours, rel=1e-3)
    # By hand: 400K steps of 3072 pictures of 3 x 3.68 TFLOP (the fact sheet's), on A100s at 14 % of 312 TFLOP/s.
    assert hours == pytest.approx(400_000 * 3072 * 3 * 3.68e12 / (0.14 * 312e12) / 3600, rel=0.01)


def test_the_plan_knows_the_data(tmp_path: Path) -> None:
    """Twelve pictures of two shapes, in batches of 5 and 2: two and one a shape and epoch, by hand."""
    made.pack(tmp_path / "work", [range(0, 12)], ((64, 64), (64, 64), (40, 40)))  # 8 of 64 x 64, 4 of 32 x 32
    sets = ["stages.0.steps=9", "stages.0.groups=2", "stages.0.mix.0.base=32", "stages.0.mix.0.batch=2"]
    sets += ["stages.0.mix.1.base=64", "stages.0.mix.1.batch=5", "stages.0.mix.2.base=96", "start_from=none"]
    words = [
        word for setting in [*sets, "machine.device=cpu", f"data.cache={tmp_path}/cache"] for word in ("--set", setting)
    ]
    plan = ["train", "pretrain", "--recipe", "paper-mixed", "--data", str(tmp_path / "work"), "--dry-run"]
    done = run(*plan, *words)
    assert done.code == 0, done.err
    assert "12 pictures of 2 shapes" in done.out
    assert "sees each picture 6.00 times; an epoch leaves out 3" in done.out  # 9 x 2 groups of the epoch's 2 + 1
    answer = json.loads(run(*plan, *words, "--json").out)["data"]["plan"]["data"]
    assert answer["cache"]["latents"] == 4 * 128 * (8 * 16 + 4 * 4)
    assert answer["cache"]["features"] == 12 * 170 * 4 * 2880 * 4
    assert not (tmp_path / "cache").exists()
    done = run(*plan, "--set", "stages.0.mix.0.base=32")
    assert done.code == 2 and "no batch size is given" in done.err
    done = run("train", "pretrain", "--recipe", "paper-512", "--data", str(tmp_path / "none"), "--dry-run")
    assert done.code == 0 and "nothing is said about the data" in done.err and "GPU-hours" in done.out


def test_quiet_is_quiet(tmp_path: Path) -> None:
    done = run(*command(tmp_path / "run", "--set", "stages.0.steps=1", "--quiet"))
    assert done.code == 0 and "loss" not in done.err and done.out.splitlines() == [str(tmp_path / "run")]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--recipe", "paper"], "unknown recipe 'paper'"),
        (["--recipe", "nano", "--data", "x", "--random"], "contradict"),
        (["--set", "clip=1"], "did you mean optim.clip?"),
        (["--set", "hardware.kind=toaster", "--dry-run"], "hardware.kind='toaster' is unknown"),
        (["--recipe", "paper-512", "--random"], "torch sees no GPU here"),
        (
            ["--random", "--set", "machine.float8=true", "--set", "data.align.weight=0"],
            "torchao is not installed, and this needs it",
        ),
        (["--data", "nowhere"], "nowhere/pack holds no packed pictures"),
        (["--set", "saving.save_every=0"], "save_every=0"),
        (["--set", "machine.device=toaster"], "device=toaster"),
        (["--recipe", "paper-mixed", "--set", "machine.device=cpu"], "start_from=runs/paper-512: "),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(words: list[str], says: str, tmp_path: Path) -> None:
    if "torchao" in says and importlib.util.find_spec("torchao") is not None:
        pytest.skip("torchao is installed")
    if "GPU" in says and torch.cuda.is_available():
        pytest.skip("there is one")
    done = run("train", "pretrain", "--run-dir", str(tmp_path / "run"), *words)
    assert done.code in (1, 2, 5) and says in done.err and "Traceback" not in done.err
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_no_run_no_status(tmp_path: Path) -> None:
    for name in ("status", "export"):
        done = run("train", name, str(tmp_path))
        assert done.code in (1, 2) and "hint" in done.err and "Traceback" not in done.err
