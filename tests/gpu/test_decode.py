"""The lean decoder on a GPU: same picture as on the CPU, no worse in bfloat16 than diffusers, and the predicted peak.

Trustworthy because the reference is diffusers' class in float32 on the CPU, and the peak is the allocator's own.
"""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import Tensor

from backend.model.autoencoder import AutoencoderKLFlux2, build_diffusers_vae, build_vae
from backend.model.decode import attend_in_chunks, decode_latent
from backend.model.decode_plan import MiB, plan_decode, plan_leanest
from backend.params import VAEParams

# The published one with half the channels: its attention has a head of 256.
PARAMS = VAEParams(block_out_channels=(64, 128, 256, 256))
WORKSPACE = 32 * MiB  # what cuBLAS and cuDNN may hold beside the activations; not part of the prediction


@pytest.fixture(scope="module")
def networks() -> tuple[AutoencoderKLFlux2, Any]:
    """Ours on the GPU, diffusers' on the CPU, of the same bfloat16 values, the latter widened to float32."""
    torch.manual_seed(5)
    ours, published = build_vae(PARAMS).to(torch.bfloat16), build_diffusers_vae(PARAMS)
    published.load_state_dict(ours.float().state_dict())
    cast(Any, ours.requires_grad_(False)).to("cuda", memory_format=torch.channels_last)
    return ours, published.requires_grad_(False)


def latent(side: int) -> Tensor:
    return torch.randn(1, 32, side // 8, side // 8, generator=torch.Generator().manual_seed(side)).bfloat16()


def test_float32_is_the_picture_of_the_cpu(networks: tuple[AutoencoderKLFlux2, Any]) -> None:
    ours, published = networks
    z = latent(128).float()
    with torch.no_grad():
        exact = published.decode(z).sample
        for plan in (None, plan_leanest(PARAMS, 128, 128, 4, "cuda")):
            picture = decode_latent(ours.float(), z.cuda(), plan)
            assert float((picture.cpu() - exact).abs().max()) < 1e-4 * float(exact.abs().max())


def test_bfloat16_is_no_worse_than_diffusers_on_the_same_card(networks: tuple[AutoencoderKLFlux2, Any]) -> None:
    ours, published = networks
    z = latent(256)
    with torch.no_grad():
        exact = published.decode(z.float()).sample
        theirs: Any = build_diffusers_vae(PARAMS)
        theirs.load_state_dict(published.state_dict())
        there = theirs.to("cuda", torch.bfloat16).decode(z.cuda()).sample.float().cpu()
        allowed = 1.02 * float((there - exact).square().mean().sqrt())
        for plan in (None, plan_leanest(PARAMS, 256, 256, 2, "cuda")):
            picture = decode_latent(ours.bfloat16(), z.cuda(), plan).float().cpu()
            assert float((picture - exact).square().mean().sqrt()) <= allowed


def test_attention_in_chunks_keeps_float32_scores() -> None:
    """Scores up to 60: rounded to bfloat16 they would be off by 0.2, and their weights by a fifth."""
    q, k, v = (torch.randn(5000, 512, generator=torch.Generator().manual_seed(i)).bfloat16() for i in range(3))
    q = q * 12
    exact = torch.softmax(q.double() @ k.double().T * 512**-0.5, dim=1) @ v.double()
    found = attend_in_chunks(q.cuda(), k.cuda(), v.cuda()).double().cpu()
    assert float((found - exact).abs().max()) < 2**-6 * float(exact.abs().max())


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("side", [1024, 1440])
def test_the_peak_is_what_was_predicted(side: int, share: float) -> None:
    """Of the published network in bfloat16, within 10 % and never above by more than the libraries' workspace."""
    with torch.device("cuda"):
        vae = build_vae(VAEParams()).requires_grad_(False).to(torch.bfloat16)
    cast(Any, vae).to(memory_format=torch.channels_last)
    least = plan_leanest(VAEParams(), side, side, 2, "cuda").peak_bytes
    most = plan_decode(VAEParams(), side, side, 2, device="cuda").peak_bytes
    plan = plan_decode(VAEParams(), side, side, 2, int(least + share * (most - least)), "cuda")
    z = latent(side).cuda()
    with torch.no_grad():
        decode_latent(vae, z, plan)  # libraries allocate what they keep
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        decode_latent(vae, z, plan)
        torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    assert 0.9 * plan.peak_bytes <= peak <= max(1.1 * plan.peak_bytes, plan.peak_bytes + WORKSPACE)
