"""Predicted bytes against counted ones: every live tensor of a denoising step, of an encoded prompt, of a slot.

Why it can be trusted: `LiveBytes` counts the storages that torch's operations return while the real code runs; it knows
nothing of the formulas. At the published width with two blocks, since the peak lies within one. What a GPU's kernels
and allocator add is in tests/gpu.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from backend.checkpoints.formats import TensorEntry, TensorTable
from backend.denoising.denoiser import Denoiser
from backend.denoising.stream import StreamedBlocks
from backend.loading import Uninitialised
from backend.memory.footprint import ALIGNMENT, Job, denoising, encoding, vae_parameters, weights
from backend.model.autoencoder import build_vae
from backend.model.tensors import text_encoder_shapes, vae_shapes
from backend.model.transformer import LensTransformer2DModel
from backend.params import DiTParams, ModelParams, TextEncoderParams
from backend.presets import LENS, NANO
from backend.text.streaming import StreamingEncoder
from tests.backend.folding import fold_network
from tests.backend.live_bytes import LiveBytes

PUBLISHED = DiTParams(num_layers=2)


def network(params: DiTParams, dtype: torch.dtype) -> LensTransformer2DModel:
    with torch.device("meta"), Uninitialised():
        found = LensTransformer2DModel(**vars(params))
    state = {name: torch.full(t.shape, 0.01, dtype=dtype) for name, t in found.state_dict().items()}
    found.load_state_dict(state, assign=True)
    return found.eval().requires_grad_(False)


@pytest.mark.parametrize(
    ("params", "dtype", "h", "w", "text", "negative", "guidance"),
    [
        (PUBLISHED, torch.bfloat16, 32, 32, 100, 0, 1.0),
        (PUBLISHED, torch.bfloat16, 32, 16, 8, 0, 5.0),
        (PUBLISHED, torch.bfloat16, 8, 8, 400, 0, 5.0),  # more text than picture
        (NANO.dit, torch.bfloat16, 16, 16, 48, 0, 5.0),
        (NANO.dit, torch.float32, 16, 16, 48, 0, 5.0),
        (NANO.dit, torch.float32, 32, 24, 100, 100, 5.0),
        (NANO.dit, torch.float32, 16, 16, 0, 0, 1.0),
    ],
)
def test_denoising_within_a_tenth(
    params: DiTParams, dtype: torch.dtype, h: int, w: int, text: int, negative: int, guidance: float
) -> None:
    model = network(params, dtype)
    folded = fold_network(model, (1.0, 0.5))
    layers, width = len(params.selected_layer_index), params.enc_hidden_dim
    features = [torch.randn(1, length, layers, width, dtype=dtype) for length in (text, negative)]
    with torch.inference_mode(), LiveBytes() as live:
        denoiser = Denoiser(model, folded, (h, w), *features, guidance=guidance)
        denoiser.velocity(torch.randn(1, h * w, 128), 0)
    job = Job(
        params=ModelParams(dit=params), width=16 * w, height=16 * h, steps=2, guided=guidance != 1.0,
        text_tokens=max(text, negative), itemsize=dtype.itemsize,
    )  # fmt: skip
    assert denoising(job, "cpu") == pytest.approx(live.peak, rel=0.1)


def test_weights_are_what_is_loaded() -> None:
    """Of the network without its modulation layers, and of the table that replaces them."""
    for params, dtype in ((PUBLISHED, torch.bfloat16), (NANO.dit, torch.float32)):
        model = network(params, dtype)
        job = Job(
            params=ModelParams(dit=params), width=512, height=512, steps=7, guided=True, text_tokens=9,
            itemsize=dtype.itemsize,
        )  # fmt: skip
        assert weights(job).folded == fold_network(model, [s / 8 for s in range(1, 8)]).table_SW.nbytes
        model.drop_modulation()
        stored = sum(p.nbytes for p in model.parameters())
        assert weights(job).outer + weights(job).blocks == pytest.approx(stored, rel=1e-3)
        assert weights(job).outer + weights(job).blocks >= stored
        streamed = StreamedBlocks(list(model.blocks()), "cpu")
        assert weights(job).block == pytest.approx(streamed.slot_bytes, abs=32 * ALIGNMENT)
        held = sum(part.nbytes for block in streamed._host for part in block)
        assert weights(job).blocks == pytest.approx(held, rel=1e-3)


def test_autoencoder_is_what_is_built() -> None:
    for params in (LENS.vae, NANO.vae, replace(NANO.vae, layers_per_block=2, mid_block_add_attention=True)):
        with torch.device("meta"), Uninitialised():
            built = build_vae(params)
        assert vae_shapes(params) == {name: tuple(tensor.shape) for name, tensor in built.state_dict().items()}
        assert vae_parameters(params) == sum(p.numel() for p in built.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [100, 300])
def test_encoding_within_a_tenth(dtype: torch.dtype, tokens: int) -> None:
    """A quarter of gpt-oss's width; the weights are made when they are read, as packed ones are decoded."""
    params = TextEncoderParams(
        vocab_size=512, hidden_size=720, num_hidden_layers=4, num_attention_heads=16, num_key_value_heads=2,
        head_dim=64, intermediate_size=720, num_local_experts=9,
    )  # fmt: skip

    def entry(shape: tuple[int, ...]) -> TensorEntry:
        def part(dtype: torch.dtype, device: torch.device | str, first: int, last: int) -> torch.Tensor:
            return torch.full((last - first, *shape[1:]), 0.01, dtype=dtype)

        return TensorEntry(shape, lambda dtype: torch.full(shape, 0.01, dtype=dtype), part)

    table = TensorTable("made", {n: entry(s) for n, s in text_encoder_shapes(params, with_head=False).items()})
    encoder = StreamingEncoder(table, params, dtype, "cpu")
    with LiveBytes() as live:
        encoder.hidden_states([[t % 512 for t in range(tokens)]], (0, 1, 2, 3))
    assert encoding(params, tokens, dtype.itemsize) == pytest.approx(live.peak, rel=0.1)
