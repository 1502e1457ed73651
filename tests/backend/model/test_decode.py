"""The lean decoder against diffusers' own class with the same tensors, and the plan's arithmetic against live tensors.

Trustworthy because the reference is not ours: diffusers' AutoencoderKLFlux2, run in float64 where an error is judged.
Both networks are small but of the published make-up (four resolutions, three blocks, attention in the middle), with
norms away from 1 and 0; the second one is shaped like Lens-Nano's.
"""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from backend.errors import OutOfMemoryError
from backend.model import decode as lean
from backend.model import decode_norm
from backend.model.autoencoder import AutoencoderKLFlux2, build_diffusers_vae, build_vae, encode_mean
from backend.model.decode import decode_latent
from backend.model.decode_plan import (
    DecodePlan,
    MiB,
    StagePlan,
    _plan,
    _possible,
    middle_peak,
    plan_decode,
    plan_leanest,
    stage_shapes,
)
from backend.params import VAEParams
from tests.backend.live_bytes import LiveBytes

PUBLISHED = VAEParams(block_out_channels=(16, 32, 64, 64), norm_num_groups=8)
NANO = VAEParams(
    block_out_channels=(8, 16, 32, 48), layers_per_block=1, norm_num_groups=4, mid_block_add_attention=False
)
NETWORKS = {"published": PUBLISHED, "nano": NANO}
SIZES = [(4, 4), (3, 5), (1, 3)]  # of the latent: even, odd, less than a convolution is high
CHOICES = [
    StagePlan(rows=rows, keep_input=keep_input, keep_inner=keep_inner)
    for rows in (1, 5)
    for keep_input in (True, False)
    for keep_inner in (True, False)
]


def make(params: VAEParams) -> tuple[AutoencoderKLFlux2, Any]:
    """Ours and diffusers', sharing float32 values that no initialisation would give."""
    torch.manual_seed(7)
    ours, published = build_vae(params), build_diffusers_vae(params)
    state = ours.state_dict()
    for name, tensor in state.items():
        if "norm" in name:
            tensor.copy_(0.3 * torch.randn_like(tensor) + (name.endswith("weight")))
    published.load_state_dict(state, strict=True)
    return ours.requires_grad_(False), published.requires_grad_(False)


@pytest.fixture(scope="module", params=NETWORKS)
def network(request: pytest.FixtureRequest) -> tuple[VAEParams, AutoencoderKLFlux2, Any]:
    params = NETWORKS[request.param]
    return params, *make(params)


def plan_rows(params: VAEParams, height: int, width: int, itemsize: int, stage: StagePlan) -> DecodePlan:
    """One choice for every stage, whatever it takes. `stage.rows` may exceed a stage's height."""
    shapes = list(stage_shapes(params, height, width, itemsize))
    stages = tuple(_possible(shape, stage) for shape in shapes)
    return _plan(shapes, stages, middle_peak(params, height, width, itemsize, "cpu"))


class Layouts(TorchFunctionMode):
    """Notes the layout of what every convolution reads, and refuses numbers that would be copied from the host."""

    def __init__(self) -> None:
        super().__init__()
        self.channels_last: list[bool] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        assert func is not torch.tensor, "a copy from the host, for which the host waits"
        if func in (F.conv2d, torch.conv2d):
            self.channels_last.append(args[0].is_contiguous(memory_format=torch.channels_last))
        return func(*args, **(kwargs or {}))


def latent(size: tuple[int, int], batch: int = 1) -> Tensor:
    return torch.randn(batch, 32, *size, generator=torch.Generator().manual_seed(size[0] * 100 + size[1]))


def decoded(published: Any, z: Tensor, dtype: torch.dtype) -> Tensor:
    """diffusers' decode, computed in `dtype`."""
    before = published.decoder.conv_in.weight.dtype
    with torch.no_grad():
        out = published.to(dtype).decode(z.to(dtype)).sample
    published.to(before)
    return out.double()


def plans(params: VAEParams, size: tuple[int, int], itemsize: int = 4) -> list[DecodePlan | None]:
    h, w = 8 * size[0], 8 * size[1]
    chosen = [plan_rows(params, h, w, itemsize, choice) for choice in CHOICES]
    return [None, plan_leanest(params, h, w, itemsize), *dict.fromkeys(chosen)]


# the network ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("params", NETWORKS.values(), ids=NETWORKS)
def test_one_seed_gives_the_network_that_diffusers_makes(params: VAEParams) -> None:
    """Names, their order, shapes and the random values: training starts where it would have started."""
    torch.manual_seed(3)
    ours = build_vae(params).state_dict()
    torch.manual_seed(3)
    published = build_diffusers_vae(params).state_dict()
    assert list(ours) == list(published)
    assert all(torch.equal(ours[name], published[name]) for name in ours)


def test_the_published_network_has_the_published_size() -> None:
    with torch.device("meta"):
        vae = build_vae(VAEParams())
    assert sum(p.numel() for p in vae.parameters()) == 84_046_115  # 84,046,372 with the 257 statistics
    assert len(vae.state_dict()) == 251


def test_encoding_and_gradients_are_those_of_diffusers(network: tuple[VAEParams, AutoencoderKLFlux2, Any]) -> None:
    """The plain statement is what trains: same latents, same picture, same gradient of the first weights."""
    params, _, _ = network
    gradients: list[Tensor] = []
    pictures: list[Tensor] = []
    ours, published = make(params)
    ours.requires_grad_(True)
    published.requires_grad_(True)
    image = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(encode_mean(ours, image), published.encode(image).latent_dist.mean, rtol=1e-4, atol=1e-4)
    for vae, run in ((ours, lambda z: decode_latent(ours, z)), (published, lambda z: published.decode(z).sample)):
        picture = run(latent((4, 6), batch=2))
        picture.square().mean().backward()
        pictures.append(picture.detach())
        gradients.append(cast(Any, vae).decoder.conv_in.weight.grad)
    torch.testing.assert_close(pictures[0], pictures[1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-3 * float(gradients[1].abs().max()))


def test_a_plan_and_a_gradient_exclude_each_other(network: tuple[VAEParams, AutoencoderKLFlux2, Any]) -> None:
    params, ours, _ = network
    with pytest.raises(ValueError, match="a plan overwrites"):
        decode_latent(ours, latent((2, 2)), plan_decode(params, 16, 16, 4))


# the same picture ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_every_plan_gives_the_picture_in_float32(
    network: tuple[VAEParams, AutoencoderKLFlux2, Any], size: tuple[int, int]
) -> None:
    """Against float64. The yardstick is diffusers' own float32 error; three times that is allowed: both are float
    order, and the ratio of two largest errors moves with the processor's kernels (2.14 seen)."""
    params, ours, published = network
    z = latent(size)
    exact = decoded(published, z, torch.float64)
    theirs = float((decoded(published, z, torch.float32) - exact).abs().max())
    assert 0 < theirs < 1e-4 * float(exact.abs().max())
    for plan in plans(params, size):
        with torch.no_grad():
            error = float((decode_latent(ours, z, plan).double() - exact).abs().max())
        assert error <= 3 * theirs, plan


def test_bfloat16_is_no_worse_than_in_diffusers(network: tuple[VAEParams, AutoencoderKLFlux2, Any]) -> None:
    """Weights rounded once for both; root mean square against float64 of those same weights."""
    params, _, _ = network
    ours, published = make(params)
    ours.to(torch.bfloat16)
    published.to(torch.bfloat16)
    z = latent((6, 10)).bfloat16()
    exact = decoded(published, z, torch.float64)
    theirs = (decoded(published, z, torch.bfloat16) - exact).square().mean().sqrt()
    whole = plan_rows(params, 48, 80, 2, StagePlan(rows=48))
    for plan in (None, whole, plan_leanest(params, 48, 80, 2), plan_rows(params, 48, 80, 2, CHOICES[-1])):
        with torch.no_grad():
            picture = decode_latent(ours, z, plan)
        assert picture.dtype == torch.bfloat16
        assert (picture.double() - exact).square().mean().sqrt() <= 1.02 * theirs, plan


def test_pictures_of_a_batch_do_not_share_statistics(network: tuple[VAEParams, AutoencoderKLFlux2, Any]) -> None:
    _, ours, _ = network
    z = latent((3, 4), batch=2)
    z[1] *= 5
    with torch.no_grad():
        together, apart = decode_latent(ours, z), [decode_latent(ours, z[i : i + 1]) for i in range(2)]
    assert torch.equal(together, torch.cat(apart))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_non_finite_latent_shows_in_the_picture(
    network: tuple[VAEParams, AutoencoderKLFlux2, Any], bad: float
) -> None:
    """So that the pipeline can refuse it: in every plan, and not hidden by a statistic or a softmax."""
    params, ours, _ = network
    z = latent((3, 5))
    z[0, 3, 2, 4] = bad
    for plan in plans(params, (3, 5)):
        with torch.no_grad():
            assert not torch.isfinite(decode_latent(ours, z, plan)).all(), plan


# its parts -----------------------------------------------------------------------------------------------------------


def test_attention_in_chunks_is_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """The way taken off the CPU, on it: scores up to 40, chunks that do not divide the positions, against float64."""
    monkeypatch.setattr(lean, "score_rows", lambda positions, itemsize: 7)
    q, k, v = torch.randn(3, 40, 16, generator=torch.Generator().manual_seed(2)).unbind()
    q = 12 * q
    exact = F.scaled_dot_product_attention(q[None].double(), k[None].double(), v[None].double())[0]
    torch.testing.assert_close(lean.attend_in_chunks(q.clone(), k, v).double(), exact, rtol=1e-5, atol=1e-5)
    q, k, v = q.bfloat16(), k.bfloat16(), v.bfloat16()
    exact = F.scaled_dot_product_attention(q[None].double(), k[None].double(), v[None].double())[0]
    error = (lean.attend_in_chunks(q.clone(), k, v).double() - exact).abs().max()
    assert error < 2**-7 * float(v.abs().max())  # two roundings to 8 bits


def test_no_more_scores_than_allowed() -> None:
    for positions in (16, 4096, 16384, 32400):
        assert lean.score_rows(positions, 2) * positions * 6 <= 64 * MiB
    assert lean.score_rows(1 << 30, 2) == 1


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norm_by_pieces_is_group_norm(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    """With a mean a hundred times the deviation, where a sum of squares would cancel; fused and written out."""
    norm = torch.nn.GroupNorm(4, 16, eps=1e-6)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = (100 + torch.randn(1, 16, 37, 11, generator=torch.Generator().manual_seed(4))).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    exact = F.silu(F.group_norm(x.double(), 4, norm.weight.double(), norm.bias.double(), 1e-6))
    for fused in (decode_norm.FUSED, ()):
        monkeypatch.setattr(decode_norm, "FUSED", fused)
        measured = decode_norm.measure(norm, x.split(5, dim=2))
        tolerance = 1e-4 if dtype == torch.float32 else 2**-6
        torch.testing.assert_close(measured(x).double(), exact, rtol=tolerance, atol=tolerance)
        in_place = x.clone(memory_format=torch.preserve_format)
        measured.overwrite(in_place, 3)
        torch.testing.assert_close(in_place, measured(x), rtol=1e-5, atol=1e-5)


# the plan ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [(6, 8)], ids=str)
def test_the_peak_is_what_was_predicted(
    network: tuple[VAEParams, AutoencoderKLFlux2, Any], size: tuple[int, int], dtype: torch.dtype
) -> None:
    """Bytes of tensors alive at once, within 10 %, for strips of several heights and whatever is kept."""
    params, _, _ = network
    ours, _ = make(params)
    ours.to(dtype)
    h, w = 8 * size[0], 8 * size[1]
    chosen = [plan_rows(params, h, w, dtype.itemsize, choice) for choice in CHOICES if choice.rows == 5]
    for plan in dict.fromkeys([plan_decode(params, h, w, dtype.itemsize), *chosen]):
        with torch.no_grad(), LiveBytes() as live:
            decode_latent(ours, latent(size).to(dtype), plan)
        assert live.peak == pytest.approx(plan.peak_bytes, rel=0.1), plan


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("side", [512, 1024, 1440])
def test_plans_keep_to_their_memory_with_the_least_work(side: int, device: str) -> None:
    params = VAEParams()
    least = plan_leanest(params, side, side, 2, device)
    most = plan_decode(params, side, side, 2, device=device)
    assert most.work == 1.0 and not most.recomputes and least.recomputes
    assert least.peak_bytes < 0.55 * most.peak_bytes and 1 < least.work < 1.5
    before = math.inf
    for share in (0, 0.1, 0.25, 0.5, 0.75, 1):
        memory = int(least.peak_bytes + share * (most.peak_bytes - least.peak_bytes))
        plan = plan_decode(params, side, side, 2, memory, device)
        assert plan.peak_bytes <= memory and plan.work <= before
        before = plan.work
    with pytest.raises(OutOfMemoryError, match=rf"decoding {side}x{side} needs \d+ MiB"):
        plan_decode(params, side, side, 2, least.peak_bytes - 1, device)


def test_a_megapixel_in_bfloat16_fits_into_400_mib() -> None:
    """256 MiB between two convolutions, 128 MiB from the stage before, strips: the floor that the plan is built on."""
    assert 384 * MiB < plan_leanest(VAEParams(), 1024, 1024, 2, "cuda").peak_bytes < 400 * MiB


def test_a_picture_of_broken_cells_is_refused() -> None:
    with pytest.raises(ValueError, match="1000x1001 is not a multiple of 8"):
        plan_decode(VAEParams(), 1001, 1000, 2)


def test_planning_needs_no_torch_and_decoding_no_diffusers() -> None:
    """In a fresh interpreter, as `lens gen` starts."""
    code = """
import sys
import backend.model.decode_plan
assert "torch" not in sys.modules
import backend.model.autoencoder
assert "diffusers" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_every_convolution_reads_channels_last(network: Any, choice: StagePlan) -> None:
    """cuDNN transposes what is not, and on a CPU it costs 9 %; and nothing is copied from the host on the way."""
    params, ours, _ = network
    with torch.inference_mode(), Layouts() as seen:
        decode_latent(ours, latent((4, 4)), plan_rows(params, 32, 32, 4, choice))
    assert len(seen.channels_last) > 20 and all(seen.channels_last)
