"""Training state on disk: whole or not there, and a resumed optimizer that goes on bit for bit.

Why it can be trusted: interruptions are made at every stage of writing, and "bit for bit" is `torch.equal` against a
run that never stopped.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from backend.errors import FileError, UsageError
from train.run import parts as checkpoint


def parts(value: float) -> dict[str, dict[str, Tensor]]:
    return {"model": {"a": torch.full((2, 3), value)}, "ema": {"a": torch.full((2, 3), -value)}}


def value_of(folder: Path | None) -> float:
    assert folder is not None
    found, _ = checkpoint.load(folder)
    assert torch.equal(found["ema"]["a"], -found["model"]["a"])
    return float(found["model"]["a"][0, 0])


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def test_round_trip(tmp_path: Path) -> None:
    """Every dtype, no shape lost, strides and views of one storage made plain; state with its step."""
    base = torch.arange(12.0)
    tensors = {
        "scalar": torch.tensor(3.0),
        "bf16": torch.randn(3, dtype=torch.bfloat16),
        "long": torch.tensor([2**40]),
        "transposed": base.view(3, 4).T,
        "left": base[:6],
        "right": base[6:],
        "leaf": nn.Parameter(torch.randn(2)),
    }
    assert checkpoint.latest(tmp_path) is None
    folder = checkpoint.save(tmp_path, 12, {"model": tensors, "empty": {}}, {"ema_updates": 7, "text": "é"})
    assert folder == checkpoint.latest(tmp_path)
    found, state = checkpoint.load(folder)
    assert state == {"ema_updates": 7, "text": "é", "step": 12}
    assert set(found) == {"model", "empty"} and found["empty"] == {}
    for name, tensor in tensors.items():
        assert found["model"][name].dtype == tensor.dtype
        assert torch.equal(found["model"][name], tensor.detach())


def test_newest_two_are_kept(tmp_path: Path) -> None:
    for step in (9, 100, 1000, 20):
        checkpoint.save(tmp_path, step, parts(step), {})
    # By step, not by time or alphabet; step 20 came last but is not the newest.
    assert names(tmp_path) == ["step-00000100", "step-00001000"]
    assert value_of(checkpoint.latest(tmp_path)) == 1000
    checkpoint.save(tmp_path, 1001, parts(1001), {}, keep=1)
    assert names(tmp_path) == ["step-00001001"]


def fail_at(call: int, function: Callable[..., Any], error: BaseException) -> Callable[..., Any]:
    count = 0

    def failing(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        if count == call:
            raise error
        return function(*args, **kwargs)

    return failing


@pytest.mark.parametrize("step", [5, 6], ids=["the same step", "the next step"])
@pytest.mark.parametrize(
    ("where", "call", "error"),
    [
        ("save_file", 1, OSError(errno.ENOSPC, "no space")),
        ("save_file", 2, KeyboardInterrupt()),
        ("json.dumps", 1, KeyboardInterrupt()),
        ("os.fsync", 3, OSError(errno.EIO, "input/output error")),
    ],
)
def test_an_interrupted_write_leaves_the_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, where: str, call: int, error: BaseException
) -> None:
    checkpoint.save(tmp_path, 4, parts(4), {})
    checkpoint.save(tmp_path, 5, parts(5), {})
    with monkeypatch.context() as patch:
        owner: Any = checkpoint
        for name in where.split(".")[:-1]:
            owner = getattr(owner, name)
        attribute = where.rsplit(".", maxsplit=1)[-1]
        patch.setattr(owner, attribute, fail_at(call, getattr(owner, attribute), error))
        with pytest.raises(type(error)):
            checkpoint.save(tmp_path, step, parts(99), {})
    assert value_of(checkpoint.latest(tmp_path)) == 5
    # Half a checkpoint under its temporary name neither counts nor stands in the way of the next try.
    checkpoint.save(tmp_path, step, parts(100), {})
    assert value_of(checkpoint.latest(tmp_path)) == 100
    assert not [name for name in names(tmp_path) if name.startswith(".")]


def test_saved_again_is_replaced_by_renaming(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is deleted before the new folder has its name: a kill while deleting must not lose the step."""
    checkpoint.save(tmp_path, 5, parts(5), {})
    final = tmp_path / "checkpoints" / "step-00000005"
    real = checkpoint.shutil.rmtree
    deleted: list[tuple[str, float]] = []

    def spied(path: Path, *args: Any, **kwargs: Any) -> None:
        if path.exists():
            deleted.append((path.name, value_of(final)))
        real(path, *args, **kwargs)

    monkeypatch.setattr(checkpoint.shutil, "rmtree", spied)
    checkpoint.save(tmp_path, 5, parts(6), {})
    assert value_of(final) == 6
    assert [value for _, value in deleted] == [6.0]


def network() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    model.register_parameter("unused", nn.Parameter(torch.ones(3)))  # never has a gradient, so no optimizer state
    return model


OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "plain": lambda m: torch.optim.AdamW(m.parameters(), 1e-2, foreach=False),
    "foreach": lambda m: torch.optim.AdamW(m.parameters(), 1e-2, betas=(0.9, 0.98), foreach=True),
    "fused": lambda m: torch.optim.AdamW(m.parameters(), 1e-2, weight_decay=0.1, fused=True),
    "two groups": lambda m: torch.optim.AdamW(
        [
            {"params": [p for p in m.parameters() if p.dim() > 1], "weight_decay": 0.1},
            {"params": [p for p in m.parameters() if p.dim() < 2], "weight_decay": 0.0},
        ],
        1e-2,
    ),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, kind: str) -> None:
    """6 steps; or 3, through the disk into a new model and optimizer, and 3 more."""

    def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
        for step in steps:
            x = torch.randn(16, 4, generator=torch.Generator().manual_seed(step))
            optimizer.zero_grad(set_to_none=True)
            model(x).square().mean().backward()
            optimizer.step()

    def order(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
        by_id = {id(p): name for name, p in model.named_parameters()}
        return [by_id[id(p)] for group in optimizer.param_groups for p in group["params"]]

    whole = network()
    train(whole, OPTIMIZERS[kind](whole), range(6))

    first = network()
    optimizer = OPTIMIZERS[kind](first)
    train(first, optimizer, range(3))
    state = checkpoint.optimizer_tensors(optimizer, order(first, optimizer))
    assert not [name for name in state if name.endswith(".unused")]
    folder = checkpoint.save(tmp_path, 3, {"model": first.state_dict(), "optimizer": state}, {})

    second = network()
    optimizer = OPTIMIZERS[kind](second)
    found, _ = checkpoint.load(folder)
    second.load_state_dict(found["model"])
    checkpoint.restore_optimizer(optimizer, order(second, optimizer), found["optimizer"])
    train(second, optimizer, range(3, 6))
    for (name, a), b in zip(whole.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b), name
    # Without the moments it would have gone elsewhere.
    third = network()
    third.load_state_dict(found["model"])
    train(third, OPTIMIZERS[kind](third), range(3, 6))
    assert not torch.equal(third.get_parameter("0.weight"), whole.get_parameter("0.weight"))


def test_restoring_copies(tmp_path: Path) -> None:
    """The optimizer does not write into the tensors it was restored from."""
    model = network()
    optimizer = OPTIMIZERS["foreach"](model)
    order = [name for name, _ in model.named_parameters()]
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    kept = {name: tensor.clone() for name, tensor in checkpoint.optimizer_tensors(optimizer, order).items()}
    frozen = {name: tensor.clone() for name, tensor in kept.items()}
    checkpoint.restore_optimizer(optimizer, order, kept)
    optimizer.step()
    assert all(torch.equal(kept[name], frozen[name]) for name in kept)
    with pytest.raises(ValueError, match="zip"):
        checkpoint.restore_optimizer(optimizer, order[:-1], kept)


def test_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "vae.safetensors"
    with pytest.raises(FileNotFoundError, match=r"vae\.safetensors: not there yet"):
        checkpoint.load_part(path)
    checkpoint.save_part(path, {"a": torch.arange(6.0).view(2, 3).T})
    assert torch.equal(checkpoint.load_part(path)["a"], torch.arange(6.0).view(2, 3).T)
    for where in ("save_file", "os.fsync"):
        with monkeypatch.context() as patch:
            owner: Any = checkpoint.os if "." in where else checkpoint
            name = where.rsplit(".", maxsplit=1)[-1]
            patch.setattr(owner, name, fail_at(1, getattr(owner, name), OSError(errno.ENOSPC, "no space")))
            with pytest.raises(OSError, match="no space"):
                checkpoint.save_part(path, {"a": torch.zeros(1)})
        assert torch.equal(checkpoint.load_part(path)["a"], torch.arange(6.0).view(2, 3).T)


def test_a_run_folder_is_one_process_alone(tmp_path: Path) -> None:
    """Another process is refused while it lasts, and let in however it ended."""
    folder = tmp_path / "runs" / "new"
    code = (
        "import sys, pathlib, time; from train.run import parts as checkpoint\n"
        "with checkpoint.alone(pathlib.Path(sys.argv[1])): print('in', flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code, folder], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None and child.stdout.readline() == "in\n"
        with pytest.raises(UsageError, match="another process is training in"), checkpoint.alone(folder):
            pass
        child.kill()
        child.wait()
    for _ in range(2):
        with checkpoint.alone(folder), pytest.raises(UsageError), checkpoint.alone(folder):
            pass


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_run_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(FileError, match="cannot write"), checkpoint.alone(tmp_path / "locked" / "run"):
        pass
