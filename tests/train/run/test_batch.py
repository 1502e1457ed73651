"""How a step is planned and shared out, and where its random numbers come from. Pure functions; no network."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.train import ranks
from train.batches.random import RandomSource
from train.config import locate
from train.losses import flow
from train.recipes import pretrain_config
from train.run.batch import Grid, Group, Loaded, noised, share

GROUPS: list[tuple[Grid, list[str]]] = [((4, 4), ["a", "b", "c", "d", "e"]), ((2, 8), ["f", "g"]), ((8, 2), ["h"])]


@pytest.mark.parametrize("world", [1, 2, 3, 4, 7, 8, 20])
@pytest.mark.parametrize("micro_batch", [None, 1, 2])
@pytest.mark.parametrize("average", ["sample", "group"])
def test_every_picture_once_and_as_many_passes_on_every_rank(world: int, micro_batch: int | None, average: str) -> None:
    """Counted by hand over all ranks: what weighs anything is each picture once, and the weights sum to 1."""
    parts = [share(GROUPS, rank=rank, world=world, micro_batch=micro_batch, average=average) for rank in range(world)]
    assert len({len(part) for part in parts}) == 1  # or FSDP's collectives would wait for ever
    real = [
        (group.grid, ref, weight)
        for part in parts
        for group in part
        for ref, weight in zip(group.refs, group.weights, strict=True)
        if weight
    ]
    expected = {
        (grid, ref): (1 / 8 if average == "sample" else 1 / 3 / len(refs)) for grid, refs in GROUPS for ref in refs
    }
    assert {(grid, ref): weight for grid, ref, weight in real} == pytest.approx(expected)
    assert len(real) == 8 and sum(weight for _, _, weight in real) == pytest.approx(1)
    places = {
        ref: place for part in parts for group in part for ref, place in zip(group.refs, group.places, strict=True)
    }
    assert places == {ref: i for i, ref in enumerate("abcdefgh")}  # the same on any number of ranks
    if micro_batch:
        assert all(len(group.refs) <= micro_batch for part in parts for group in part)


def test_one_group_is_cut_for_all_ranks() -> None:
    parts = [share([((4, 4), list(range(48)))], rank=r, world=5, micro_batch=None, average="sample") for r in range(5)]
    assert [len(group.refs) for part in parts for group in part] == [10, 10, 10, 10, 8]


def test_a_pictures_noise_depends_on_its_place_alone() -> None:
    config = ranks.config(Path("unused"))
    source = RandomSource(config, torch.device("cpu"))
    at = locate(config.stages, 3)
    groups = source.groups(at)
    whole = [
        noised(config.noise, config.seed, at, group, source.load(at, group))
        for group in share(groups, rank=0, world=1, micro_batch=None, average="sample")
    ]
    cut = [
        noised(config.noise, config.seed, at, group, source.load(at, group))
        for rank in range(3)
        for group in share(groups, rank=rank, world=3, micro_batch=2, average="sample")
    ]

    def rows(batches: list) -> dict[str, tuple[torch.Tensor, ...]]:  # type: ignore[type-arg]
        return {
            name: (batch.t_B[i], batch.eps_BNC[i], batch.x0_BNC[i], batch.mask_BL[i])
            for batch in batches
            for i, name in enumerate(batch.names)
            if batch.weights_B[i]
        }

    ours, theirs = rows(cut), rows(whole)
    assert ours.keys() == theirs.keys() and len(theirs) == sum(len(refs) for _, refs in groups)
    assert all(torch.equal(a, b) for name in theirs for a, b in zip(ours[name], theirs[name], strict=True))
    times = [float(row[0]) for row in theirs.values()]
    assert len(set(times)) == len(times)  # no two pictures share their draws


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_times_and_dropout_are_the_configs(offset: float) -> None:
    """Over 12,000 pictures, against the closed form: sigmoid is monotone, so the median of t is sigmoid(mu)."""
    config = ranks.config(Path("unused"))
    config = replace(config, stages=tuple(replace(stage, time_offset=offset) for stage in config.stages))
    source = RandomSource(config, torch.device("cpu"))
    times, kept = [], []
    at = locate(config.stages, 0)
    for number in range(60):
        rows = torch.zeros(200, 16, 4)
        group = Group((4, 4), tuple(range(200)), tuple(range(number * 200, number * 200 + 200)), (1.0,) * 200)
        loaded = Loaded(rows, torch.zeros(200, 3, 1, 1), torch.ones(200, 3, dtype=torch.bool), ("",) * 200)
        batch = noised(config.noise, config.seed, at, group, loaded)
        times.append(batch.t_B)
        kept.append(batch.mask_BL.any(1))
        assert torch.equal(batch.mask_BL.any(1), batch.mask_BL.all(1))  # all tokens or none
    median = torch.cat(times).median().item()
    assert median == pytest.approx(torch.sigmoid(torch.tensor(flow.training_mu(16) + offset)).item(), abs=0.01)
    assert 1 - torch.cat(kept).float().mean().item() == pytest.approx(config.noise.dropout, abs=0.02)
    assert source.held(config.stages[0]) == []


def test_the_papers_mixed_stage() -> None:
    """Section 2.3: 128 groups a step, 24, 10 and 6 pictures of the bases 512, 768 and 1024, and mu(n) of table 3.2."""
    config = pretrain_config("paper-mixed", Path("unused"))
    source = RandomSource(config, torch.device("cpu"))
    sizes: Counter[tuple[Grid, int]] = Counter()
    for step in range(30):
        groups = source.groups(locate(config.stages, step))
        assert len(groups) == 128
        sizes.update((grid, len(refs)) for grid, refs in groups)
    assert len({grid for grid, _ in sizes}) == 27
    for (h, w), count in sizes:
        base = 16 * (h * w) ** 0.5
        assert count == (24 if base < 640 else 10 if base < 896 else 6)
    # Tokens and mu as the fact sheet tabulates them from the paper's formula.
    for tokens, mu in ((968, 1.0556), (1024, 1.0600), (2304, 1.1600), (2400, 1.1675), (4096, 1.3000), (4232, 1.3106)):
        assert flow.training_mu(tokens) == pytest.approx(mu, abs=5e-5)


def test_the_papers_values() -> None:
    """Section 2.3, read again from its text."""
    low, mixed = (pretrain_config(name, Path("unused")) for name in ("paper-512", "paper-mixed"))
    assert (low.stages[0].steps, low.stages[0].pictures, low.stages[0].learning_rate) == (400_000, 3072, 2e-4)
    assert (mixed.stages[0].steps, mixed.stages[0].learning_rate) == (400_000, 1e-4)
    assert mixed.average == "group"  # the paper is silent: a plain mean over ranks, of which each has one group
    for config in (low, mixed):
        optim, machine = config.optim, config.machine
        assert (optim.betas, optim.clip, machine.compute, optim.muon) == ((0.9, 0.999), 1.0, "bfloat16", False)
        assert machine.checkpointing == "full" and config.hardware.gpus == 128
        assert optim.warmup == 0 and config.stages[0].decay_steps == 0  # "a constant learning rate"
