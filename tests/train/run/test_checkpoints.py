"""Checkpoints of a run, and what becomes of it when the disk, a person or the numbers go wrong.

Trustworthy because the run is a real one of a few thousand parameters, what goes wrong is done to its real files or
comes from the operating system, and "goes on" always means bit for bit as the run that nothing happened to.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from backend.errors import CancelledError, CheckpointError, FileError, NumericsError, UsageError
from tests.train import ranks
from tests.train.changed import changed
from tests.train.overflow import overflows_beyond
from train import pretrain
from train.batches.random import RandomSource
from train.config import At, PretrainConfig
from train.run import checkpoints
from train.run.batch import Group, Loaded
from train.run.distributed import Ranks

ALONE = Ranks(torch.device("cpu"))
TIMES = ("seconds", "pictures_per_s", "tflops", "eta_s")


def curve(run: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


def weights(run: Path) -> dict[str, torch.Tensor]:
    found = checkpoints.latest(run, ALONE)
    assert found is not None
    return checkpoints.read_whole(found, "model") | {
        f"ema {n}": t for n, t in checkpoints.read_whole(found, "ema").items()
    }


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six steps that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    pretrain.run(ranks.config(folder, steps=6))
    return folder


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four of its steps."""
    folder = tmp_path_factory.mktemp("begun")
    pretrain.run(ranks.config(folder, steps=4))
    return folder


@pytest.fixture
def half(tmp_path: Path, begun: Path) -> PretrainConfig:
    """The same run with two checkpoints written, at steps 2 and 4."""
    shutil.copytree(begun, tmp_path / "run")
    return ranks.config(tmp_path / "run", steps=6)


def test_the_same_command_goes_on(half: PretrainConfig, whole: Path) -> None:
    pretrain.run(half)
    assert curve(half.run_dir) == curve(whole) and len(curve(whole)) == 6
    assert same(weights(half.run_dir), weights(whole))
    pretrain.run(half)  # once more: there is nothing left to do, and nothing changes
    assert curve(half.run_dir) == curve(whole)
    assert same(weights(half.run_dir), weights(whole))


def test_background_writing_saves_the_moment_it_was_asked(tmp_path: Path, whole: Path) -> None:
    """The tensors go on changing while they are written: what is on disk must be of the step that its name says."""
    config = changed(
        ranks.config(tmp_path / "run", steps=6), {"saving.background": True, "saving.save_every": 1, "saving.keep": 9}
    )
    pretrain.run(config)
    assert [path.name for path in checkpoints.folders(config.run_dir)] == [f"step-{step:08d}" for step in range(1, 7)]
    for step in (4, 6):
        plain = checkpoints.folders(whole)[{4: 0, 6: 1}[step]]
        assert plain.name == f"step-{step:08d}"
        ours = checkpoints.Found(config.run_dir / "checkpoints" / plain.name, {"step": step, "files": {}}, frozenset())
        theirs = checkpoints.Found(plain, {"step": step, "files": {}}, frozenset())
        for part in ("model", "ema", "optimizer"):
            read = [_read_all(one, part) for one in (ours, theirs)]
            assert same(read[0], read[1]), (step, part)


def _read_all(found: checkpoints.Found, part: str) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    tensors = {name: t for path in found.folder.glob("*.safetensors") for name, t in load_file(path).items()}
    return {name: t for name, t in tensors.items() if name.startswith(f"{part}.")}


# ----------------------------------------------------------------------------------------------------------- damage


def _only(folder: Path) -> Path:
    return next(folder.glob("*.safetensors"))


def _flip(folder: Path) -> None:
    data = bytearray(_only(folder).read_bytes())
    data[-1] ^= 1
    _only(folder).write_bytes(data)


def _cut(folder: Path) -> None:
    _only(folder).write_bytes(_only(folder).read_bytes()[:-100])


def _add(folder: Path) -> None:
    (folder / "more.safetensors").write_bytes(b"x")


def _edit(folder: Path) -> None:
    state = folder / "state.json"
    state.write_text(state.read_text().replace('"ema_updates": 4', '"ema_updates": 5'))


def _unstate(folder: Path) -> None:
    (folder / "state.json").write_text('{"step": ')


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_flip, "contents were changed"),
        (_cut, "bytes, .* were written"),
        (_add, "more.safetensors is not part of this checkpoint"),
        (lambda folder: _only(folder).unlink(), "is missing"),
        (_unstate, r"state\.json: unreadable"),
        (lambda folder: (folder / "state.json").unlink(), r"state\.json: unreadable"),
        (_edit, r"state\.json: its contents were changed"),
    ],
)
def test_a_damaged_checkpoint_is_refused(
    half: PretrainConfig, damage: Callable[[Path], None], says: str, whole: Path
) -> None:
    """With a hint that works: delete it, and the run goes on from the one before."""
    newest = checkpoints.folders(half.run_dir)[-1]
    damage(newest)
    with pytest.raises(CheckpointError, match=says) as caught:
        pretrain.run(half)
    assert f"delete {newest}, which leaves step-00000002" in (caught.value.hint or "")
    shutil.rmtree(newest)
    pretrain.run(half)
    assert curve(half.run_dir) == curve(whole)


def test_a_checkpoint_under_another_name_is_refused(half: PretrainConfig) -> None:
    newest = checkpoints.folders(half.run_dir)[-1]
    newest.rename(newest.with_name("step-00000005"))
    with pytest.raises(CheckpointError, match="it holds step 4, so this is not its name"):
        pretrain.run(half)


def test_a_run_goes_on_only_as_it_began(half: PretrainConfig) -> None:
    """And a command that is refused leaves the run's folder as it was."""
    before = (half.run_dir / "config.json").read_text()
    with pytest.raises(CheckpointError, match="the run began with seed=0, this is seed=1"):
        pretrain.run(replace(half, seed=1))
    with pytest.raises(CheckpointError, match="the run began with start_from=none, this is start_from=other"):
        pretrain.run(replace(half, start_from=Path("runs") / "other"))
    with pytest.raises(UsageError, match="at step 4 already, the plan ends at 2"):
        pretrain.run(replace(half, stages=(replace(half.stages[0], steps=2),)))
    with pytest.raises(CheckpointError, match="this run's network has no"):
        pretrain.run(changed(half, {"data.align.block": 0}, params=replace(half.params, num_layers=1)))
    with pytest.raises(CheckpointError, match="the run began with another optimiser"):
        pretrain.run(changed(half, {"optim.muon": False}))
    assert (half.run_dir / "config.json").read_text() == before
    (half.run_dir / "config.json").write_text('{"kind": "lora"}')
    with pytest.raises(UsageError, match="holds another kind of run"):
        pretrain.run(half)
    assert (half.run_dir / "config.json").read_text() == '{"kind": "lora"}'


def test_asked_to_stop_it_saves_and_says_so(half: PretrainConfig, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM in the middle of a step; and what a kill left half-written before is gone."""
    load = RandomSource.load

    def signalled(self: RandomSource, at: At, group: Group) -> Loaded:
        if at.step == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return load(self, at, group)

    (half.run_dir / "checkpoints" / ".step-00000003.tmp").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(RandomSource, "load", signalled)
        with pytest.raises(CancelledError, match="stopped after step 5 of 6; the state is saved"):
            pretrain.run(half)
    kept = sorted(path.name for path in (half.run_dir / "checkpoints").iterdir())
    assert kept == ["step-00000004", "step-00000005"]
    pretrain.run(half)
    assert curve(half.run_dir) == curve(whole)
    assert same(weights(half.run_dir), weights(whole))


def test_another_network_is_refused_by_name(half: PretrainConfig) -> None:
    with pytest.raises(CheckpointError, match="this run's network has no 'transformer_blocks"):
        pretrain.run(changed(half, {"data.align.block": 0}, params=replace(half.params, num_layers=1)))
    with pytest.raises(CheckpointError, match=r"is \[48, 32\], this run has \[64, 32\]"):
        pretrain.run(replace(half, params=replace(half.params, mlp_hidden_dim=64)))


def test_a_full_disk_keeps_the_last_good_checkpoint(
    half: PretrainConfig, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen before the writing where it can be, and survived where the disk fills up meanwhile."""
    before = sorted(path.name for path in checkpoints.folders(half.run_dir))
    fsync = os.fsync

    def full_while_saving(handle: int) -> None:
        if list((half.run_dir / "checkpoints").glob(".step-*")):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.shutil, "disk_usage", lambda _path: shutil._ntuple_diskusage(10**9, 10**9, 1000))  # type: ignore[attr-defined]
        with pytest.raises(FileError, match=r"a checkpoint takes .* has 1\.0 kB left"):
            pretrain.run(half)
    for background in (False, True):
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full_while_saving)
            with pytest.raises(FileError, match="no space left on device") as caught:
                pretrain.run(changed(half, {"saving.background": background}))
        assert "free some space and run the same command again" in (caught.value.hint or "")
        assert sorted(path.name for path in (half.run_dir / "checkpoints").iterdir()) == before
    pretrain.run(half)
    assert curve(half.run_dir) == curve(whole)


def test_a_loss_that_is_no_number_stops_before_the_step(
    half: PretrainConfig, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It names the picture, leaves the checkpoints alone, and with the picture mended the run goes on as if."""
    load = RandomSource.load

    def poisoned(self: RandomSource, at: At, group: Group) -> Loaded:
        loaded = load(self, at, group)
        if at.step == 5 and 4 in group.places:
            loaded.x0_BNC[group.places.index(4), 0, 0] = float("nan")
        return loaded

    with monkeypatch.context() as patch:
        patch.setattr(RandomSource, "load", poisoned)
        says = r"^step 5: loss nan.*: random picture 4 of step 5; stopped .*, step-00000004, is untouched$"
        with pytest.raises(NumericsError, match=says):
            pretrain.run(half)
    assert [path.name for path in checkpoints.folders(half.run_dir)] == ["step-00000002", "step-00000004"]
    pretrain.run(half)
    assert curve(half.run_dir) == curve(whole)
    assert same(weights(half.run_dir), weights(whole))


def test_a_run_that_learns_too_fast_goes_on_at_a_lower_rate(
    half: PretrainConfig, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it keeps one checkpoint only: the one before the bad step must be that one, or nothing helps."""
    overflows_beyond(1.5, monkeypatch)  # a norm's weights begin at 1
    fast = changed(half, {"saving.keep": 1}, stages=(replace(half.stages[0], learning_rate=1.0),))
    for _ in range(2):  # the same again ends the same way, and costs nothing
        with pytest.raises(NumericsError, match=r"step 5: .*, step-00000004, is untouched") as caught:
            pretrain.run(fast)
        assert "--set stages.0.learning_rate=" in (caught.value.hint or "")
    pretrain.run(replace(fast, stages=half.stages))
    assert curve(half.run_dir) == curve(whole)
    assert same(weights(half.run_dir), weights(whole))


def test_a_run_that_learns_too_fast_from_the_start_has_nothing_to_go_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overflows_beyond(1.5, monkeypatch)
    plan = changed(ranks.config(tmp_path / "run"), {"saving.save_every": 100})
    with pytest.raises(NumericsError, match=r"step [123]: .*there is no checkpoint yet$") as caught:
        pretrain.run(replace(plan, stages=(replace(plan.stages[0], learning_rate=1.0),)))
    assert "it begins anew" in (caught.value.hint or "")
    pretrain.run(plan)


# ------------------------------------------------------------------------------------------------------------- kill

CHILD = "import sys; from pathlib import Path; from tests.train import ranks; from train import pretrain; "


def test_killed_at_any_moment_it_goes_on(tmp_path: Path, whole: Path) -> None:
    """kill -9 as soon as the log has two, then four lines. benchmarks/kill_resume.py does it ten times at random."""
    run = tmp_path / "run"
    code = CHILD + f"pretrain.run(ranks.config(Path({str(run)!r}), steps=6))"
    for lines in (2, 4):
        _killed(code, run / "metrics.jsonl", lines)
    pretrain.run(ranks.config(run, steps=6))
    assert curve(run) == curve(whole)
    assert same(weights(run), weights(whole))


def _killed(code: str, log: Path, lines: int) -> None:
    child: Any = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while child.poll() is None and time.monotonic() < deadline:
        if log.exists() and len(log.read_text().splitlines()) >= lines:
            child.send_signal(signal.SIGKILL)
            break
        time.sleep(0.002)
    child.wait(timeout=60)
    assert log.exists()
