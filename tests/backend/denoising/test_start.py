"""Where a latent begins, by hand.

Why it can be trusted: the velocity of the tests acts on each number alone, so what is drawn must come out as without a
mask to the bit, and what is kept must be the picture's latent again, whichever sampler runs.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from backend import sampling
from backend.denoising import latents
from backend.denoising.start import Start, between, drawn_places, noise_of, steps_left
from backend.types import GenerationRequest, Sampler

SIGMAS = sampling.schedule(12, 5)
X0, EPS = torch.randn(2, 1, 12, 128, generator=torch.Generator().manual_seed(1)).unbind()


def velocity(x: Tensor, sigma: float) -> Tensor:
    return torch.tanh(x) * (1 + sigma)


@pytest.mark.parametrize(
    ("steps", "strength", "left"),
    [
        (20, 1.0, 20),
        (20, 0.0, 0),
        (20, 0.6, 12),
        (20, 0.001, 1),
        (4, 0.6, 2),
        (4, 0.9, 4),
        (1, 0.1, 1),
        (20, 0.525, 11),
    ],
)
def test_steps_left(steps: int, strength: float, left: int) -> None:
    assert steps_left(steps, strength) == left


def test_the_ends_are_exact() -> None:
    x, _, sigmas = Start(x0_1NC=X0, strength=1.0).begin(EPS, velocity, SIGMAS)
    assert x is EPS and sigmas == SIGMAS
    x, _, sigmas = Start(x0_1NC=X0, strength=0.0).begin(EPS, velocity, SIGMAS)
    assert torch.equal(x, X0) and sigmas == (0.0,)


def test_between_them_the_schedule_s_own_sigma() -> None:
    x, _, sigmas = Start(x0_1NC=X0, strength=0.4).begin(EPS, velocity, SIGMAS)
    assert sigmas == SIGMAS[3:] and torch.allclose(x, X0 + SIGMAS[3] * (EPS - X0), atol=1e-6)


@pytest.mark.parametrize("sampler", Sampler)
@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_what_is_kept_comes_back_and_the_rest_is_as_ever(sampler: Sampler, strength: float) -> None:
    drawn = torch.zeros(1, 12, 128)
    drawn[:, 3:7] = 1
    ends: list[Tensor] = []
    for mask in (drawn, None):
        x, towards, sigmas = Start(x0_1NC=X0, strength=strength, drawn_1NC=mask).begin(EPS, velocity, SIGMAS)
        ends.append(sampling.denoise(towards, x, sigmas, sampler=sampler))
    kept, free = ends
    assert torch.equal(kept[:, 3:7], free[:, 3:7])
    assert torch.allclose(kept[:, :3], X0[:, :3], atol=1e-5) and torch.allclose(kept[:, 7:], X0[:, 7:], atol=1e-5)
    assert not torch.allclose(free[:, :3], X0[:, :3], atol=0.1)


def test_a_place_of_the_mask_is_one_of_the_latent() -> None:
    """Through the packing and back: the same place in all 32 channels."""
    cells = torch.zeros(8, 6)
    cells[5, 2] = 7
    places = latents.unpatchify(latents.unpack(drawn_places(cells), 4, 3))
    assert places.shape == (1, 32, 8, 6) and torch.equal(places[0], (cells > 0).float().expand(32, 8, 6))


# ----------------------------------------------------------------------------------------------------------- variations


def test_between_two_noises() -> None:
    """The ends to the bit, the length of noise in the middle, and halfway as near to one as to the other."""
    one, other = latents.noise(1, 16, 16), latents.noise(2, 16, 16)
    assert between(one, other, 0.0) is one and between(one, other, 1.0) is other and between(one, one, 0.5) is one
    half = between(one, other, 0.5)
    assert float(half.norm() / one.norm()) == pytest.approx(1, abs=0.01)
    assert float((half * one).sum()) == pytest.approx(float((half * other).sum()), rel=0.02)
    little = between(one, other, 0.1)
    assert float((little * one).sum() / one.norm() / little.norm()) > 0.98


def test_a_seed_varies_another() -> None:
    plain = GenerationRequest(prompt="x", model="", seeds=(7,), width=64, height=48, steps=1, guidance=1.0)
    assert torch.equal(noise_of(plain, 7, 3, 4), latents.noise(7, 3, 4))
    varied = GenerationRequest(**{**vars(plain), "around": 5, "amount": 0.25})
    wanted = between(latents.noise(5, 3, 4), latents.noise(7, 3, 4), 0.25)
    assert torch.equal(noise_of(varied, 7, 3, 4), wanted)
