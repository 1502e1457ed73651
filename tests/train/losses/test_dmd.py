"""Distribution matching against hand-derived gradients, NVIDIA's `fastgen`, and Gaussians whose answer is known.

Why it can be trusted: `fastgen` states DMD2's losses independently of us; the Gaussians' velocities are written from
their means and deviations alone, and the student ends at the teacher's from either side.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from backend.sampling import empirical_mu, schedule
from tests.train.losses.fastgen import fastgen
from train.losses import dmd
from train.losses.flow import interpolate
from train.losses.sums import clean

SHAPE = (3, 5, 4)  # pictures, tokens, channels


def randoms(count: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return list(torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed), dtype=dtype))


SIGMA = torch.tensor([0.1, 0.5, 0.95], dtype=torch.float64)


def test_gradients_are_differences_of_clean_pictures() -> None:
    """(2) and (3) in x^: fake less real, and -(guidance - 1) (with text less without)."""
    x_s, real, fake, none = randoms(4)
    x_real, x_fake, x_none = (clean(x_s, v, SIGMA) for v in (real, fake, none))
    torch.testing.assert_close(dmd.matching_gradient(real, fake, SIGMA), x_fake - x_real)
    torch.testing.assert_close(dmd.augmentation_gradient(real, none, SIGMA, 5.0), -4.0 * (x_real - x_none))


def test_gradients_that_vanish() -> None:
    """DM is 0 where the fake model has become the teacher; CA is 0 at guidance 1."""
    real, none = randoms(2)
    assert not bool(dmd.matching_gradient(real, real.clone(), SIGMA).any())
    assert not bool(dmd.augmentation_gradient(real, none, SIGMA, 1.0).any())


def test_sum_is_the_guided_teacher() -> None:
    """At one level DM + CA is DMD's gradient with a teacher guided by `fastgen`'s own formula."""
    x_s, real, fake, none = randoms(4)
    guided = fastgen("utils").classifier_free_guidance(clean(x_s, real, SIGMA), clean(x_s, none, SIGMA), 5.0)
    both = dmd.matching_gradient(real, fake, SIGMA) + dmd.augmentation_gradient(real, none, SIGMA, 5.0)
    torch.testing.assert_close(both, clean(x_s, fake, SIGMA) - guided)


def test_score_form() -> None:
    """g_DM points where the difference of scores (1) does: s_fake - s_real = (1 - s) / s^2 (x^_fake - x^_real)."""
    x_s, real, fake = randoms(3)
    s = SIGMA.view(-1, 1, 1)
    score = [-(x_s - (1 - s) * clean(x_s, v, SIGMA)) / s**2 for v in (fake, real)]
    torch.testing.assert_close(score[0] - score[1], (1 - s) / s**2 * dmd.matching_gradient(real, fake, SIGMA))


def test_nothing_of_a_gradient_has_a_gradient() -> None:
    """The networks' answers are held fixed even where they have a graph; only x gets a gradient."""
    inputs = [x.requires_grad_() for x in randoms(4)]
    x, real, fake, none = inputs
    for gradient in (dmd.matching_gradient(real, fake, SIGMA), dmd.augmentation_gradient(real, none, SIGMA, 5.0)):
        assert not gradient.requires_grad
    N = dmd.normaliser("clamped", x, clean(x, real, SIGMA))
    assert not N.requires_grad
    weight = torch.ones(3, dtype=torch.float64, requires_grad=True)
    of = torch.autograd.grad(dmd.proxy_losses(x, real - fake, weight).sum(), [*inputs, weight], allow_unused=True)
    assert of[0] is not None and of[1:] == (None, None, None, None)


def test_proxy_gradient_and_reduction() -> None:
    """d L / d x = g / (N elements): the mean over a picture's elements, so twice the tokens halve it."""
    x, g = (value.requires_grad_() for value in randoms(2))
    N = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    losses = dmd.proxy_losses(x, g, N)
    (got,) = torch.autograd.grad(losses.sum(), x)
    torch.testing.assert_close(got, (g / N.view(-1, 1, 1) / 20).detach())
    torch.testing.assert_close(losses, (0.5 * (g / N.view(-1, 1, 1)).square().mean((1, 2))).detach())
    twice = torch.cat([x, x], 1)
    (halved,) = torch.autograd.grad(dmd.proxy_losses(twice, torch.cat([g, g], 1), N).sum(), twice)
    torch.testing.assert_close(halved[:, :5], got / 2)


def test_weight_beside_the_adversarial_term() -> None:
    """The one constant that must not be guessed: at 1024 x 1024 a gradient of |g| = N has norm 0.1 / sqrt(elements).

    A sum instead of the mean would make it 5e5 times larger, and the adversarial term, 0.001 of a mean over pictures,
    nothing beside it.
    """
    elements = 4096 * 128
    x = torch.zeros(1, 4096, 128, requires_grad=True)
    (got,) = torch.autograd.grad(0.1 * dmd.proxy_losses(x, torch.ones(1, 4096, 128), torch.ones(1)).mean(), x)
    assert float(got.double().norm()) == pytest.approx(0.1 / math.sqrt(elements), rel=1e-5)


def test_normalisers() -> None:
    """Mean |x - x^| per picture: with a floor of 0.1, with 1e-6 more, or 1 for all."""
    x = torch.zeros(SHAPE)
    x_real = torch.tensor([0.02, -0.1, 3.0]).view(3, 1, 1).expand(SHAPE)
    assert dmd.normaliser("clamped", x, x_real).tolist() == pytest.approx([0.1, 0.1, 3.0])
    assert dmd.normaliser("plain", x, x_real).tolist() == pytest.approx([0.020001, 0.100001, 3.000001])
    assert dmd.normaliser("none", x, x_real).tolist() == [1, 1, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_against_fastgen(dtype: torch.dtype) -> None:
    """The student's loss and its gradient, the fake model's loss, on random tensors, to 1e-6."""
    theirs = fastgen("losses")
    x, eps, real, fake = randoms(4, 1, dtype)
    sigma = SIGMA.to(dtype)
    x_s = interpolate(x, eps, sigma)
    x_real, x_fake = clean(x_s, real, sigma), clean(x_s, fake, sigma)
    flow = fastgen("flow_matching")
    torch.testing.assert_close(x_s, flow.add_noise(x, eps, sigma), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(x_real, flow.pred_x0_from_flow(real, x_s, sigma), rtol=1e-6, atol=1e-6)

    mine, other = (x.clone().requires_grad_() for _ in range(2))
    loss = dmd.proxy_losses(mine, dmd.matching_gradient(real, fake, sigma), dmd.normaliser("plain", x, x_real)).mean()
    wanted = theirs.vsd_loss(other, x_real, x_fake)
    torch.testing.assert_close(loss, wanted, rtol=1e-6, atol=1e-6)
    (got,), (gradient,) = torch.autograd.grad(loss, mine), torch.autograd.grad(wanted, other)
    torch.testing.assert_close(got, gradient, rtol=2e-6, atol=1e-8)
    assert float(gradient.abs().max()) > 1e-3

    v, v_theirs = (fake.clone().requires_grad_() for _ in range(2))
    loss, wanted = dmd.fake_losses(v, x, eps).mean(), theirs.dsm_loss("flow", v_theirs, x0=x, eps=eps)
    torch.testing.assert_close(loss, wanted, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(
        *(torch.autograd.grad(a, b)[0] for a, b in ((loss, v), (wanted, v_theirs))), rtol=1e-6, atol=1e-8
    )


def test_fake_model_does_not_train_the_student() -> None:
    v, x, eps = (value.requires_grad_() for value in randoms(3))
    got, *rest = torch.autograd.grad(dmd.fake_losses(v, x, eps).sum(), (v, x, eps), allow_unused=True)
    torch.testing.assert_close(got, (2 / 20 * (v - (eps - x))).detach())
    assert rest == [None, None]


def test_ida() -> None:
    """fake = .97 fake + .03 student, exactly and in place; the student and the fake model's Adam state stay."""
    torch.manual_seed(0)
    fake, student = torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)
    optimizer = torch.optim.AdamW(fake.parameters(), lr=1e-3, betas=(0.0, 0.9))
    fake(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    before = {name: value.clone() for name, value in fake.state_dict().items()}
    there = {name: value.clone() for name, value in student.state_dict().items()}
    state = [{name: value.clone() for name, value in s.items()} for s in optimizer.state.values()]
    dmd.ida(list(fake.parameters()), list(student.parameters()), 0.03)
    for name, value in fake.state_dict().items():
        torch.testing.assert_close(value, 0.97 * before[name] + 0.03 * there[name], rtol=1e-6, atol=1e-7)
        assert torch.equal(student.state_dict()[name], there[name]) and not torch.equal(value, before[name])
    for was, now in zip(state, optimizer.state.values(), strict=True):
        assert all(torch.equal(was[name], now[name]) for name in was)
    with pytest.raises(ValueError, match="tensor 0 is"):
        dmd.ida([torch.zeros(2, dtype=torch.bfloat16)], [torch.zeros(2)], 0.03)


@pytest.mark.parametrize("tokens", [1024, 4096, 4232])
def test_shift_is_the_schedule(tokens: int) -> None:
    """The unshifted level of step k, 1 - k / 4, lands on the grid that Turbo is served on."""
    mu = empirical_mu(tokens, 4)
    grid = schedule(tokens, 4)
    levels = dmd.shift(torch.tensor([1 - k / 4 for k in range(5)], dtype=torch.float64), mu)
    torch.testing.assert_close(levels, torch.tensor(grid, dtype=torch.float64), rtol=1e-6, atol=0)
    assert levels[0] == 1 and levels[4] == 0


@pytest.mark.parametrize("k", range(4))
def test_levels(k: int) -> None:
    """CA lies below the level that the student stepped from, over the whole of what is left; DM does not know of it."""
    mu, step_level, sigma_k = empirical_mu(4096, 4), 1 - k / 4, schedule(4096, 4)[k]
    uniform = torch.linspace(0, 1, 10_001, dtype=torch.float64)[:-1]
    augmentation = dmd.noise_levels(dmd.LEVELS["augmentation"], uniform, mu, step_level)
    assert float(augmentation.max()) < sigma_k and float(augmentation.min()) > 0
    # Uniform before the shift: every decile, from the inverse of the shift.
    unshifted = augmentation / (augmentation + math.exp(mu) * (1 - augmentation))
    high = min(step_level, 0.98)
    torch.testing.assert_close(unshifted, 0.02 + (high - 0.02) * uniform)
    for term in ("matching", "fake", "critic"):
        levels = dmd.noise_levels(dmd.LEVELS[term], uniform, mu, step_level)
        assert torch.equal(levels, dmd.noise_levels(dmd.LEVELS[term], uniform, mu))
        assert float(levels.max()) == pytest.approx(float(dmd.shift(torch.tensor(0.98), mu)), abs=1e-4)


def test_levels_that_do_not_exist() -> None:
    with pytest.raises(ValueError, match="no level between"):
        dmd.noise_levels(dmd.LEVELS["augmentation"], torch.zeros(1), 0.0, step_level=0.01)


def test_relative_gap() -> None:
    real = torch.ones(SHAPE)
    assert dmd.relative_gap(real, torch.zeros(SHAPE)).tolist() == pytest.approx([1, 1, 1])
    assert dmd.relative_gap(real, 1.1 * real).tolist() == pytest.approx([0.1, 0.1, 0.1])


# A world in which the answer is known: the teacher is N(2, 0.5^2), the student a + b z.
MEAN, STD = 2.0, 0.5


def gaussian(x_s: Tensor, s: Tensor, mean: Tensor | float, std: Tensor | float) -> Tensor:
    """E[eps - x0 | x_s] of x0 ~ N(mean, std^2): the velocity of a Gaussian, by the regression of a joint normal."""
    variance = ((1 - s) * std) ** 2 + s**2
    x0 = mean + (1 - s) * std**2 / variance * (x_s - (1 - s) * mean)
    return (x_s - x0) / s


def distil(start: tuple[float, float], steps: int, sign: float = 1.0, kind: str = "clamped") -> tuple[float, float]:
    """Run the paper's global step in miniature; the student's mean and deviation afterwards.

    Four updates of the fake model, itself a Gaussian that learns by (6), one of the student by (4), then (7).
    """
    generator = torch.Generator().manual_seed(0)
    student, fake = (torch.tensor(start, requires_grad=True) for _ in range(2))
    of_student = torch.optim.Adam([student], lr=0.04, betas=(0.0, 0.9))
    of_fake = torch.optim.Adam([fake], lr=0.08, betas=(0.0, 0.9))
    for step in range(steps):
        rate = 1 - step / steps
        of_student.param_groups[0]["lr"], of_fake.param_groups[0]["lr"] = 0.04 * rate, 0.08 * rate
        for update in range(5):
            z, eps = torch.randn(2, 64, 8, 1, generator=generator)
            s = dmd.noise_levels(dmd.LEVELS["matching"], torch.rand(64, generator=generator), 1.0)
            x = student[0] + student[1] * z
            x_s = interpolate(x.detach(), eps, s)
            v_fake = gaussian(x_s, s.view(-1, 1, 1), fake[0], fake[1])
            if update < 4:
                of_fake.zero_grad()
                dmd.fake_losses(v_fake, x, eps).mean().backward()
                of_fake.step()
                continue
            v_real = gaussian(x_s, s.view(-1, 1, 1), MEAN, STD)
            g = sign * dmd.matching_gradient(v_real, v_fake, s)
            N = dmd.normaliser(kind, x, clean(x_s, v_real, s))
            of_student.zero_grad()
            dmd.proxy_losses(x, g, N).mean().backward()
            of_student.step()
            dmd.ida([fake.detach()], [student.detach()], 0.03)
    mean, std = student.tolist()
    return mean, abs(std)


@pytest.mark.parametrize("kind", ["clamped", "none"])
@pytest.mark.parametrize("start", [(0.0, 1.2), (3.0, 0.1)])
def test_student_becomes_the_teacher(start: tuple[float, float], kind: str) -> None:
    """Mean and deviation, from a student too wide and one too narrow: the deviation shows a fake model at work.

    Without the fake model's score the student would shrink to the teacher's mode.
    """
    mean, std = distil(start, 150, kind=kind)
    assert mean == pytest.approx(MEAN, abs=0.03) and std == pytest.approx(STD, abs=0.03)


def test_the_other_sign_flees() -> None:
    """The toy would notice: with g turned the student ends further from the teacher than it began."""
    mean, _ = distil((1.5, 0.5), 60, sign=-1.0)
    assert abs(mean - MEAN) > 1.0


def test_matching_is_the_derivative_of_the_divergence() -> None:
    """For Gaussians the mean of g_DM over the pictures is that of KL(student | teacher) at x_s, times s^2 / (1 - s)^2.

    d KL / d (student's mean) = (1 - s)^2 (a - MEAN) / variance of the teacher's x_s, by the textbook.
    """
    a, s = 1.2, torch.tensor([0.3, 0.6], dtype=torch.float64)
    x_s = interpolate(torch.full((2, 1, 1), a, dtype=torch.float64), torch.zeros(2, 1, 1, dtype=torch.float64), s)
    column = s.view(-1, 1, 1)  # at the mean of x_s: g is linear in x_s, so this is its mean
    g = dmd.matching_gradient(gaussian(x_s, column, MEAN, STD), gaussian(x_s, column, a, 0.7), s)
    variance = ((1 - s) * STD) ** 2 + s**2
    slope = (1 - s) ** 2 * (a - MEAN) / variance
    torch.testing.assert_close(g.flatten(), slope * s**2 / (1 - s) ** 2)
