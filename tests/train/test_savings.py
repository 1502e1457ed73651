"""Ways to save memory change memory, not the curve. A processor has no atomics, so recomputing gives the same bits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from tests.train import ranks
from tests.train.changed import changed
from train import pretrain
from train.batches.random import RandomSource
from train.config import PretrainConfig, locate
from train.losses import flow
from train.run import checkpoints
from train.run.batch import passes
from train.run.distributed import Ranks
from train.run.step import transformer_losses

ALONE = Ranks(torch.device("cpu"))


def curve(config: PretrainConfig) -> list[float]:
    pretrain.run(config)
    rows = [json.loads(line) for line in (config.run_dir / "metrics.jsonl").read_text().splitlines()]
    return [value for row in rows for value in (row["loss"], row["grad_norm"], row["align"])]


def moved(run: Path) -> dict[str, Tensor]:
    """The weights that a run ended with."""
    found = checkpoints.latest(run, ALONE)
    assert found is not None
    return checkpoints.read_whole(found, "model")


@pytest.fixture(scope="module")
def one_step(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("one")
    curve(ranks.config(run, steps=1))
    return run


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    return curve(ranks.config(tmp_path_factory.mktemp("plain"), steps=2))


@pytest.mark.parametrize("mode", ["full", "selective"])
def test_running_blocks_again_gives_the_same_bits(tmp_path: Path, plain: list[float], mode: str) -> None:
    assert curve(changed(ranks.config(tmp_path, steps=2), {"machine.checkpointing": mode})) == plain  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["none", "full", "selective"])
def test_blocks_that_run_again_are_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plain: list[float], one_step: Path, mode: str
) -> None:
    """Three shapes, forwards and backwards: losses, norms, and where one step moves every weight.

    A backend that runs the captured graphs as they are counts them: none would mean that nothing was compiled.
    """
    counter = CompileCounter()
    compile_ = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **options: compile_(module, backend=counter))
    config = changed(ranks.config(tmp_path, steps=1), {"machine.checkpointing": mode, "machine.compile": True})  # type: ignore[arg-type]
    torch._dynamo.reset()
    assert curve(config) == pytest.approx(plain[:3], rel=1e-4)
    assert counter.frame_count > 0
    ours, theirs = moved(tmp_path), moved(one_step)
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=0, atol=2e-3, msg=name)  # Muon rounds to bfloat16


def test_small_passes_give_the_same_step(tmp_path: Path, plain: list[float]) -> None:
    assert curve(changed(ranks.config(tmp_path, steps=2), {"machine.micro_batch": 1})) == pytest.approx(plain, rel=1e-5)


def test_what_is_kept_shrinks(tmp_path: Path) -> None:
    """Bytes of distinct storages that a forward pass leaves behind, counted by autograd's own hooks."""

    def kept(mode: str) -> int:
        config = changed(ranks.config(tmp_path), {"machine.checkpointing": mode, "data.align.weight": 0.0})  # type: ignore[arg-type]
        learner, _ = pretrain.make_learners(config, ALONE)
        source, at = RandomSource(config, ALONE.device), locate(config.stages, 0)
        batch = passes(source, at, ALONE, config.noise, seed=0, micro_batch=None, average="sample")[0]
        own = {p.data_ptr() for p in learner.model.parameters()}
        seen: dict[int, int] = {}
        alive: list[Tensor] = []

        def pack(tensor: Tensor) -> Tensor:
            alive.append(tensor)  # or a freed storage's address would be taken twice
            if tensor.data_ptr() not in own:
                seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            transformer_losses(flow.losses, ALONE, config.machine.compute)(learner.model, batch)
        return sum(seen.values())

    assert kept("full") < 0.3 * kept("none")
