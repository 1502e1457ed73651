"""Muon against torch's own for plain matrices, against each matrix alone for stacks, and its state through a file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from train.run import checkpoints
from train.run.distributed import Ranks
from train.run.learner import Learner
from train.run.optim import Muon, Optimizers, muon_and_adamw, orthogonalise

ALONE = Ranks(torch.device("cpu"))


@pytest.mark.parametrize("shape", [(24, 24), (12, 40), (40, 12)])
def test_orthogonalise_keeps_the_singular_vectors_and_evens_the_values(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    u, _, vh = torch.linalg.svd(torch.randn(3, *shape, generator=generator).double(), full_matrices=False)
    x = (u * torch.linspace(0.1, 1, min(shape)) @ vh).float()
    inner = u.mT @ orthogonalise(x).double() @ vh.mT  # in the matrix's own singular basis
    values = inner.diagonal(dim1=-2, dim2=-1)
    # The quintic is made to land between about 0.7 and 1.2, not at 1 (Jordan et al.).
    assert values.min() > 0.6 and values.max() < 1.3
    assert (inner - torch.diag_embed(values)).abs().max() < 0.05  # bfloat16


def test_one_matrix_moves_as_with_torchs_muon() -> None:
    """torch.optim.Muon with its update size matched to AdamW's is an independent statement of the same rule."""
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(16, 48, generator=generator)
    mine, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    ours = Muon([mine], 0.01, momentum=0.95, weight_decay=0.1)
    reference = torch.optim.Muon(
        [theirs], lr=0.01, momentum=0.95, weight_decay=0.1, nesterov=True, adjust_lr_fn="match_rms_adamw"
    )
    for _ in range(5):
        gradient = torch.randn(16, 48, generator=generator)
        mine.grad, theirs.grad = gradient.clone(), gradient.clone()
        ours.step()
        reference.step()
    moved = (theirs - start).norm()
    assert (mine - theirs).norm() / moved < 0.01  # both iterate in bfloat16, in another order of products


def test_matrices_move_in_turn_and_as_far_on_the_whole() -> None:
    """Against torch.optim.Muon, whose rate is set to three times the usual in a matrix's turn and to 0 in the others:
    there too the momentum gathers every gradient."""
    generator = torch.Generator().manual_seed(4)
    starts = [torch.randn(8, 12, generator=generator) for _ in range(4)]
    mine = [nn.Parameter(start.clone()) for start in starts]
    theirs = [nn.Parameter(start.clone()) for start in starts]
    ours = Muon(mine, 0.01, momentum=0.95, weight_decay=0.1, every=3)
    references = [
        torch.optim.Muon([p], lr=0.01, momentum=0.95, weight_decay=0.1, nesterov=True, adjust_lr_fn="match_rms_adamw")
        for p in theirs
    ]
    moves = [0] * 4
    for _ in range(6):
        before = [p.detach().clone() for p in mine]
        for p, q in zip(mine, theirs, strict=True):
            p.grad = torch.randn(8, 12, generator=generator)
            q.grad = p.grad.clone()
        ours.step()
        for i, (reference, p, old) in enumerate(zip(references, mine, before, strict=True)):
            moved = not torch.equal(p, old)
            moves[i] += moved
            reference.param_groups[0]["lr"] = 0.03 if moved else 0.0
            reference.step()
    assert moves == [2] * 4
    for start, p, q in zip(starts, mine, theirs, strict=True):
        assert (p - q).norm() / (q - start).norm() < 0.01


def test_a_stack_is_so_many_separate_matrices() -> None:
    generator = torch.Generator().manual_seed(2)
    start, gradient = torch.randn(3, 8, 8, generator=generator), torch.randn(3, 8, 8, generator=generator)
    fused, deep = nn.Parameter(start.reshape(24, 8).clone()), nn.Parameter(start.clone())
    apart = [nn.Parameter(matrix.clone()) for matrix in start]
    fused.grad, deep.grad = gradient.reshape(24, 8).clone(), gradient.clone()
    for parameter, part in zip(apart, gradient, strict=True):
        parameter.grad = part.clone()
    Muon([fused], 0.1, stacks={fused: 3}).step()
    Muon([deep], 0.1).step()
    Muon(apart, 0.1).step()
    together = torch.stack(list(apart))
    torch.testing.assert_close(deep, together, rtol=0, atol=2e-3)
    torch.testing.assert_close(fused.view(3, 8, 8), together, rtol=0, atol=2e-3)
    assert (deep - start).abs().mean() > 0.01  # it moved at all


def _small(muon_every: int = 1) -> tuple[nn.Module, Optimizers]:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(6, 12), nn.SiLU(), nn.Linear(12, 6))
    return model, muon_and_adamw(
        model, muon=lambda name, _: int(name == "0.weight"), betas=(0.9, 0.99), weight_decay=0.1, muon_every=muon_every
    )


def _train(model: nn.Module, optimizer: Optimizers, steps: range) -> None:
    for step in steps:
        x = torch.randn(4, 6, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        (model(x) - x).square().mean().backward()
        optimizer.step(0.01)


@pytest.mark.parametrize("muon_every", [1, 2])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, muon_every: int) -> None:
    whole, optimizer = _small(muon_every)
    _train(whole, optimizer, range(6))
    first, optimizer = _small(muon_every)
    _train(first, optimizer, range(3))
    writer = checkpoints.Writer(tmp_path, ALONE, keep=1, background=False)
    writer.save(3, Learner(first, optimizer, ALONE).tensors(), {})
    second, optimizer = _small(muon_every)
    found = checkpoints.latest(tmp_path, ALONE)
    assert found is not None
    Learner(second, optimizer, ALONE).restore(found)
    _train(second, optimizer, range(3, 6))
    for a, b in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_state_of_another_optimiser_is_left_where_it_is(tmp_path: Path) -> None:
    model, optimizer = _small()
    _train(model, optimizer, range(2))
    state = optimizer.tensors()
    state["exp_avg.0.weight"] = state.pop("momentum.0.weight")  # as if AdamW had trained it
    fresh, other = _small()
    other.restore(state)
    assert "momentum.0.weight" not in other.tensors() and "exp_avg.2.weight" in other.tensors()
    _train(fresh, other, range(2))  # and it trains on
