"""The student's own way against inference's sampler, the published grids and `fastgen`'s steps.

Why it can be trusted: the last step from every k must land where inference lands to the last bit, on every shape that
is trained on; the levels at which the student was asked are written down beside the published ones.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from backend.sampling import denoise, schedule
from tests.train.losses.fastgen import fastgen
from train.losses.backward import simulate

# The 27 shapes of training, short and long side in pixels.
SHAPES = [
    (352, 704), (384, 672), (416, 640), (448, 608), (512, 512), (544, 1088), (576, 1024), (640, 960), (672, 896),
    (768, 768), (736, 1472), (768, 1376), (832, 1248), (864, 1152), (1024, 1024),
]  # fmt: skip
BUCKETS = SHAPES + [(long, short) for short, long in SHAPES if short != long]
PUBLISHED = {512: (1, 0.958, 0.884, 0.718), 768: (1, 0.962, 0.895, 0.739), 1024: (1, 0.967, 0.908, 0.767)}


class Student(torch.nn.Module):
    """A velocity that depends on x and sigma, and writes down at which levels it was asked and with a graph or not."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(0.7))
        self.asked: list[tuple[float, bool]] = []

    def forward(self, x: Tensor, sigma: float) -> Tensor:
        self.asked.append((sigma, torch.is_grad_enabled()))
        return torch.tanh(self.weight * x + sigma)


def noise(seed: int = 0) -> Tensor:
    return torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bucket", BUCKETS)
def test_grid_is_the_served_one(bucket: tuple[int, int]) -> None:
    """The levels asked are inference's own on this shape, and the whole way is inference's picture, bit for bit."""
    student, served = Student(), Student()
    tokens = bucket[0] * bucket[1] // 256
    grid = schedule(tokens, 4)
    got = simulate(student, noise(), grid, 3)
    with torch.no_grad():
        picture = denoise(served, noise(), grid)
    assert [sigma for sigma, _ in student.asked] == [sigma for sigma, _ in served.asked] == list(grid[:4])
    assert torch.equal(got.x0_BNC, picture) and got.sigma_k == grid[3]


@pytest.mark.parametrize("side", PUBLISHED)
def test_published_grids(side: int) -> None:
    student = Student()
    simulate(student, noise(), schedule(side * side // 256, 4), 3)
    assert [sigma for sigma, _ in student.asked] == pytest.approx(PUBLISHED[side], abs=6e-4)


@pytest.mark.parametrize("k", range(4))
def test_gradient_of_the_last_step_alone(k: int) -> None:
    """k steps without a graph, one with it: x0 = x_k - sigma_k v, so d x0 / d w is that of one step by hand."""
    student, grid = Student(), schedule(1024, 4)
    got = simulate(student, noise(), grid, k)
    assert [graph for _, graph in student.asked] == [False] * k + [True]
    assert not got.x_k_BNC.requires_grad and got.sigma_k == grid[k]
    weight = student.weight.detach()
    slope = 1 - torch.tanh(weight * got.x_k_BNC + grid[k]).square()
    torch.testing.assert_close(got.x0_BNC, got.x_k_BNC - grid[k] * torch.tanh(weight * got.x_k_BNC + grid[k]))
    (gradient,) = torch.autograd.grad(got.x0_BNC.sum(), student.weight)
    torch.testing.assert_close(gradient, -(grid[k] * slope * got.x_k_BNC).sum())


def test_no_step_from_pure_noise() -> None:
    """k = 0 begins from the noise itself."""
    got = simulate(Student(), noise(), schedule(1024, 4), 0)
    assert torch.equal(got.x_k_BNC, noise()) and got.sigma_k == 1


def test_without_graph_where_the_caller_says_so() -> None:
    """The fake model's and the critic's updates ask for pictures only."""
    with torch.no_grad():
        assert not simulate(Student(), noise(), schedule(1024, 4), 2).x0_BNC.requires_grad


def test_against_fastgen() -> None:
    """Euler steps are its ODE steps, and fresh noise its SDE steps, through its own conversions."""
    flow, grid = fastgen("flow_matching"), schedule(1024, 4)
    fresh = torch.stack([noise(seed) for seed in (1, 2, 3)])
    student = Student()
    for renoise in (None, fresh):
        x = noise()
        for i in range(3):
            t, following = (torch.full((2,), value, dtype=torch.float64) for value in grid[i : i + 2])
            x0 = flow.pred_x0_from_flow(student(x, grid[i]), x, t)
            x = flow.add_noise(x0, flow.x0_to_eps(x0, x, t) if renoise is None else renoise[i], following).detach()
        got = simulate(student, noise(), grid, 3, renoise)
        torch.testing.assert_close(got.x_k_BNC, x, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("k", [-1, 4, 5])
def test_a_step_that_the_grid_has_not(k: int) -> None:
    with pytest.raises(ValueError, match="has no step"):
        simulate(Student(), noise(), schedule(1024, 4), k)


def test_too_little_noise() -> None:
    """Fewer draws of noise than steps would otherwise end the way early, without a word."""
    with pytest.raises(ValueError):
        simulate(Student(), noise(), schedule(1024, 4), 3, noise()[None])
