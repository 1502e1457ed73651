"""Schedule, guidance and samplers against the published tables, plain loops and flows whose solution is known.

Why it can be trusted: the tables were worked out outside of this project and are transcribed digit by digit; guidance
is compared with a loop over tokens in Python floats; the samplers are given velocities whose answer is known (data on
a line, and Gaussian data, whose whole path is a formula), and the second-order one is held against its paper's own
formula in float64.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from backend.sampling import SAMPLERS, denoise, empirical_mu, guide, schedule
from backend.types import Sampler

# (height, width): mu at 4, 8, 20 and 50 steps; None: not in the table.
MU = {
    (512, 512): (2.030690, None, 1.916348, 1.701956),
    (768, 768): (2.139227, None, 2.033712, 1.835871),
    (1024, 1024): (2.291180, 2.267890, 2.198022, 2.023351),
    (1472, 736): (2.302712, 2.279657, 2.210492, 2.037580),
    (1376, 768): (2.293893, 2.270659, 2.200956, 2.026699),
    (1248, 832): (2.287788, 2.264430, 2.194354, 2.019166),
    (1152, 864): (2.273543, 2.249894, 2.178950, 2.001590),
    (1440, 1440): (1.827754,) * 4,
    (2080, 1040): (1.886998,) * 4,
    (1936, 1088): (1.849420,) * 4,
    (1760, 1168): (1.815905,) * 4,
    (1616, 1216): (1.755983,) * 4,
    (1248, 1664): (1.829785,) * 4,
}
SIGMAS = {
    (1024, 4): "1 0.967384 0.9081439 0.7671999 0",
    (1440, 4): "1 0.9491345 0.8614939 0.6746168 0",
    (1024, 20): "1 .9941907 .9878144 .9807842 .9729939 .9643132 .9545800 .9435908 .9310856 .9167275 .9000717 .8805187"
    " .8572405 .8290604 .7942480 .7501495 .6924775 .6138254 .5001994 .3216026 0",
    (1440, 20): "1 .9916092 .9824497 .9724108 .9613595 .9491345 .9355383 .9203266 .9031932 .8837493 .8614939 .8357697"
    " .8056970 .7700714 .7271987 .6746168 .6086067 .5232713 .4086689 .2466267 0",
}
# What the reference's embedding sees of them (times 1000) after rounding to bfloat16 twice: a coarse second reading.
ROUNDED = {
    (1024, 4): "1000 968.75 906.25 769.53125",
    (1440, 4): "1000 949.21875 859.375 675.78125",
    (1024, 20): "1000 996.09375 988.28125 980.46875 972.65625 964.84375 957.03125 945.3125 933.59375 914.0625 898.4375"
    " 878.90625 855.46875 828.125 796.875 753.90625 691.40625 613.28125 500 322.265625",
}
FOUR_STEPS = {512: "1 .958 .884 .718", 768: "1 .962 .895 .739", 1024: "1 .967 .908 .767", 1440: "1 .949 .862 .675"}


def numbers(row: str) -> list[float]:
    return [float(word) for word in row.split()]


# ---------------------------------------------------------------------------------------------------------- schedule


@pytest.mark.parametrize("size", MU)
def test_mu(size: tuple[int, int]) -> None:
    tokens = size[0] * size[1] // 256
    for steps, mu in zip((4, 8, 20, 50), MU[size], strict=True):
        if mu is not None:
            assert empirical_mu(tokens, steps) == pytest.approx(mu, abs=1e-6)


def test_mu_jumps_at_4300_tokens() -> None:
    assert empirical_mu(4300, 20) == pytest.approx(2.216, abs=1e-3)
    assert empirical_mu(4301, 20) == pytest.approx(1.18, abs=6e-3)
    assert empirical_mu(4301, 4) == empirical_mu(4301, 50)
    # Below, the two published lines are met exactly at 10 and 200 steps.
    assert empirical_mu(1024, 10) == pytest.approx(8.73809524e-5 * 1024 + 1.89833333, abs=1e-12)
    assert empirical_mu(1024, 200) == pytest.approx(0.00016927 * 1024 + 0.45666666, abs=1e-12)


@pytest.mark.parametrize("key", SIGMAS)
def test_sigmas(key: tuple[int, int]) -> None:
    side, steps = key
    assert schedule(side * side // 256, steps) == pytest.approx(numbers(SIGMAS[key]), abs=1e-6)


def test_fifty_steps() -> None:
    sigmas = schedule(4096, 50)
    assert len(sigmas) == 51
    assert sigmas[:3] == pytest.approx((1, 0.9973091, 0.9945214), abs=1e-6)
    assert sigmas[-4:] == pytest.approx((0.3255933, 0.2396312, 0.1337190, 0), abs=1e-6)


@pytest.mark.parametrize("key", ROUNDED)
def test_sigmas_as_bfloat16_times(key: tuple[int, int]) -> None:
    sigmas = torch.tensor(schedule(key[0] ** 2 // 256, key[1])[:-1])
    rounded = (sigmas * 1000).bfloat16() / 1000
    assert (rounded.float() * 1000).tolist() == pytest.approx(numbers(ROUNDED[key]), abs=1e-3)


@pytest.mark.parametrize("side", FOUR_STEPS)
def test_four_step_grids(side: int) -> None:
    assert schedule(side * side // 256, 4)[:4] == pytest.approx(numbers(FOUR_STEPS[side]), abs=5.1e-4)


@pytest.mark.parametrize(("tokens", "steps"), [(1, 1), (64, 2), (256, 7), (4300, 20), (8450, 50), (256, 1000)])
def test_schedule_falls_from_one_to_zero(tokens: int, steps: int) -> None:
    sigmas = schedule(tokens, steps)
    assert len(sigmas) == steps + 1
    assert (sigmas[0], sigmas[-1]) == (1.0, 0.0)
    assert all(a > b for a, b in itertools.pairwise(sigmas))


def test_no_steps() -> None:
    with pytest.raises(ValueError, match="at least one step, not 0"):
        schedule(4096, 0)


# ---------------------------------------------------------------------------------------------------------- guidance


def plain_guide(c: list[float], u: list[float], scale: float) -> list[float]:
    """One token: u + scale (c - u), stretched to the length of c; left alone where its length is 0."""
    combined = [b + scale * (a - b) for a, b in zip(c, u, strict=True)]
    length = math.sqrt(sum(x * x for x in combined))
    factor = math.sqrt(sum(x * x for x in c)) / max(length, 1e-12) if length > 0 else 1.0
    return [x * factor for x in combined]


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5, 5.0, 20.0])
def test_guidance_against_a_loop(scale: float) -> None:
    rng = random.Random(3)
    c = [[rng.gauss(0, 2) for _ in range(6)] for _ in range(5)]
    u = [[rng.gauss(0, 1) for _ in range(6)] for _ in range(5)]
    c[1] = [0.0] * 6  # a conditional token of no length: the result has none
    u[2] = c[2]  # no difference: the conditional token
    u[3] = [0.0] * 6
    if scale > 1:
        u[4] = [scale / (scale - 1) * x for x in c[4]]  # combined is (nearly) nothing
        c[0] = u[0] = [0.0] * 6
    got = guide(torch.tensor([c]), torch.tensor([u]), scale)
    wanted = [plain_guide(a, b, scale) for a, b in zip(c, u, strict=True)]
    # Row 4 of a scale above 1 is a direction made of rounding errors: only its finiteness and length are defined.
    rows = 4 if scale > 1 else 5
    torch.testing.assert_close(got[0, :rows], torch.tensor(wanted)[:rows], rtol=1e-5, atol=1e-6)
    assert torch.isfinite(got).all()
    assert (got.norm(dim=-1) <= torch.tensor([c]).norm(dim=-1) * (1 + 1e-5)).all()


def test_exact_cancellation_stays_zero() -> None:
    """Powers of two: u + 2 (c - u) is exactly 0, and 0 is not divided by."""
    c = torch.full((1, 1, 4), 0.5)
    assert torch.equal(guide(c, 2 * c, 2.0), torch.zeros(1, 1, 4))
    assert torch.equal(guide(0 * c, 0 * c, 5.0), torch.zeros(1, 1, 4))


def test_guidance_of_one_is_the_conditional() -> None:
    generator = torch.Generator().manual_seed(0)
    c, u = torch.randn(2, 1, 9, 16, generator=generator)
    torch.testing.assert_close(guide(c, u, 1.0), c, rtol=1e-6, atol=1e-6)


def test_guidance_keeps_the_length_token_by_token() -> None:
    """Over the channels of one token, not over the picture."""
    generator = torch.Generator().manual_seed(0)
    c, u = torch.randn(2, 2, 9, 16, generator=generator)
    c = c * torch.logspace(-3, 3, 9)[:, None]
    torch.testing.assert_close(guide(c, u, 5.0).norm(dim=-1), c.norm(dim=-1), rtol=1e-5, atol=0)


def test_guidance_is_computed_in_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    c, u = torch.randn(2, 1, 4, 128, generator=generator).bfloat16()
    got = guide(c, u, 5.0)
    assert got.dtype == torch.float32
    assert torch.equal(got, guide(c.float(), u.float(), 5.0))


# ------------------------------------------------------------------------------------------------------------- steps


@pytest.mark.parametrize("sampler", Sampler)
@pytest.mark.parametrize("steps", [1, 4, 20])
def test_true_velocity_lands_on_the_data(steps: int, sampler: Sampler) -> None:
    """On the straight path v = eps - x0 is constant: any number of steps arrives."""
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 1, 6, 8, generator=generator)
    arrived = denoise(lambda x, t: eps - x0, eps, schedule(6, steps), sampler=sampler)
    torch.testing.assert_close(arrived, x0, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sampler", Sampler)
def test_direction_and_sign(sampler: Sampler) -> None:
    """With v = (x - x0) / t, the velocity of a network that knows x0, every step stays on the line."""
    x0, eps = torch.full((1, 2, 3), 0.25), torch.full((1, 2, 3), -1.5)
    sigmas = schedule(2, 5)
    seen: list[tuple[int, Tensor]] = []
    denoise(lambda x, t: (x - x0) / t, eps, sigmas, lambda i, x: seen.append((i, x)), sampler)
    assert [i for i, _ in seen] == [0, 1, 2, 3, 4]
    for i, x in seen:
        t = sigmas[i + 1]
        torch.testing.assert_close(x, (1 - t) * x0 + t * eps)


@pytest.mark.parametrize("sampler", Sampler)
def test_contract_of_denoise(sampler: Sampler) -> None:
    """The velocity gets float32 and each sigma but the last; x is kept in float32; the input is not changed."""
    sigmas = schedule(4, 3)
    start = torch.ones(1, 4, 2, dtype=torch.bfloat16)
    calls: list[tuple[torch.dtype, float]] = []

    def velocity(x: Tensor, t: float) -> Tensor:
        calls.append((x.dtype, t))
        return (torch.ones_like(x) * 1e-3).bfloat16()

    order: list[str] = []
    out = denoise(velocity, start, sigmas, lambda i, x: order.append(f"{i} {len(calls)}"), sampler)
    assert calls == [(torch.float32, sigma) for sigma in sigmas[:-1]]
    assert order == ["0 1", "1 2", "2 3"]  # after each step, before the next velocity
    assert out.dtype == torch.float32
    assert torch.equal(start, torch.ones_like(start))
    # bfloat16 steps this small would all have been lost.
    torch.testing.assert_close(out, torch.full_like(out, 1 - float(torch.tensor(1e-3).bfloat16())))


@pytest.mark.parametrize("sampler", Sampler)
def test_on_step_may_stop(sampler: Sampler) -> None:
    calls: list[float] = []

    class Stop(Exception):
        pass

    def velocity(x: Tensor, t: float) -> Tensor:
        calls.append(t)
        return x

    def on_step(i: int, x: Tensor) -> None:
        if i == 1:
            raise Stop

    with pytest.raises(Stop):
        denoise(velocity, torch.ones(1, 1, 1), schedule(1, 5), on_step, sampler)
    assert len(calls) == 2


# ------------------------------------------------------------------------------------------------------ second order

MEAN, SPREAD = 0.3, 1.0  # of Gaussian data, x0 ~ N(MEAN, SPREAD^2)
START = torch.linspace(-2, 2, 5)


def gaussian_velocity(x: Tensor, t: float) -> Tensor:
    """E[eps - x0 | x_t = x] in closed form: both are a regression on x_t, whose variance is (1-t)^2 SPREAD^2 + t^2."""
    away = (x - (1 - t) * MEAN) / ((1 - t) ** 2 * SPREAD**2 + t**2)
    return t * away - (MEAN + (1 - t) * SPREAD**2 * away)


def gaussian_path(z: Tensor, t: float) -> Tensor:
    """The flow's solution: the quantile z keeps its place in the normal distribution of x_t."""
    return (1 - t) * MEAN + math.sqrt((1 - t) ** 2 * SPREAD**2 + t**2) * z


def order(sampler: Sampler, first: float, last: float, few: int) -> float:
    """log2 of how much smaller the error is with twice the steps, between two times."""
    errors: list[float] = []
    for steps in (few, 2 * few):
        sigmas = [first + (last - first) * i / steps for i in range(steps + 1)]
        got = denoise(gaussian_velocity, gaussian_path(START, first), sigmas, sampler=sampler)
        errors.append(float((got - gaussian_path(START, last)).abs().max()))
    return math.log2(errors[0] / errors[1])


def test_order_of_convergence() -> None:
    """Between two times within the path, and over the whole of it, where the first two steps and the last are Euler's
    (which costs less than one order: there are only three of them)."""
    assert order(Sampler.euler, 0.9, 0.1, 64) == pytest.approx(1, abs=0.1)
    assert order(Sampler.dpmpp_2m, 0.9, 0.1, 64) == pytest.approx(2, abs=0.15)
    assert order(Sampler.euler, 1.0, 0.0, 64) == pytest.approx(1, abs=0.1)
    assert order(Sampler.dpmpp_2m, 1.0, 0.0, 64) > 1.7


def published_2m(velocity: Callable[[float, float], float], x: float, sigmas: Sequence[float]) -> float:
    """DPM-Solver++(2M) as its paper writes it, for alpha = 1 - sigma, on one number in float64; no lambda is infinite
    in its second-order steps, and its first-order step is written by its limits."""
    data: list[float] = []
    for i, (s, t) in enumerate(itertools.pairwise(sigmas)):
        data.append(x - s * velocity(x, s))
        shrink = math.exp(-h) if (h := log_ratio(t) - log_ratio(s)) < math.inf else 0.0
        towards = data[-1]
        if i >= 1 and h < math.inf and (before := log_ratio(s) - log_ratio(sigmas[i - 1])) < math.inf:
            r = before / h
            towards = (1 + 1 / (2 * r)) * data[-1] - 1 / (2 * r) * data[-2]
        x = t / s * x - (1 - t) * (shrink - 1) * towards
    return x


def log_ratio(sigma: float) -> float:
    return -math.inf if sigma == 1 else math.inf if sigma == 0 else math.log(1 - sigma) - math.log(sigma)


@pytest.mark.parametrize("sigmas", [schedule(4096, 10), schedule(256, 4), (0.8, 0.5, 0.45, 0.1), (0.9, 0.6, 0.4, 0.0)])
def test_second_order_against_the_published_formula(sigmas: tuple[float, ...]) -> None:
    starts = [-1.7, 0.0, 0.4, 2.2]
    first, second = (
        denoise(lambda x, t: torch.tanh(3 * x) - t * x**2, torch.tensor(starts), sigmas, sampler=one) for one in Sampler
    )
    wanted = [published_2m(lambda x, t: math.tanh(3 * x) - t * x**2, start, sigmas) for start in starts]
    torch.testing.assert_close(second, torch.tensor(wanted), rtol=1e-5, atol=1e-5)
    assert (first - second).abs().max() > 1e-3  # so that the bound above says something


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_what_has_no_second_order_step_is_euler(steps: int) -> None:
    """From noise alone lambda is -inf, so the second step has no slope to go by either: only from 4 steps on is there
    one that has. To the last bit, and finite."""
    x = torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(0))
    euler, second = (denoise(gaussian_velocity, x, schedule(6, steps), sampler=one) for one in Sampler)
    assert torch.equal(euler, second) and torch.isfinite(euler).all()
    assert not torch.equal(*(denoise(gaussian_velocity, x, schedule(6, 4), sampler=one) for one in Sampler))


def test_every_sampler_has_a_row_and_a_name_of_its_own() -> None:
    assert set(SAMPLERS) == set(Sampler)
    assert len({solver.name for solver in SAMPLERS.values()}) == len(SAMPLERS)
