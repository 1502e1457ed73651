"""Packed linears against float64 statements of their formats, and bitsandbytes' against bitsandbytes itself."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from backend.kernels.pointwise_torch import quantise_fp8_rows
from backend.packing import bitsandbytes, block_scaled, fp8, int8, nf4
from backend.packing.fp8 import ScaledFp8Linear
from backend.packing.ggml import quantise_q8_0
from backend.packing.gguf import GgufLinear
from backend.packing.linears import PackedLinear
from backend.packing.mxfp8 import Mxfp8Linear
from backend.packing.nf4 import Nf4Linear

OUTPUTS, INPUTS = 48, 128


def mxfp8(weight: Tensor) -> PackedLinear:
    codes, scales = block_scaled.quantise_mxfp8(weight)
    return Mxfp8Linear(codes, block_scaled.swizzle(scales).reshape(-1))


def scaled(weight: Tensor) -> PackedLinear:
    scale = weight.abs().amax() / 448
    return ScaledFp8Linear((weight / scale).to(torch.float8_e4m3fn), scale)


def q8_0(weight: Tensor) -> PackedLinear:
    return GgufLinear(quantise_q8_0(weight), 8, weight.shape[1])


# maker -> largest relative error of a product with normal weights: about the format's step over sqrt(12)
MAKERS: dict[str, tuple[Callable[[Tensor], PackedLinear], float]] = {
    "q8_0": (q8_0, 0.007),
    "int8": (int8.pack, 0.01),
    "mxfp8": (mxfp8, 0.035),
    "fp8 weights": (scaled, 0.035),
    "fp8": (fp8.pack, 0.05),
    "nf4": (nf4.pack, 0.11),
}


def weight_and_input(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(OUTPUTS, INPUTS, generator=generator) * 0.05
    weight[3] = 0  # a dead output
    return weight, torch.randn(2, 9, INPUTS, generator=generator)


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_product_against_float64(name: str, dtype: torch.dtype) -> None:
    make, bound = MAKERS[name]
    weight, x = weight_and_input()
    linear = make(weight)
    linear.bias = torch.randn(OUTPUTS, generator=torch.Generator().manual_seed(1)).to(dtype)
    y = linear(x.to(dtype))
    assert y.dtype == dtype and y.shape == (2, 9, OUTPUTS)
    expected = x.double() @ weight.double().T
    error = ((y.double() - linear.bias.double() - expected).norm() / expected.norm()).item()
    # bfloat16 adds the rounding of input, weight, bias and output, each at most 2^-9 of its size
    assert error < bound + (0.02 if dtype == torch.bfloat16 else 0)
    assert torch.equal(y[..., 3], linear.bias[3].expand(2, 9))  # zeros stay zero in every format
    assert linear(x[:, :0].to(dtype)).shape == (2, 0, OUTPUTS)  # the unconditional branch has no text tokens


@pytest.mark.parametrize("name", sorted(set(MAKERS) - {"fp8"}))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_equals_a_plain_linear_of_the_decoded_weight(name: str, dtype: torch.dtype) -> None:
    """To the last bit: keeping a packing changes no picture. (fp8 rounds its input as well, and is opt-in.)"""
    linear = MAKERS[name][0](weight_and_input()[0])
    x = weight_and_input()[1].to(dtype)
    assert torch.equal(linear(x), torch.nn.functional.linear(x, linear.decoded(dtype)))
    assert torch.equal(linear.decoded(torch.float32).to(torch.bfloat16), linear.decoded(torch.bfloat16))


@pytest.mark.parametrize("name", ["q8_0", "int8", "fp8", "nf4"])
@torch.inference_mode()
def test_a_compiler_can_follow(name: str) -> None:
    """--compile asks for whole graphs; what a back end makes of one is not its business here."""
    linear, x = MAKERS[name][0](weight_and_input()[0]), weight_and_input()[1]
    torch._dynamo.reset()
    compiled = torch.compile(linear, dynamic=True, fullgraph=True, backend="eager")
    for length in (9, 5):
        assert torch.equal(compiled(x[:, :length]), linear(x[:, :length]))


def test_buffers_travel() -> None:
    """What streams blocks, and what saves them, sees every tensor of a packed linear, and none is trained."""
    for make, _ in MAKERS.values():
        linear = make(weight_and_input()[0])
        assert not list(linear.parameters())
        assert linear.nbytes == sum(tensor.nbytes for tensor in linear.state_dict().values())
        there = linear.to("meta")
        assert all(buffer.is_meta for buffer in there.buffers())


# fp8 -----------------------------------------------------------------------------------------------------------------


def e4m3(value: float) -> float:
    """The nearest E4M3 number, by its definition: three bits of mantissa, exponents from -6, ties to even."""
    if value == 0:
        return 0.0
    sign, size = (-1.0, -value) if value < 0 else (1.0, value)
    exponent = max(-6, torch.frexp(torch.tensor(size, dtype=torch.float64)).exponent.item() - 1)
    step = 2.0 ** (exponent - 3)
    return sign * min(448.0, round(size / step) * step)  # Python's round goes to even


def test_fp8_multiplies_what_the_definition_says() -> None:
    generator = torch.Generator().manual_seed(3)
    weight, x = torch.randn(3, 16, generator=generator), torch.randn(2, 16, generator=generator) * 1e4
    y = fp8.pack(weight)(x)
    for t in range(2):
        sx = x[t].abs().max().item() / 448
        for o in range(3):
            sw = weight[o].abs().max().item() / 448
            products = [e4m3(x[t, i].item() / sx) * e4m3(weight[o, i].item() / sw) for i in range(16)]
            assert abs(y[t, o].item() - sum(products) * sx * sw) <= 1e-4 * sum(map(abs, products)) * sx * sw


def test_fp8_survives_the_published_activations() -> None:
    """A residual of 3e7 and values of 1.4e5 are scaled by row; a mere cast would cut both at 448."""
    x = torch.randn(4, 256, generator=torch.Generator().manual_seed(4))
    x[0] *= 3e7
    x[1] *= 1.4e5
    x[2] = 0
    codes, scales = quantise_fp8_rows(x.to(torch.bfloat16))
    back = codes.float() * scales
    error = (back - x).norm(dim=-1) / x.norm(dim=-1).clamp(min=1)
    assert bool((error < 0.04).all()) and not bool(back[2].any())


def test_scaled_mm_agrees_with_the_emulation() -> None:
    """torch runs `scaled_mm` on a CPU too, from the same factors; only the output's rounding differs."""
    weight, x = weight_and_input()
    linear = fp8.pack(weight)
    linear.bias = torch.ones(OUTPUTS, dtype=torch.bfloat16)
    factors = quantise_fp8_rows(x.reshape(-1, INPUTS).to(torch.bfloat16))
    fast, plain = (f(*factors, torch.bfloat16) for f in (linear._multiply, linear._emulate))
    assert torch.allclose(fast.float(), plain.float(), rtol=2**-7, atol=2**-7)


# mxfp8 ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 32), (130, 160), (256, 128)])
def test_swizzle_undoes_unswizzle(shape: tuple[int, int]) -> None:
    scales = torch.randint(1, 255, (shape[0], shape[1] // 32), dtype=torch.uint8)
    stored = block_scaled.swizzle(scales)
    assert stored.numel() == block_scaled.padded(*scales.shape)
    assert torch.equal(block_scaled.unswizzle(stored.reshape(-1), *scales.shape), scales)


def test_mxfp8_uses_the_smallest_power_of_two_that_fits() -> None:
    weight = torch.randn(50, 64, generator=torch.Generator().manual_seed(5))
    weight[0], weight[1, :32], weight[1, 32:] = 0, 448.0, 449.0  # exactly the largest number, and just above it
    weight[2], weight[3] = 1e-30, 3e30
    codes, exponents = block_scaled.quantise_mxfp8(weight)
    assert exponents[1].tolist() == [127, 128]
    largest = codes.float().abs().reshape(50, 2, 32).amax(-1)
    assert bool((largest <= 448).all()) and bool((largest[1:] > 200).all())  # neither cut nor wasted
    back = block_scaled.mxfp8_linear(codes, block_scaled.swizzle(exponents).reshape(-1), torch.float32)
    block = weight.abs().reshape(50, 2, 32).amax(-1).repeat_interleave(32, dim=1)
    assert bool(((back - weight).abs() <= block * 2.0**-4).all())  # half a step of three mantissa bits


# bitsandbytes --------------------------------------------------------------------------------------------------------


def test_int8_is_bitsandbytes_own() -> None:
    functional = bitsandbytes.library()
    weight, _ = weight_and_input()
    linear = int8.pack(weight)
    codes, absmax, _ = functional.int8_vectorwise_quant(weight)
    assert torch.equal(linear.packed, codes) and torch.equal(linear.scales, absmax)
    assert torch.equal(linear.decoded(torch.float32), functional.int8_vectorwise_dequant(codes, absmax))


@pytest.mark.parametrize("inputs", [INPUTS, 96, 672])
def test_nf4_is_the_published_table_times_absmax(inputs: int) -> None:
    """The sixteen numbers are those of the QLoRA paper's appendix E; the high nibble is the even element.

    Blocks run on across rows, also where these are no whole number of blocks (672 is Lens-Nano's w2), which
    bitsandbytes' own CPU kernel gets wrong.
    """
    table = torch.tensor([
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
        -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
        0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ])  # fmt: skip
    weight = torch.randn(OUTPUTS, inputs, generator=torch.Generator().manual_seed(7))
    linear = nf4.pack(weight)
    codes = torch.stack((linear.packed >> 4, linear.packed & 15), dim=-1).reshape(-1, 64).long()
    expected = (table[codes] * linear.absmax[:, None]).reshape(weight.shape)
    assert torch.allclose(linear.decoded(torch.float32), expected, rtol=1e-6, atol=0)
    nearest = (weight.reshape(-1, 64) / linear.absmax[:, None].clamp(min=1e-30))[..., None].sub(table).abs().argmin(-1)
    assert (nearest != codes).float().mean() < 0.001  # ties aside


def test_nested_scales_decode_as_bitsandbytes_does() -> None:
    functional = bitsandbytes.library()
    weight = torch.randn(64, 512, generator=torch.Generator().manual_seed(6))
    packed, state = functional.quantize_4bit(weight, blocksize=64, compress_statistics=True, quant_type="nf4")
    stored = {key.removeprefix("quant_state."): value for key, value in state.as_dict(packed=True).items()}
    shape, stated = bitsandbytes.read_nf4_state(bytes(stored["bitsandbytes__nf4"].tolist()), "w")
    scales = bitsandbytes.plain_scales(stored["absmax"], stored["nested_absmax"], stored["nested_quant_map"], stated)
    ours = Nf4Linear(packed, scales, shape).decoded(torch.float32)
    assert torch.equal(ours, functional.dequantize_4bit(packed, state))


def test_importing_bitsandbytes_fetches_and_says_nothing(tmp_path: Path) -> None:
    """With Hugging Face's `kernels` it would take compiled code from the hub; without, it would complain."""
    (tmp_path / "kernels.py").write_text("raise SystemExit('kernels was imported')")
    code = (
        "from backend.packing.bitsandbytes import library; library();"
        "import sys; assert 'bitsandbytes' in sys.modules and 'kernels' not in sys.modules"
    )
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[3])])
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
