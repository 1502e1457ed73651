"""Fine-tuning that is stopped, killed and resumed, and runs that must not go on; judged by an uninterrupted run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from backend.errors import LensError, OutOfMemoryError, UsageError
from backend.types import Quant
from tests.train.fine_tuning import ROOT, plan, rows
from train.lora import run as lora
from train.run import checkpoints, step
from train.run import status as runs


def test_killed_and_resumed_equals_uninterrupted(tmp_path: Path, pictures: Path, tiny: Path, cache: Path) -> None:
    """SIGKILL at whatever moment it comes, in a process of its own."""
    whole = plan(tmp_path / "whole", pictures, tiny, cache, steps=30)
    assert lora.run(whole).finished
    cut = replace(whole, run_dir=tmp_path / "cut")
    code = (
        "from pathlib import Path; from tests.train.fine_tuning import plan; from train.lora import run as lora\n"
        f"lora.run(plan(Path({str(cut.run_dir)!r}), Path({str(pictures)!r}), Path({str(tiny)!r}), "
        f"Path({str(cache)!r}), steps=30))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    child = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
    log, until = cut.run_dir / "metrics.jsonl", time.monotonic() + 200
    while (not log.exists() or log.read_text().count("\n") < 9) and time.monotonic() < until:
        assert child.poll() is None, "it must still run"
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    reached = runs.find(cut.run_dir)[0].step
    assert 0 < reached < 30 and not (cut.run_dir / "lora.safetensors").exists()

    told: list[str] = []
    assert lora.run(cut, told.append).finished
    assert any("going on from step" in text for text in told)
    assert rows(cut.run_dir) == rows(whole.run_dir) and rows(cut.run_dir)[-1]["step"] == 30
    ours, theirs = (load_file(run.run_dir / "lora.safetensors") for run in (cut, whole))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    status = runs.find(cut.run_dir)[0]
    assert status.steps == 30 and status.checkpoints == (28, 30)


@pytest.mark.parametrize("ema_decay", [None, 0.5])
def test_asked_to_stop_it_saves_and_goes_on(
    tmp_path: Path, pictures: Path, tiny: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, ema_decay: float | None
) -> None:
    whole = plan(tmp_path / "whole", pictures, tiny, cache, optim__ema_decay=ema_decay)
    lora.run(whole)
    asked: list[int] = []

    def take_step(*args: Any, **options: Any) -> step.Taken:
        taken = step.take_step(*args, **options)
        if not asked:
            asked.append(1)
            os.kill(os.getpid(), signal.SIGINT)
        return taken

    monkeypatch.setattr(lora, "take_step", take_step)
    cut = replace(whole, run_dir=tmp_path / "cut")
    result = lora.run(cut)
    assert (result.step, result.finished) == (1, False) and result.files[0].exists()
    assert lora.run(cut).finished and rows(cut.run_dir) == rows(whole.run_dir)
    ours, theirs = (load_file(run.run_dir / "lora.safetensors") for run in (cut, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert lora.run(cut).step == 6  # finished already: nothing is trained, the files are written again


@pytest.mark.parametrize("tune", ["lora", "full"])
def test_stopped_before_the_first_step_it_leaves_nothing(
    tmp_path: Path, pictures: Path, tiny: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, tune: str
) -> None:
    def asked(*_: object) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGINT)
        return {"validation": 1.0}

    config = plan(tmp_path / "run", pictures, tiny, cache, tune=tune, steps=2, learning_rate=1e-3)
    with monkeypatch.context() as patched:
        patched.setattr(lora, "validate", asked)
        result = lora.run(config)
    assert (result.step, result.finished, result.files) == (0, False, ()) and not checkpoints.folders(config.run_dir)
    assert lora.run(config).finished


def test_killed_before_the_first_checkpoint_the_log_begins_anew(
    tmp_path: Path, pictures: Path, tiny: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = plan(tmp_path / "whole", pictures, tiny, cache, steps=3)
    lora.run(whole)
    taken: list[step.Taken] = []

    def take_step(*args: Any, **options: Any) -> step.Taken:
        taken.append(step.take_step(*args, **options))
        if len(taken) == 2:
            raise SystemExit  # as good as a kill: nothing is saved
        return taken[-1]

    cut = replace(whole, run_dir=tmp_path / "cut")
    with monkeypatch.context() as patched, pytest.raises(SystemExit):
        patched.setattr(lora, "take_step", take_step)
        lora.run(cut)
    assert [row["step"] for row in rows(cut.run_dir)] == [0, 1] and not checkpoints.folders(cut.run_dir)
    lora.run(cut)
    assert rows(cut.run_dir) == rows(whole.run_dir)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"alpha": 4.0}, "alpha=8.0, this is alpha=4.0"),
        ({"trigger": "sks"}, "other pictures or captions"),
        ({"rank": 2}, "rank=4, this is rank=2"),
        ({"targets": ("attn",)}, "other targets"),
        ({"targets": ("attn", "mlp", "io")}, "other targets"),
        ({"tune": "full"}, "tune=lora, this is tune=full"),
        ({"seed": 1}, "seed=0, this is seed=1"),
        ({"quant": Quant.int8}, "another quant: an adapter fits the weights"),
        ({"steps": 1}, "is at step 2 already"),
    ],
)
def test_a_run_goes_on_as_it_began(
    tmp_path: Path, pictures: Path, tiny: Path, cache: Path, fields: dict[str, object], says: str
) -> None:
    begun = plan(tmp_path / "run", pictures, tiny, cache, steps=2, held_out=0.0)
    lora.run(begun)
    with pytest.raises(LensError, match=says) as caught:
        lora.run(replace(begun, **fields))  # pyright: ignore[reportArgumentType]
    assert caught.value.hint or "already" in says


def test_a_folder_with_another_run_is_refused(tmp_path: Path, pictures: Path, tiny: Path, cache: Path) -> None:
    config = plan(tmp_path / "run", pictures, tiny, cache)
    config.run_dir.mkdir()
    (config.run_dir / "config.json").write_text('{"stages": [{"steps": 5}]}')
    with pytest.raises(UsageError, match="another kind of run"):
        lora.run(config)


def test_running_out_of_memory_while_encoding_says_what_to_do(
    tmp_path: Path, pictures: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("train.lora.source.encode_images", full)
    with pytest.raises(OutOfMemoryError, match="memory ran out") as caught:
        lora.run(plan(tmp_path / "run", pictures, tiny, tmp_path / "cache"))
    assert "bases=512" in (caught.value.hint or "")
