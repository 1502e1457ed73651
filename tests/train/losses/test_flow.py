"""Flow matching against its table, its closed forms and numerical integration.

Why it can be trusted: the table of mu is the published one; the quantiles of the times come from the normal
distribution's error function, not from samples; the path is walked with the sampler that inference uses.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from backend.model.diffusers_transformer import LensTransformer2DModel
from backend.params import DiTParams
from backend.sampling import denoise, schedule
from train.losses import flow
from train.run.network import init_weights

# Height x width: mean of the logit of t.
MU = {
    (352, 704): 1.0556, (384, 672): 1.0588, (512, 512): 1.0600, (416, 640): 1.0613, (448, 608): 1.0631,
    (576, 1024): 1.1600, (768, 768): 1.1600, (544, 1088): 1.1606, (672, 896): 1.1638, (640, 960): 1.1675,
    (864, 1152): 1.2837, (832, 1248): 1.2969, (1024, 1024): 1.3000, (768, 1376): 1.3025, (736, 1472): 1.3106,
    (256, 256): 1.0,
}  # fmt: skip


@pytest.mark.parametrize("size", MU)
def test_mu(size: tuple[int, int]) -> None:
    """Counted in packed tokens of 16 x 16 pixels; beyond 4096 the line goes on."""
    assert flow.training_mu(size[0] * size[1] // 256) == pytest.approx(MU[size], abs=5.1e-5)


@pytest.mark.parametrize(
    ("mu", "mean", "above_9", "below_3"), [(1.06, 0.707, 0.128, 0.028), (1.3, 0.748, 0.185, 0.016)]
)
def test_times(mu: float, mean: float, above_9: float, below_3: float) -> None:
    """Published mean and tails, and every decile of sigmoid(N(mu, 1)); a positive mu favours noise."""
    t = flow.sample_times(200_000, mu, torch.Generator().manual_seed(0))
    assert 0 < float(t.min()) and float(t.max()) < 1
    assert float(t.mean()) == pytest.approx(mean, abs=2e-3) and mean > 0.5
    assert float((t > 0.9).float().mean()) == pytest.approx(above_9, abs=3e-3)
    assert float((t < 0.3).float().mean()) == pytest.approx(below_3, abs=2e-3)
    for level in [i / 10 for i in range(1, 10)]:
        wanted = 0.5 * (1 + math.erf((math.log(level / (1 - level)) - mu) / math.sqrt(2)))
        assert float((t < level).float().mean()) == pytest.approx(wanted, abs=4e-3)


def test_times_belong_to_their_generator() -> None:
    first, again = (flow.sample_times(5, 1.0, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, again)
    narrow = flow.sample_times(50_000, 1.0, torch.Generator().manual_seed(3), std=0.1)
    assert float(torch.logit(narrow).std()) == pytest.approx(0.1, abs=2e-3)


def test_path_and_target() -> None:
    """x_t = (1 - t) x0 + t eps; x_t - t v = x0 and x_t + (1 - t) v = eps for every t; v is the path's derivative."""
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 4, 6, 8, generator=generator, dtype=torch.float64)
    t = torch.tensor([0.0, 0.25, 0.9, 1.0], dtype=torch.float64)
    x, v = flow.interpolate(x0, eps, t), flow.velocity_target(x0, eps)
    for i in range(4):
        torch.testing.assert_close(x[i], (1 - t[i]) * x0[i] + t[i] * eps[i])
        torch.testing.assert_close(x[i] - t[i] * v[i], x0[i])
        torch.testing.assert_close(x[i] + (1 - t[i]) * v[i], eps[i])
    assert torch.equal(x[0], x0[0]) and torch.equal(x[3], eps[3])
    step = 1e-6
    derivative = (flow.interpolate(x0, eps, t + step) - flow.interpolate(x0, eps, t - step)) / (2 * step)
    torch.testing.assert_close(derivative, v, rtol=1e-6, atol=1e-6)
    assert flow.interpolate(x0[:, 0], eps[:, 0], t).shape == (4, 8)  # any number of axes behind the batch


def test_the_target_leads_the_sampler_home() -> None:
    """Inference's Euler steps with the training target, from noise at t = 1, land on the data at t = 0."""
    generator = torch.Generator().manual_seed(1)
    x0, eps = torch.randn(2, 1, 6, 8, generator=generator)
    for steps in (1, 4, 20):
        x = denoise(lambda x, t: flow.velocity_target(x0, eps), eps, schedule(6, steps))
        torch.testing.assert_close(x, x0, rtol=1e-5, atol=1e-5)


def test_first_weights() -> None:
    """Every block starts as the identity and the network as zero; norms at 1; matrices spread as Xavier's."""
    params = DiTParams(
        num_layers=2, attention_head_dim=16, num_attention_heads=2, axes_dims_rope=(4, 6, 6), in_channels=8,
        out_channels=2, enc_hidden_dim=12, selected_layer_index=(0, 1), mlp_hidden_dim=40,
    )  # fmt: skip
    model = LensTransformer2DModel(
        num_layers=2, attention_head_dim=16, num_attention_heads=2, axes_dims_rope=(4, 6, 6), in_channels=8,
        out_channels=2, enc_hidden_dim=12, selected_layer_index=(0, 1), mlp_hidden_dim=40,
    )  # fmt: skip
    init_weights(model, params, torch.Generator().manual_seed(0))
    for name, p in model.named_parameters():
        if "norm" in name and not name.startswith("norm_out"):
            assert bool((p == 1).all()), name
        elif p.dim() == 1 or "_mod." in name or name.startswith(("norm_out", "proj_out")):
            assert not bool(p.any()), name
        else:
            bound = math.sqrt(6 / sum(p.shape))
            assert 0.9 * bound < float(p.detach().abs().max()) <= bound, name
    x, text, t = torch.randn(1, 6, 8), torch.randn(1, 3, 2, 12), torch.tensor([0.5])
    with torch.no_grad():
        assert not bool(model(x, t, text, (2, 3)).any())
        temb = model.time_text_embed(t, torch.float32)
        image, words = model.img_in(x), model.embed_text(text)
        rope = torch.ones(9, 8, 2)
        for block in model.transformer_blocks:
            assert all(
                torch.equal(a, b) for a, b in zip(block(image, words, temb, rope, None), (image, words), strict=True)
            )
    again: Any = LensTransformer2DModel.from_config(model.config)
    init_weights(again, params, torch.Generator().manual_seed(0))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
