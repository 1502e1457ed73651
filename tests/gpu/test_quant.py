"""Packed linears on a GPU against the same linears on the CPU. Never run by their author: no GPU was at hand."""

from __future__ import annotations

import pytest
import torch

from backend.kernels.pointwise import has_fp8_units, quantise_fp8_rows
from backend.packing import block_scaled, fp8, ggml, int8, nf4
from backend.packing.ggml_write import Type, pack
from backend.packing.gguf import GgufLinear
from backend.packing.linears import PackedLinear
from backend.packing.mxfp8 import Mxfp8Linear
from backend.types import Quant


def weight(outputs: int = 192, inputs: int = 512) -> torch.Tensor:
    return torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(0)) * 0.05


def mxfp8() -> PackedLinear:
    codes, scales = block_scaled.quantise_mxfp8(weight())
    return Mxfp8Linear(codes, block_scaled.swizzle(scales).reshape(-1))


@pytest.mark.parametrize("kind", [Type.Q8_0, Type.Q6_K, Type.Q5_K, Type.Q4_K, Type.Q4_0, Type.Q5_0])
def test_ggml_types_decode_to_the_same_bits(kind: Type) -> None:
    packed = torch.from_numpy(pack(weight().numpy(), kind))
    for dtype in (torch.float32, torch.bfloat16):
        expected = ggml.dequantise(packed, int(kind), dtype)
        assert torch.equal(ggml.dequantise(packed.cuda(), int(kind), dtype).cpu(), expected)


@pytest.mark.parametrize("name", ["int8", "nf4", "mxfp8", "q8_0"])
def test_linears_agree_with_the_cpu(name: str) -> None:
    make = {
        "int8": lambda: int8.pack(weight()),
        "nf4": lambda: nf4.pack(weight()),
        "mxfp8": mxfp8,
        "q8_0": lambda: GgufLinear(ggml.quantise_q8_0(weight()), 8, 512),
    }[name]
    x = torch.randn(3, 7, 512, generator=torch.Generator().manual_seed(1))
    expected, linear = make()(x), make().cuda()
    assert torch.equal(linear.decoded(torch.float32).cpu(), make().decoded(torch.float32))
    assert torch.allclose(linear(x.cuda()).cpu(), expected, rtol=1e-4, atol=1e-5)
    assert linear(x[:, :0].cuda().to(torch.bfloat16)).shape == (3, 0, 192)


def test_quantising_there_gives_the_same_codes() -> None:
    from backend.memory.linears import pack_weight

    for quant in (Quant.fp8, Quant.int8, Quant.nf4, Quant.gguf):
        here, there = pack_weight(weight(), quant), pack_weight(weight().cuda(), quant)
        for name, buffer in here.named_buffers():
            same = (buffer.float() == there.get_buffer(name).cpu().float()).float().mean()
            assert same > 0.999, (quant, name)  # a division may round a tie the other way


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_fused_rows_have_the_codes_of_the_plain_ones(dtype: torch.dtype) -> None:
    if not has_fp8_units(torch.device("cuda")):
        pytest.skip("needs fp8 units: compute capability 8.9")
    from backend.kernels import pointwise_torch as plain

    for rows, width, largest in ((300, 1536, 3e7), (7, 4096, 1.4e5), (1, 96, 1.0)):
        x = (torch.randn(rows, width, generator=torch.Generator().manual_seed(rows)) * largest / 4).to(dtype)
        x[0, :5] = 0
        codes, scales = quantise_fp8_rows(x.cuda())
        wanted, their_scales = plain.quantise_fp8_rows(x)
        assert torch.allclose(scales.cpu(), their_scales, rtol=1e-6)
        assert (codes.cpu().float() == wanted.float()).float().mean() > 0.999  # a division may round another way
    assert not quantise_fp8_rows(torch.zeros(2, 32, device="cuda", dtype=dtype))[0].float().any()


def test_scaled_mm_multiplies_what_the_emulation_does() -> None:
    device = torch.device("cuda")
    if not has_fp8_units(device):
        pytest.skip("needs fp8 units: compute capability 8.9")
    linear = fp8.pack(weight().cuda())
    linear.bias = torch.randn(192, device=device, dtype=torch.bfloat16)
    x = torch.randn(2, 300, 512, device=device)
    x[0, 0] *= 3e7  # the published residual
    x[0, 1] *= 1.4e5  # and values
    x = x.to(torch.bfloat16)
    fast = linear(x).float()
    plain = linear._emulate(*quantise_fp8_rows(x.reshape(-1, 512)), torch.bfloat16).view_as(fast).float()
    scale = plain.abs().amax(dim=-1, keepdim=True)
    assert bool(fast.isfinite().all()) and bool(((fast - plain).abs() <= 2**-6 * scale).all())
    assert linear(x[:, :0]).shape == (2, 0, 192)
