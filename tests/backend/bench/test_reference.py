"""The published pipeline as `lens bench` states it, against `plain_lens` (float64 loops that share no line with it)
and against diffusers.

Why it can be trusted: three statements of one description, written separately, agree; and the last tests show that the
comparison sees what the published pipeline does differently (its roundings) as well as what must make no difference.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from backend import sampling
from backend.bench import reference
from backend.denoising import latents
from backend.params import DiTParams
from tests.backend import plain_lens
from tests.backend.plain_lens import Array

PARAMS = DiTParams(
    in_channels=8,
    out_channels=2,
    num_layers=2,
    attention_head_dim=12,
    num_attention_heads=2,
    enc_hidden_dim=10,
    axes_dims_rope=(2, 4, 6),  # three different sizes, so that swapped axes show
    selected_layer_index=(0, 1, 2),
)
CONFIG: dict[str, Any] = {name: getattr(PARAMS, name) for name in PARAMS.__dataclass_fields__}
SIGMAS = (1.0, 0.9, 0.6, 0.0)
TOLERANCE = 1e-5  # float32 against float64


@pytest.fixture(scope="module")
def weights() -> dict[str, Array]:
    """float32 values in float64; norms around 1, no bias or modulation zero."""
    rng = np.random.default_rng(0)
    out = {}
    for key, shape in plain_lens.shapes(CONFIG).items():
        spread = 0.3 if len(shape) == 1 else 1.0 / np.sqrt(shape[1])
        values = rng.normal(0.0, spread, shape) + (1.0 if "norm" in key and len(shape) == 1 else 0.0)
        out[key] = values.astype(np.float32).astype(np.float64)
    return out


def lens(weights: dict[str, Array], dtype: torch.dtype = torch.float32) -> reference.ReferenceLens:
    return reference.ReferenceLens({k: torch.from_numpy(v).to(dtype) for k, v in weights.items()}, PARAMS)


def given(grid: tuple[int, int], length: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1, grid[0] * grid[1], PARAMS.in_channels, generator=generator)
    return x, 10 * torch.randn(1, length, 3, PARAMS.enc_hidden_dim, generator=generator)


def error(got: Tensor, wanted: Array) -> float:
    return float(np.abs(got.double().numpy() - wanted).max() / np.abs(wanted).max())


@pytest.mark.parametrize(("grid", "lengths"), [((3, 5), (4, 0)), ((4, 2), (2, 5))])
def test_velocity_of_the_padded_batch_equals_the_loops(
    weights: dict[str, Array], grid: tuple[int, int], lengths: tuple[int, int]
) -> None:
    """Both branches, odd and even sizes; the padded rows and the blank branch included."""
    x, c = given(grid, lengths[0])
    _, u = given(grid, lengths[1], seed=2)
    text = reference.pad_text(c, u)
    rope = reference.RopeTables(PARAMS, torch.device("cpu"))
    t = torch.tensor([0.7, 0.7])
    got = lens(weights).velocity(torch.cat((x, x)), t, text.features_BLTF, text.keep_BL, grid, rope)
    for row, features in enumerate((c, u)):
        wanted = plain_lens.velocity(weights, CONFIG, x[0].double().numpy(), 0.7, features[0].double().numpy(), grid)
        assert error(got[row], wanted) < TOLERANCE


@pytest.mark.parametrize("guidance", [1.0, 5.0])
@pytest.mark.parametrize("batched", [True, False])
def test_denoise_equals_euler_steps_over_the_loops(weights: dict[str, Array], guidance: float, batched: bool) -> None:
    grid = (2, 3)
    x, c = given(grid, 3)
    steps: list[int] = []
    got = reference.denoise(
        lens(weights), x, reference.pad_text(c, None), SIGMAS, guidance, grid, batched=batched, on_step=steps.append
    )
    state = x[0].double().numpy()
    for sigma, following in pairwise(SIGMAS):
        v = plain_lens.velocity(weights, CONFIG, state, sigma, c[0].double().numpy(), grid)
        u = plain_lens.velocity(weights, CONFIG, state, sigma, c[0, :0].double().numpy(), grid)
        combined = u + guidance * (v - u)
        factor = np.linalg.norm(v, axis=-1, keepdims=True) / np.linalg.norm(combined, axis=-1, keepdims=True)
        state = state + (following - sigma) * combined * factor
    assert steps == [0, 1, 2]
    assert error(got[0], state) < 3 * TOLERANCE


def test_bfloat16_rounds_times_twice_as_published(weights: dict[str, Array]) -> None:
    """1000 sigma and then the quotient in bfloat16: what the embedding sees of 1024² in four steps, times 1000."""
    seen: list[float] = []

    class Spy(reference.ReferenceLens):
        def velocity(self, x_BNC: Tensor, t_B: Tensor, *rest: Any, **named: Any) -> Tensor:
            seen.append(float(t_B[0]) * 1000)
            return super().velocity(x_BNC, t_B, *rest, **named)

    x, c = given((2, 2), 2)
    spy = Spy(lens(weights, torch.bfloat16).weights, PARAMS)
    got = reference.denoise(spy, x, reference.pad_text(c, None), sampling.schedule(4096, 4), 1.0, (2, 2))
    assert got.dtype == torch.bfloat16
    assert seen == [1000.0, 968.75, 906.25, 769.53125]


def test_a_larger_batch_moves_bfloat16_but_hardly_float32(weights: dict[str, Array]) -> None:
    """The yardstick is one: zero would make every claim of exactness fail, and a large one let everything pass."""
    x, c = given((8, 8), 5)
    for dtype, most in ((torch.float32, 1e-5), (torch.bfloat16, 0.2)):
        network = lens(weights, dtype)
        both, single = (
            reference.denoise(network, x, reference.pad_text(c, None), SIGMAS, 5.0, (8, 8), batched=batched).float()
            for batched in (True, False)
        )
        assert float((both - single).abs().max() / both.abs().max()) < most


def test_decode_equals_the_pipelines_in_float32_and_truncates() -> None:
    from backend.model.autoencoder import build_vae, latent_statistics
    from backend.model.decode import decode_latent
    from tests.backend.tiny_weights import VAE, random_vae

    state = random_vae()
    plain = reference.build_decoder(state, VAE)
    assert plain.get_parameter("decoder.conv_in.weight").data_ptr() == state["decoder.conv_in.weight"].data_ptr()
    product = build_vae(VAE)
    product.load_state_dict(state)
    x = torch.randn(1, 6, 128, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        got = reference.decode(plain, x, (2, 3))
        z = latents.denormalise(latents.unpack(x, 2, 3), *latent_statistics(product))
        wanted = decode_latent(product, latents.unpatchify(z))
    assert got.shape == (1, 3, 32, 48)
    assert torch.allclose(got, wanted, rtol=1e-4, atol=1e-5)
    just_below = torch.full((1, 3, 1, 1), (254.9 / 127.5) - 1)
    assert reference.to_pixels(just_below).flatten().tolist() == [254, 254, 254]
