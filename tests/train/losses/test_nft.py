"""DiffusionNFT against gradients derived by hand, its printed equations, and its optimum where that has a closed form.

Why it can be trusted: the optimum comes from Bayes' rule over eight points, not from the loss; the gradients are
compared in float64 with an expression that contains neither v+ nor v-.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from backend.sampling import denoise
from train.losses import nft
from train.losses.flow import interpolate

CLIP = 5.0


def arrays(seed: int = 0, pictures: int = 6) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """v_old, x_t, x0, t and advantages of `pictures` of 5 tokens of 4 channels, float64."""
    generator = torch.Generator().manual_seed(seed)
    v_old, x0, eps = torch.randn(3, pictures, 5, 4, generator=generator, dtype=torch.float64)
    t = torch.rand(pictures, generator=generator, dtype=torch.float64) * 0.9 + 0.05
    return v_old, interpolate(x0, eps, t), x0, t, torch.linspace(-4, 4, pictures, dtype=torch.float64)


def gradient(loss: Tensor, *inputs: Tensor) -> list[Tensor | None]:
    """d loss / d input; None where the loss does not hang on it."""
    return list(torch.autograd.grad(loss, inputs, allow_unused=True))


def test_optimality() -> None:
    """The paper's r with Z = 5: 1/2 at 0, 1 at +5 and beyond, 0 at -5 and beyond, straight between."""
    r = nft.optimality(torch.tensor([-9.0, -5.0, -2.5, 0.0, 1.0, 5.0, 7.0]), CLIP)
    assert r.tolist() == pytest.approx([0, 0, 0.25, 0.5, 0.6, 1, 1])


@pytest.mark.parametrize("beta", [0.1, 0.5, 1.0])
def test_implicit_velocities(beta: float) -> None:
    """v+ and v- lie beta to either side of the old policy's; at beta = 1 v+ is the current one's."""
    v, old = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    positive, negative = nft.implicit_velocities(v, old, beta)
    torch.testing.assert_close(positive + negative, 2 * old)
    torch.testing.assert_close(positive - negative, 2 * beta * (v - old))
    assert beta != 1.0 or torch.allclose(positive, v)


@pytest.mark.parametrize("beta", [0.1, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("adaptive", [True, False])
def test_gradient_on_policy(beta: float, adaptive: bool) -> None:
    """At v_theta = v_old the gradient is that of A mean (x - x0)^2 / w: A (2 t^2 (v - v*)) / (w elements).

    By hand, with v* = eps - x0 = (x_t - x0) / t: x^ - x0 = -t (v - v*), w = t mean |v - v*|.
    """
    v_old, x_t, x0, t, A = arrays()
    v = v_old.clone().requires_grad_()
    losses = nft.policy_losses(v, v_old, x_t, x0, t, nft.optimality(A, CLIP), beta=beta, clip=CLIP, adaptive=adaptive)
    (got,) = torch.autograd.grad(losses.sum(), v)
    column = t.view(-1, 1, 1)
    error = v_old - (x_t - x0) / column
    w = column * error.abs().mean((1, 2), keepdim=True) if adaptive else 1
    wanted = A.view(-1, 1, 1) * 2 * column**2 * error / w / error[0].numel()
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-15)
    assert bool((wanted.abs().amax((1, 2)) > 1e-3).all())
    flat = nft.policy_losses(v, v_old, x_t, x0, t, torch.rand(6).double(), beta=beta, clip=CLIP, adaptive=adaptive)
    torch.testing.assert_close(flat, losses)  # on-policy the value does not depend on r


def test_no_verdict_teaches_nothing() -> None:
    """An advantage of 0 has no policy gradient on-policy, and off-policy pulls back to the old one."""
    v_old, x_t, x0, t, _ = arrays()
    r = nft.optimality(torch.zeros(6), CLIP)
    v = v_old.clone().requires_grad_()
    (got,) = torch.autograd.grad(nft.policy_losses(v, v_old, x_t, x0, t, r, beta=1.0, clip=CLIP).sum(), v)
    assert float(got.abs().max()) < 1e-15
    moved = (v_old + 0.1).requires_grad_()
    (got,) = torch.autograd.grad(
        nft.policy_losses(moved, v_old, x_t, x0, t, r, beta=1.0, clip=CLIP, adaptive=False).sum(), moved
    )
    torch.testing.assert_close(got, CLIP * 2 * t.view(-1, 1, 1) ** 2 * (moved.detach() - v_old) / 20)


def test_losses_are_the_printed_ones() -> None:
    """Away from the old policy: the paper's r |v+ - v|^2 + (1 - r) |v- - v|^2 in velocities, times t^2 clip / beta."""
    v_old, x_t, x0, t, A = arrays()
    v, r, beta = v_old + 0.3 * torch.randn_like(v_old), nft.optimality(A, CLIP), 0.5
    target = (x_t - x0) / t.view(-1, 1, 1)
    positive = ((1 - beta) * v_old + beta * v - target).square().mean((1, 2))
    negative = ((1 + beta) * v_old - beta * v - target).square().mean((1, 2))
    printed = (r * positive + (1 - r) * negative) * t**2 * CLIP / beta
    got = nft.policy_losses(v, v_old, x_t, x0, t, r, beta=beta, clip=CLIP, adaptive=False)
    torch.testing.assert_close(got, printed)
    # Adaptive: each side over its own mean error.
    by_error = [
        side * t**2 / (t * (velocity - target).abs().mean((1, 2)))
        for side, velocity in zip((positive, negative), nft.implicit_velocities(v, v_old, beta), strict=True)
    ]
    wanted = (r * by_error[0] + (1 - r) * by_error[1]) * CLIP / beta
    torch.testing.assert_close(nft.policy_losses(v, v_old, x_t, x0, t, r, beta=beta, clip=CLIP), wanted)


def test_weight_is_held_fixed() -> None:
    """The gradient through w would change its size: for |e|^2 / w with w = mean |e|, by -e^2 sign(e) / w^2."""
    x0 = torch.zeros(1, 1, 2, dtype=torch.float64)
    t, r = torch.ones(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    v = torch.tensor([[[-1.0, -3.0]]], dtype=torch.float64, requires_grad=True)  # x^+ - x0 = (1, 3), w = 2
    (got,) = torch.autograd.grad(nft.policy_losses(v, v.detach(), x0, x0, t, r, beta=1.0, clip=1.0).sum(), v)
    assert got.flatten().tolist() == pytest.approx([-0.5, -1.5])  # -(2 e / w) / 2; through w: (0.75, -0.25)


def test_least_error() -> None:
    """A picture that is predicted exactly has a loss of 0 and a finite gradient."""
    x0 = torch.zeros(1, 1, 2)
    v = torch.zeros(1, 1, 2, requires_grad=True)
    losses = nft.policy_losses(v, v.detach(), x0, x0, torch.ones(1), torch.ones(1), beta=1.0, clip=CLIP)
    (got,) = torch.autograd.grad(losses.sum(), v)
    assert losses.tolist() == [0] and bool((got == 0).all())


def test_only_the_current_policy_has_a_gradient() -> None:
    """Everything but v is held fixed, also where it could have a gradient; v's is the same as without."""
    v_old, x_t, x0, t, A = arrays()
    v = (v_old + 0.1).requires_grad_()
    r = nft.optimality(A, CLIP)
    alone = torch.autograd.grad(nft.policy_losses(v, v_old, x_t, x0, t, r, beta=1.0, clip=CLIP).sum(), v)[0]
    others = old, noised, data, probability = [x.clone().requires_grad_() for x in (v_old, x_t, x0, r)]
    losses = nft.policy_losses(v, old, noised, data, t, probability, beta=1.0, clip=CLIP)
    got, *rest = gradient(losses.sum(), v, *others)
    assert got is not None and torch.equal(got, alone) and rest == [None] * 4
    for loss in (nft.kl_losses, nft.norm_hinge_losses):
        reference = (0.5 * v_old).requires_grad_()
        got, of_reference = gradient(loss(v, reference).sum(), v, reference)
        assert got is not None and bool(got.any()) and of_reference is None
    assert not nft.norm_ratio(v, v_old).requires_grad


def test_kl() -> None:
    """Mean over the picture's elements, a number per picture."""
    v = torch.zeros(2, 3, 4)
    v[1, 0, 0] = 6.0
    assert nft.kl_losses(v, torch.zeros(2, 3, 4)).tolist() == pytest.approx([0, 3])


def test_norm_hinge() -> None:
    """Nothing where |v| <= |v_ref|, whatever the direction; else the squared excess, which only shortens v."""
    reference = torch.randn(4, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scale = torch.tensor([0.0, 0.9, -1.0, 1.1], dtype=torch.float64)
    v = (reference * scale.view(-1, 1, 1)).requires_grad_()
    losses = nft.norm_hinge_losses(v, reference)
    rms = float(reference[3].square().mean().sqrt())
    assert losses.tolist() == pytest.approx([0, 0, 0, (0.1 * rms) ** 2])
    (got,) = torch.autograd.grad(losses.sum(), v)
    assert not bool(got[:3].any())  # finite at v = 0 too
    # By hand: 2 (|v| - |v_ref|) d|v| / dv, and d rms / dv = v / (elements rms).
    torch.testing.assert_close(got[3], 2 * 0.1 * rms * v[3].detach() / (20 * 1.1 * rms))
    torch.testing.assert_close(nft.norm_ratio(v, reference), scale.abs())


def test_old_decays() -> None:
    """The published schedules: i = 180 gives .18; the printed constant; the delayed one, 0 up to step 75."""
    at = {name: [round(decay.at(i), 6) for i in (0, 75, 180, 10_000)] for name, decay in nft.OLD_DECAYS.items()}
    assert at == {
        "copy": [0, 0, 0, 0],
        "linear": [0, 0.075, 0.18, 0.5],
        "constant": [0.001] * 4,
        "delayed": [0, 0, 0.7875, 0.999],
        "centred": [0.25, 0.625, 0.999, 0.999],
    }


def test_follow() -> None:
    """In place, old = d old + (1 - d) current: 0 copies to the last bit, 1 leaves; unlike lists are refused."""
    generator = torch.Generator().manual_seed(0)
    current, before = ([torch.randn(n, 3, generator=generator) for n in (2, 5)] for _ in range(2))
    for decay in (0.0, 0.18, 1.0):
        old = [x.clone() for x in before]
        nft.follow(old, current, decay)
        for new, was, now in zip(old, before, current, strict=True):
            torch.testing.assert_close(new, decay * was + (1 - decay) * now)
            assert decay != 0 or torch.equal(new, now)
            assert decay != 1 or torch.equal(new, was)
    with pytest.raises(ValueError, match="tensor 1 is"):
        nft.follow([torch.zeros(2), torch.zeros(1)], [torch.zeros(2), torch.zeros(4)], 0.5)
    with pytest.raises(ValueError):
        nft.follow([torch.zeros(2)], [], 0.5)


# Eight points on two circles: the old policy draws each as often. What r says of them is arbitrary.
POINTS = torch.tensor(
    [[r * math.cos(a), r * math.sin(a)] for i, r in enumerate((1.0, 2.0) * 4) for a in [math.pi / 4 * i]],
    dtype=torch.float64,
)
R = torch.tensor([0.9, 0.1, 0.5, 0.0, 1.0, 0.3, 0.5, 0.7], dtype=torch.float64)


def posterior(x_t: Tensor, t: float) -> Tensor:
    """(M, 8) how likely each point is the clean one of x_t (M, 2), by Bayes' rule: x_t ~ N((1 - t) point, t^2)."""
    distance = (x_t[:, None] - (1 - t) * POINTS).square().sum(-1)
    return torch.softmax(-distance / (2 * t**2), dim=1)


def velocity(x_t: Tensor, t: float, weights: Tensor) -> Tensor:
    """(M, 2) mean of (x_t - x0) / t over the points with `weights` (M, 8) that sum to 1."""
    return (x_t - weights @ POINTS) / t


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("t", [0.3, 0.7, 0.95])
def test_optimum_is_the_tilted_policy(beta: float, t: float) -> None:
    """The minimum of the expected loss is the velocity of the posterior tilted by 1 + 2/beta (r - E[r | x_t]).

    DiffusionNFT's theorem in the form of weights: v* = v_old + 2/beta E[r | x_t] (v_positive - v_old), where v_positive
    is the velocity of the old policy weighted by r. Here x_t, so the expectation over x0 is a sum of eight terms.
    """
    x_t = torch.randn(7, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    p = posterior(x_t, t)
    v_old = velocity(x_t, t, p)
    tilted = p * (1 + 2 / beta * (R - (p @ R)[:, None]))
    torch.testing.assert_close(tilted.sum(1), torch.ones(7, dtype=torch.float64))
    wanted = velocity(x_t, t, tilted)
    positive = p * R / (p @ R)[:, None]
    torch.testing.assert_close(wanted, v_old + 2 / beta * (p @ R)[:, None] * (velocity(x_t, t, positive) - v_old))

    def expected(v: Tensor) -> Tensor:
        """Sum over x_t of the loss' mean over x0; every pair (x_t, point) is a picture of its own."""
        of_v, of_old, of_x = (x.repeat_interleave(8, 0).unsqueeze(1) for x in (v, v_old, x_t))
        points, times = POINTS.repeat(7, 1).unsqueeze(1), torch.full((56,), t, dtype=torch.float64)
        losses = nft.policy_losses(of_v, of_old, of_x, points, times, R.repeat(7), beta=beta, clip=CLIP, adaptive=False)
        return (losses.view(7, 8) * p).sum()

    # The loss is quadratic in v with the same curvature everywhere, so one Newton step lands on the minimum.
    v = v_old.clone().requires_grad_()
    (slope,) = torch.autograd.grad(expected(v), v)
    found = v_old - slope / (CLIP * beta * t**2)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
    there = found.clone().requires_grad_()
    assert float(torch.autograd.grad(expected(there), there)[0].abs().max()) < 1e-9
    assert float((wanted - v_old).abs().max()) > 0.01


@pytest.mark.parametrize("adaptive", [False, True])
def test_trained_policy(adaptive: bool) -> None:
    """A small network, trained on samples of the old policy alone, finds the optimum and draws the rewarded side more.

    The old policy is N(0, 1) in two dimensions and r is 1 where the first coordinate is positive, so that everything
    has a closed form: x0 given x_t is N(m, s^2), cov(r, x0 | x_t) = s phi(m / s), and v* = v_old - 2/beta cov / t.
    The weights of `adaptive` change the optimum but not its direction.
    """
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    beta = 1.0

    def old(x: Tensor, t: Tensor) -> Tensor:
        """E[eps - x0 | x_t] of x0 ~ N(0, 1)."""
        return x * (2 * t - 1) / ((1 - t) ** 2 + t**2)

    def optimal_change(x: Tensor, t: Tensor) -> Tensor:
        m = x[..., :1] * (1 - t) / ((1 - t) ** 2 + t**2)
        s = (t**2 / ((1 - t) ** 2 + t**2)).sqrt()
        covariance = s * torch.exp(-((m / s) ** 2) / 2) / math.sqrt(2 * math.pi)
        return F.pad(-2 / beta * covariance / t, (0, 1))

    change = torch.nn.Sequential(torch.nn.Linear(3, 48), torch.nn.SiLU(), torch.nn.Linear(48, 2))
    optimizer = torch.optim.Adam(change.parameters(), lr=1e-2)
    for step in range(400):
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - step / 400)
        x0, eps = torch.randn(2, 512, 1, 2, generator=generator)
        t = torch.rand(512, generator=generator) * 0.9 + 0.1
        x_t, column = interpolate(x0, eps, t), t.view(-1, 1, 1)
        v_old = old(x_t, column)
        v = v_old + change(torch.cat([x_t, column], -1))
        r = nft.optimality(x0[:, 0, 0].sign(), 1.0)  # +-1 standard deviation
        loss = nft.policy_losses(v, v_old, x_t, x0, t, r, beta=beta, clip=1.0, adaptive=adaptive).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    noise = torch.randn(4000, 2, generator=generator)
    grid = [1 - i / 20 for i in range(21)]

    def share(more: Callable[[Tensor, Tensor], Tensor]) -> tuple[float, float]:
        """Share of what is drawn on the rewarded side, and the mean of the coordinate that does not matter."""

        def v(x: Tensor, t: float) -> Tensor:
            return old(x, torch.tensor(t)) + more(x, torch.tensor(t))

        with torch.no_grad():
            drawn = denoise(v, noise, grid)
        return float((drawn[:, 0] > 0).float().mean()), float(drawn[:, 1].mean())

    before, optimal = share(lambda x, t: torch.zeros_like(x)), share(optimal_change)
    trained = share(lambda x, t: change(torch.cat([x, t.expand(len(x), 1)], -1)))
    assert before[0] == pytest.approx(0.5, abs=0.03) and optimal[0] > 0.85
    # Half of the optimal change draws 0.73, the wrong sign 0.13.
    assert trained[0] > 0.78 if adaptive else trained[0] == pytest.approx(optimal[0], abs=0.05)
    assert trained[1] == pytest.approx(before[1], abs=0.1)
