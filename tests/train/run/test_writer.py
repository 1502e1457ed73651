"""Writing checkpoints: whole or not there, and an optimiser that goes on bit for bit from what was read.

Why it can be trusted: interruptions are made at every stage of writing, and "bit for bit" is `torch.equal` against a
run that never stopped.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from backend.errors import FileError
from train.run import checkpoints
from train.run.distributed import Ranks
from train.run.learner import Diverged, Learner
from train.run.optim import Optimizers

ALONE = Ranks(torch.device("cpu"))


def save(run: Path, step: int, value: float, keep: int = 2) -> None:
    tensors = {"model.a": torch.full((2, 3), value), "ema.a": torch.full((2, 3), -value)}
    checkpoints.Writer(run, ALONE, keep=keep, background=False).save(step, tensors, {})


def value_of(run: Path) -> float:
    """Of the newest one, which must be whole."""
    found = checkpoints.latest(run, ALONE)
    assert found is not None
    model, ema = (checkpoints.read_whole(found, part)["a"] for part in ("model", "ema"))
    assert torch.equal(ema, -model)
    return float(model[0, 0])


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
    assert checkpoints.latest(tmp_path, ALONE) is None
    checkpoints.Writer(tmp_path, ALONE, keep=1, background=False).save(12, tensors, {"ema_updates": 7, "text": "é"})
    found = checkpoints.latest(tmp_path, ALONE)
    assert found is not None and found.names == tensors.keys()
    assert (found.step, found.state["ema_updates"], found.state["text"]) == (12, 7, "é")
    targets = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    checkpoints.read(found, targets, ALONE)
    for name, tensor in tensors.items():
        assert targets[name].dtype == tensor.dtype and torch.equal(targets[name], tensor.detach())


def test_newest_two_are_kept(tmp_path: Path) -> None:
    for step in (9, 100, 1000, 20):
        save(tmp_path, step, step)
    # By step, not by time or alphabet; step 20 came last but is not the newest.
    assert names(tmp_path) == ["step-00000100", "step-00001000"]
    assert value_of(tmp_path) == 1000
    save(tmp_path, 1001, 1001, keep=1)
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
        ("state_dict_saver.save", 1, OSError(errno.ENOSPC, "no space")),
        ("state_dict_saver.save", 1, KeyboardInterrupt()),
        ("_state_sha256", 1, KeyboardInterrupt()),
        ("os.fsync", 2, OSError(errno.EIO, "input/output error")),
    ],
)
def test_an_interrupted_write_leaves_the_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, where: str, call: int, error: BaseException
) -> None:
    save(tmp_path, 4, 4)
    save(tmp_path, 5, 5)
    with monkeypatch.context() as patch:
        module, _, attribute = where.rpartition(".")
        owner: Any = getattr(checkpoints, module) if module else checkpoints
        patch.setattr(owner, attribute, fail_at(call, getattr(owner, attribute), error))
        with pytest.raises(FileError if isinstance(error, OSError) else type(error)):
            save(tmp_path, step, 99)
    assert value_of(tmp_path) == 5
    # Half a checkpoint under its temporary name neither counts nor stands in the way of the next try.
    save(tmp_path, step, 100)
    assert value_of(tmp_path) == 100
    assert not [name for name in names(tmp_path) if name.startswith(".")]


def test_saved_again_is_replaced_by_renaming(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is deleted before the new folder has its name: a kill while deleting must not lose the step."""
    save(tmp_path, 5, 5)
    real: Any = checkpoints.shutil.rmtree
    deleted: list[tuple[str, float]] = []

    def spied(path: Path, *args: Any, **kwargs: Any) -> None:
        if path.exists():
            deleted.append((path.name, value_of(tmp_path)))
        real(path, *args, **kwargs)

    monkeypatch.setattr(checkpoints.shutil, "rmtree", spied)
    save(tmp_path, 5, 6)
    assert value_of(tmp_path) == 6
    assert [value for _, value in deleted] == [6.0]


def small() -> nn.Module:
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
    """6 steps; or 3, through the disk into a new network and optimiser, and 3 more."""

    def learner(name: str = "") -> Learner[nn.Module]:
        model = small()
        return Learner(model, Optimizers(model, [OPTIMIZERS[kind](model)]), ALONE, name=name)

    def train(one: Learner[nn.Module], steps: range) -> Tensor:
        for step in steps:
            x = torch.randn(16, 4, generator=torch.Generator().manual_seed(step))
            one.optimizer.zero_grad()
            one.backward(one.model(x).square().mean())
            one.apply(1e-2, None)
        return torch.cat([p.detach().flatten() for p in one.model.parameters()])

    whole = train(learner(), range(6))
    first, other = learner(), learner("other")
    train(first, range(3))
    train(other, range(1))
    tensors = first.tensors() | other.tensors()
    assert not [name for name in tensors if "optimizer" in name and name.endswith(".unused")]
    checkpoints.Writer(tmp_path, ALONE, keep=1, background=False).save(3, tensors, {})
    found = checkpoints.latest(tmp_path, ALONE)
    assert found is not None
    second = learner()
    second.restore(found)
    assert torch.equal(train(second, range(3, 6)), whole)
    named = learner("other")  # beside the first in one checkpoint, under its own name
    named.restore(found)
    assert torch.equal(train(named, range(1, 2)), train(other, range(1, 2)))
    # Without the moments it would have gone elsewhere.
    third = learner()
    checkpoints.read(found, {f"model.{name}": p for name, p in third.model.named_parameters()}, ALONE)
    assert not torch.equal(train(third, range(3, 6)), whole)


def test_a_gradient_that_is_not_finite_moves_nothing() -> None:
    model = small()
    one = Learner(model, Optimizers(model, [torch.optim.AdamW(model.parameters())]), ALONE)
    before = [p.detach().clone() for p in model.parameters()]
    one.backward((model(torch.ones(1, 4)) * torch.inf).sum())
    with pytest.raises(Diverged, match="gradient norm"):
        one.apply(1.0, 1.0)
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))


def test_one_network_as_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "vae.safetensors"
    with pytest.raises(FileNotFoundError, match=r"vae\.safetensors: not there yet"):
        checkpoints.load_network(path)
    checkpoints.save_network(path, {"a": torch.arange(6.0).view(2, 3).T})
    assert torch.equal(checkpoints.load_network(path)["a"], torch.arange(6.0).view(2, 3).T)
    for where in ("save_file", "os.fsync"):
        with monkeypatch.context() as patch:
            owner: Any = checkpoints.os if "." in where else checkpoints
            name = where.rsplit(".", maxsplit=1)[-1]
            patch.setattr(owner, name, fail_at(1, getattr(owner, name), OSError(errno.ENOSPC, "no space")))
            with pytest.raises(OSError, match="no space"):
                checkpoints.save_network(path, {"a": torch.zeros(1)})
        assert torch.equal(checkpoints.load_network(path)["a"], torch.arange(6.0).view(2, 3).T)
