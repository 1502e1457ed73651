"""Fused kernels, attention kernels and CUDA graphs on a real GPU, each against what the CPU's tests hold the rest to.

The yardsticks are those of tests/backend/kernels/test_pointwise.py (float64 statements), float32 attention, and the
plain denoiser: a replayed graph launches the same kernels on the same numbers, so there equality is to the last bit.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from backend.cache.store import Store
from backend.denoising.compile import compile_blocks
from backend.denoising.denoiser import Denoiser
from backend.kernels import attention, graphs, pointwise
from backend.kernels.attention import AttentionShape, Backend, Choices, using
from backend.kernels.pointwise_torch import Stream
from backend.model.positions import rope_table
from backend.model.transformer import LensTransformer2DModel, RMSNorm, modulate
from backend.params import DiTParams
from tests.backend import pointwise_statements as exact
from tests.backend.folding import fold_network
from tests.backend.kernels.test_pointwise import DTYPES, EPS, RANGES, hold, modulations, normal, streams

CUDA = "cuda"
SIGMAS = (1.0, 0.7, 0.3)
GRID = (24, 16)
every = pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "bfloat16"])
ranges = pytest.mark.parametrize(("residual", "value"), RANGES, ids=["unit", "published"])


def small_network(dtype: torch.dtype) -> LensTransformer2DModel:
    """Random weights of sensible scale: four blocks of the published head size."""
    torch.manual_seed(0)
    config: dict[str, Any] = {"num_layers": 4, "num_attention_heads": 4, "enc_hidden_dim": 64}
    network = LensTransformer2DModel(**config, selected_layer_index=(0, 1), in_channels=32, out_channels=8)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=parameter.shape[1] ** -0.5)
            elif "norm" not in name:
                parameter.normal_(std=0.1)
    torch.nn.Module.to(network, CUDA, dtype)  # diffusers' own `to` has no usable type
    return network.eval().requires_grad_(False)


def given(dtype: torch.dtype, length: int = 37, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1, GRID[0] * GRID[1], 32, generator=generator)
    return x.to(CUDA), torch.randn(1, length, 2, 64, generator=generator).to(CUDA, dtype)


# ---------------------------------------------------------------------------------------------------------- pointwise


@every
@ranges
@torch.inference_mode()
def test_fused_norms_gates_and_products(dtype: torch.dtype, residual: float, value: float) -> None:
    x = normal(2, 7, 96, seed=1, dtype=dtype, largest=residual).to(CUDA)
    update = normal(2, 7, 96, seed=2, dtype=dtype, largest=value).to(CUDA)
    assert pointwise.uses_triton(x)
    m = type(modulations(dtype))(*(part.to(CUDA) for part in modulations(dtype)))
    norm = RMSNorm(96, EPS).to(CUDA, dtype)
    norm.weight.copy_(normal(96, seed=3, dtype=dtype))
    got = pointwise.norm_modulate(x, norm.weight, EPS, m.shift, m.scale)
    hold(got, modulate(norm(x), m), exact.norm_modulate(x, norm.weight, EPS, m.shift, m.scale), dtype)
    hold(pointwise.add_gated(x, m.gate, update), x + m.gate * update, exact.add_gated(x, m.gate, update), dtype)
    a = normal(2, 7, 160, seed=4, dtype=dtype, largest=value).to(CUDA)
    b = normal(2, 7, 160, seed=5, dtype=dtype, largest=value).to(CUDA)
    statement, wanted = torch.nn.functional.silu(a) * b, exact.silu_mul(a, b)
    hold(pointwise.silu_mul(a, b), statement, wanted, dtype)


@every
@ranges
@pytest.mark.parametrize(("lengths", "query_streams"), [((384, 37), 2), ((384, 37), 1), ((384,), 1)])
@torch.inference_mode()
def test_fused_queries_keys_values(
    dtype: torch.dtype, residual: float, value: float, lengths: tuple[int, ...], query_streams: int
) -> None:
    from backend.kernels import pointwise_torch as plain

    rope = rope_table(DiTParams(), *GRID, sum(lengths[1:]), torch.device(CUDA))
    on_gpu = [Stream(*(part.to(CUDA) for part in stream)) for stream in streams(dtype, value, lengths)]
    got = pointwise.joint_qkv(on_gpu, rope, 3, EPS, query_streams=query_streams)
    statement = plain.joint_qkv(on_gpu, rope, 3, EPS, query_streams=query_streams)
    wanted = exact.joint_qkv(on_gpu, rope, 3, EPS, query_streams=query_streams)
    for ours, theirs, truth in zip(got[:2], statement[:2], wanted[:2], strict=True):
        hold(ours, theirs, truth, dtype)
    assert torch.equal(got[2], statement[2])


# ---------------------------------------------------------------------------------------------------------- attention


@pytest.mark.parametrize("tokens", [64, 421, 4296])
@pytest.mark.parametrize("backend", [*attention.FUSED, Backend.math])
@every
@torch.inference_mode()
def test_attention_kernels(dtype: torch.dtype, backend: Backend, tokens: int) -> None:
    """Every kernel that this card and dtype have is as exact as plain mathematics, values of 1.4e5 included."""
    if backend is Backend.math and tokens > 1024:
        pytest.skip("every score at once")
    shape = AttentionShape(heads=24, queries=tokens, keys=tokens, head_size=64, dtype=dtype)
    trial = attention._time(torch.device(CUDA), shape, backend)
    if trial.refused is not None:
        pytest.skip(f"{backend}: {trial.refused}")
    assert trial.error is not None and trial.error < (1e-5 if dtype is torch.float32 else 5e-3)
    assert trial.seconds is not None and 0 < trial.seconds < 1


@torch.inference_mode()
def test_the_choice_is_measured_and_kept(tmp_path: Path) -> None:
    shape = AttentionShape(heads=24, queries=1024, keys=1024, head_size=64, dtype=torch.bfloat16)
    device = torch.device(CUDA)
    table = Choices(device, Store(tmp_path, ".json", 1_000_000, print))
    chosen = table.choose(shape)
    fastest = min(attention.usable(table.trials(shape)), key=lambda trial: trial.seconds or 1)
    assert chosen is fastest.backend and chosen is not Backend.math
    again = Choices(device, Store(tmp_path, ".json", 1_000_000, print), measure=lambda *_: pytest.fail("measured"))
    assert again.choose(shape) is chosen
    q, k, v = attention.trial_tensors(shape, device)
    with using(chosen):
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    assert attention.relative_error(out, q, k, v) < 5e-3


# ------------------------------------------------------------------------------------------------ graphs, compilation


@every
@pytest.mark.parametrize("guidance", [1.0, 5.0])
@torch.inference_mode()
def test_replay_is_the_plain_step(dtype: torch.dtype, guidance: float) -> None:
    network = small_network(dtype)
    folded, device = fold_network(network, SIGMAS), torch.device(CUDA)
    said: list[str] = []
    kept = graphs.Graphs(2, graphs.CudaCapture(device), patience=0, warn=said.append)
    for seed, length in ((0, 37), (1, 37), (2, 12), (3, 50), (4, 37)):  # two graphs at once, and one made again
        x, text = given(dtype, length, seed)
        more: dict[str, Any] = {"guidance": guidance, "attention": Choices(device)}
        plain = Denoiser(network, folded, GRID, text, **more)
        replayed = Denoiser(network, folded, GRID, text, graphs=kept, **more)
        for step in (0, 2, 1):
            assert torch.equal(replayed.velocity(x, step), plain.velocity(x, step))
    assert not said and len(kept.keys) == 2


@torch.inference_mode()
def test_what_cannot_be_recorded_runs_plainly() -> None:
    said: list[str] = []
    kept = graphs.Graphs(2, graphs.CudaCapture(torch.device(CUDA)), patience=0, warn=said.append)
    key = graphs.GraphKey((1, 1), (0,), 1.0, torch.float32, "test")
    for value in (1.0, 2.0):
        x = torch.full((3,), value, device=CUDA)
        out = kept.run(key, {"x": x}, lambda inputs: inputs["x"] * float(inputs["x"].sum().item()))
        assert out.tolist() == [3 * value**2] * 3
    assert len(said) == 1 and "without a CUDA graph" in said[0]


@torch.inference_mode()
def test_compiled_blocks() -> None:
    network = small_network(torch.float32)
    folded = fold_network(network, SIGMAS)
    x, text = given(torch.float32)
    plain = Denoiser(network, folded, GRID, text, guidance=5.0).velocity(x, 1)
    compile_blocks(network)
    compiled = Denoiser(network, folded, GRID, text, guidance=5.0).velocity(x, 1)
    assert float((compiled - plain).abs().max() / plain.abs().max()) < 1e-4
