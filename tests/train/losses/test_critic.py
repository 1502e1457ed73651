"""The critic's heads and losses against `fastgen` and against a linear discriminator, where R1 has a closed form.

Why it can be trusted: the same numbers go through both heads; for d(x) = w x the penalty is r1_step^2 (w eps)^2.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.train.losses.fastgen import fastgen
from train.losses import critic


def logits(count: int, seed: int = 0) -> list[Tensor]:
    return [2 * x for x in torch.randn(count, 6, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)]


def test_losses_against_fastgen() -> None:
    """To 1e-6 with their gradients; the paper's R1 has half the weight before a mean of squares that is the same."""
    theirs = fastgen("losses")
    real, fake, moved = (x.requires_grad_() for x in logits(3))
    pairs = [
        (critic.critic_losses(real, fake).mean(), theirs.gan_disc_loss(real, fake)),
        (critic.generator_losses(fake).mean(), theirs.gan_gen_loss(fake)),
        (critic.r1_losses(real, moved, 1.0).mean(), 0.5 * theirs.r1_loss(real, moved)),
        (critic.r1_losses(real, moved, 3.0).mean(), 1.5 * theirs.r1_loss(real, moved)),
    ]
    inputs = (real, fake, moved)
    for mine, wanted in pairs:
        torch.testing.assert_close(mine, wanted, rtol=1e-6, atol=1e-6)
        got, gradients = (
            torch.autograd.grad(loss, inputs, retain_graph=True, allow_unused=True, materialize_grads=True)
            for loss in (mine, wanted)
        )
        torch.testing.assert_close(got, gradients, rtol=1e-6, atol=1e-9)


def test_who_pulls_where() -> None:
    """The critic raises real logits and lowers fake ones; the student raises its own. At 0 each slope is 1/2."""
    real, fake = (torch.zeros(1, 1, requires_grad=True) for _ in range(2))
    of_real, of_fake = torch.autograd.grad(critic.critic_losses(real, fake).sum(), (real, fake))
    (of_student,) = torch.autograd.grad(critic.generator_losses(fake).sum(), fake)
    assert (float(of_real), float(of_fake), float(of_student)) == (-0.5, 0.5, -0.5)


def test_r1_of_a_linear_critic() -> None:
    """weight / 2 step^2 (w eps)^2, and its gradient weight step^2 (w eps) eps, which needs both logits' graphs."""
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(12, generator=generator, dtype=torch.float64, requires_grad=True)
    x_t, eps = torch.randn(2, 5, 12, generator=generator, dtype=torch.float64)
    step, weight = 0.1, 1.0
    losses = critic.r1_losses((x_t @ w)[:, None], (critic.move(x_t, eps, step) @ w)[:, None], weight)
    torch.testing.assert_close(losses, weight / 2 * step**2 * (eps @ w).square())
    (got,) = torch.autograd.grad(losses.sum(), w)
    torch.testing.assert_close(got, weight * step**2 * ((eps @ w)[:, None] * eps).sum(0).detach())


def test_r1_is_the_gradient_penalty() -> None:
    """Over many draws of noise the approximation is weight / 2 step^2 |grad d|^2 of a critic that is not linear."""
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(4, generator=generator, dtype=torch.float64)
    x = torch.randn(4, generator=generator, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(torch.tanh(x @ w / 4), x)
    eps = torch.randn(200_000, 4, generator=generator, dtype=torch.float64)
    moved = torch.tanh(critic.move(x.detach(), eps, 0.01) @ w / 4)[:, None]
    got = critic.r1_losses(torch.tanh(x.detach() @ w / 4).expand(len(eps), 1), moved, 1.0).mean()
    assert float(got) == pytest.approx(0.5 * 0.01**2 * float(slope.square().sum()), rel=0.02)


@pytest.mark.parametrize("width", [16, 24, 132, 192])
@pytest.mark.parametrize("size", [(4, 4), (3, 7), (6, 2)])
def test_heads_against_fastgen(width: int, size: tuple[int, int]) -> None:
    """The same weights give the same logits, for every shape of picture; tokens go to the map row by row."""
    torch.manual_seed(0)
    mine = critic.Heads(width, (1, 3))
    theirs = fastgen("discriminators").Discriminator_ImageDiT({1, 3}, num_blocks=6, inner_dim=width)
    theirs.load_state_dict({f"cls_pred_{name}": value for name, value in mine.state_dict().items()})
    features = [torch.randn(2, size[0] * size[1], width) for _ in range(2)]
    got = mine(features, size)
    maps = [x.transpose(1, 2).reshape(2, width, *size) for x in features]
    torch.testing.assert_close(got, theirs(maps), rtol=1e-6, atol=1e-6)
    assert got.shape == (2, 2)
    assert sum(p.numel() for p in mine.heads[0].parameters()) == 8 * width**2 + 2 * width + 1


def test_heads_read_bfloat16_in_float32() -> None:
    """The teacher computes in bfloat16, the heads hold float32; the gradient gets back to the features."""
    x = torch.randn(1, 4, 16).bfloat16().requires_grad_()
    got = critic.Heads(16, (0,))([x], (2, 2))
    assert got.dtype == torch.float32
    (gradient,) = torch.autograd.grad(got.sum(), x)
    assert bool(gradient.any())


def test_features_that_do_not_fit() -> None:
    heads = critic.Heads(16, (0, 2))
    with pytest.raises(ValueError):
        heads([torch.zeros(1, 4, 16)], (2, 2))  # one feature for two heads
    with pytest.raises(RuntimeError):
        heads([torch.zeros(1, 4, 16)] * 2, (2, 3))  # 4 tokens are no 2 x 3 map
    for taps in ((), (2, 1), (1, 1)):
        with pytest.raises(ValueError, match="rising order"):
            critic.Heads(16, taps)
