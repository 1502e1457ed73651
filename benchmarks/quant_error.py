"""What each quantisation costs: errors of velocity and latent against float32, for Lens-Nano and at published ranges.

    python -m benchmarks.quant_error nano --prompts 2
    python -m benchmarks.quant_error ranges

`nano` runs the shipped network on real prompts. Its file is Q8_0, so the reference is that file decoded, and the row of
q8_0 is only rounding what is rounded. `ranges` makes blocks of the published width whose residual stream reaches 3e7
and whose values V reach 1.4e5, as is reported of the published weights, and checks that they do; everything else in
it is random, so its errors rank the schemes and foretell no picture.

Errors are |a - b| / |b| over all elements. "velocity": mean and largest over the sigmas of a schedule, at the states of
the float32 run, in float32 arithmetic (the weights' rounding alone) and in bfloat16 (what runs). "latent": after all
steps, each run on its own way.
"""

from __future__ import annotations

import argparse
import copy
import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, cast

import gguf
import torch
from torch import Tensor, nn

from backend import sampling
from backend.checkpoints.packing_plan import BLOCK_LINEAR, MODULATION
from backend.denoising import latents
from backend.kernels.pointwise_torch import FP8, FP8_MAX
from backend.model.transformer import LensTransformer2DModel
from backend.packing import block_scaled, fp8, int8, nf4
from backend.packing.fp8 import Fp8Linear, ScaledFp8Linear
from backend.packing.ggml_write import K_TYPES, pack
from backend.packing.gguf import GgufLinear
from backend.packing.linears import PackedLinear
from backend.packing.mxfp8 import Mxfp8Linear
from backend.params import DiTParams
from backend.sizes import GRID

PROMPTS = (
    "a red fish in a blue sea",
    "a yellow house under a dark sky with the sign OPEN",
    "three green trees on a hill",
)
Make = Callable[[Tensor], nn.Module]
Velocity = Callable[[LensTransformer2DModel, Tensor, float], Tensor]
Type = gguf.GGMLQuantizationType

# schemes -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rounding:
    name: str
    make: Make | None  # None: the weights as they are
    modulation: bool = False  # quantised as well


def ggml(kind: Type, weight_OI: Tensor) -> PackedLinear:
    """Rows that the K types cannot hold become Q8_0, as in the files that lens writes."""
    width = weight_OI.shape[1]
    used = Type.Q8_0 if kind in K_TYPES and width % gguf.GGML_QUANT_SIZES[kind][0] else kind
    return GgufLinear(torch.from_numpy(pack(weight_OI.contiguous().numpy(), used)), int(used), width)


def mxfp8(weight_OI: Tensor) -> PackedLinear:
    codes, scales = block_scaled.quantise_mxfp8(weight_OI)
    return Mxfp8Linear(codes, block_scaled.swizzle(scales).reshape(-1))


def scaled_fp8(weight_OI: Tensor) -> PackedLinear:
    """ComfyUI's: one scale for the whole weight."""
    scale = weight_OI.abs().amax() / FP8_MAX
    return ScaledFp8Linear((weight_OI / scale).to(FP8), scale)


class CastFp8(nn.Module):
    """Not offered by lens: weights and activations cast to E4M3 without a scale, cut at 448."""

    def __init__(self, weight_OI: Tensor) -> None:
        super().__init__()
        self.weight = weight_OI.clamp(-FP8_MAX, FP8_MAX).to(FP8).float()
        self.bias: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        cast = x.float().clamp(-FP8_MAX, FP8_MAX).to(FP8).float()
        y = cast @ self.weight.T
        return (y if self.bias is None else y + self.bias).to(x.dtype)


class Llm8(nn.Module):
    """Not offered by lens: int8 activations too, through float16, as bitsandbytes' Linear8bitLt computes."""

    def __init__(self, weight_OI: Tensor) -> None:
        super().__init__()
        self.weight = int8.pack(weight_OI)
        self.bias: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        half = x.reshape(-1, x.shape[-1]).half().float()
        largest = half.abs().amax(dim=-1, keepdim=True)
        codes = torch.round(half * (127 / largest))
        y = (codes @ self.weight.packed.float().T) * (largest / 127) * (self.weight.scales / 127)
        y = y.view(*x.shape[:-1], y.shape[-1])  # said in full: the text of the branch without words has no rows
        return (y if self.bias is None else y + self.bias).to(x.dtype)


SCHEMES = (
    Rounding("none", None),
    Rounding("q8_0", functools.partial(ggml, Type.Q8_0)),
    Rounding("int8", int8.pack),
    Rounding("mxfp8", mxfp8),
    Rounding("fp8 weights, one scale", scaled_fp8),
    Rounding("fp8", fp8.pack),
    Rounding("q6_k", functools.partial(ggml, Type.Q6_K)),
    Rounding("q5_k", functools.partial(ggml, Type.Q5_K)),
    Rounding("q4_k", functools.partial(ggml, Type.Q4_K)),
    Rounding("q4_0", functools.partial(ggml, Type.Q4_0)),
    Rounding("nf4", nf4.pack),
    Rounding("q8_0, modulation too", functools.partial(ggml, Type.Q8_0), modulation=True),
    Rounding("q4_k, modulation too", functools.partial(ggml, Type.Q4_K), modulation=True),
    Rounding("nf4, modulation too", nf4.pack, modulation=True),
    Rounding("(int8 activations)", Llm8),
    Rounding("(fp8 cast, no scale)", CastFp8),
)


def packed_linears(scheme: Rounding, weights: nn.Module) -> dict[str, nn.Module]:
    """Name -> packed linear without a bias, of everything that the scheme packs."""
    packed: dict[str, nn.Module] = {}
    for name, linear in weights.named_modules():
        key = f"{name}.weight"
        wanted = BLOCK_LINEAR.fullmatch(key) or (scheme.modulation and MODULATION.fullmatch(key))
        if scheme.make is not None and wanted and isinstance(linear, nn.Linear):
            packed[name] = scheme.make(linear.weight.detach())
    return packed


@contextmanager
def replaced(network: nn.Module, packed: Mapping[str, nn.Module], dtype: torch.dtype) -> Iterator[None]:
    """`network` with these linears; then as it was.

    Those that only pack their weight stand here decoded, which the tests show to be the same to the last bit.
    """
    plain: dict[str, nn.Linear] = {}
    for name, module in packed.items():
        linear = network.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        plain[name] = linear
        if isinstance(module, PackedLinear) and not isinstance(module, Fp8Linear):
            stand_in = nn.Linear(1, 1, bias=False, device="meta")
            stand_in.weight = nn.Parameter(module.decoded(dtype), requires_grad=False)
            stand_in.bias = linear.bias
            network.set_submodule(name, stand_in)
        else:
            cast("Any", module).bias = None if linear.bias is None else linear.bias.detach()
            network.set_submodule(name, module)
    try:
        yield
    finally:
        for name, linear in plain.items():
            network.set_submodule(name, linear)


# measuring -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """One start and everything that decides its way to a latent."""

    noise_BNC: Tensor
    sigmas: tuple[float, ...]
    velocity: Velocity


def trajectory(network: LensTransformer2DModel, run: Run) -> tuple[list[tuple[float, Tensor, Tensor]], Tensor]:
    """(sigma, state, velocity) of every step, and the last state."""
    steps: list[tuple[float, Tensor, Tensor]] = []

    def velocity(x: Tensor, sigma: float) -> Tensor:
        v = run.velocity(network, x, sigma)
        steps.append((sigma, x.clone(), v))
        return v

    return steps, sampling.denoise(velocity, run.noise_BNC, run.sigmas, lambda *_: None)


def relative(a: Tensor, b: Tensor) -> float:
    a, b = a.double(), b.double()
    return ((a - b).norm() / b.norm()).item()


def table(exact: LensTransformer2DModel, runs: Sequence[Run], schemes: Sequence[Rounding]) -> None:
    """Print one line for each scheme as it is measured."""
    narrow = copy.deepcopy(exact).bfloat16()
    known = [trajectory(exact, run) for run in runs]
    print("| | velocity, float32 | largest | velocity, bfloat16 | latent, float32 | latent, bfloat16 |")
    print("|---|--:|--:|--:|--:|--:|", flush=True)
    for scheme in schemes:
        row: list[float] = []
        packed = packed_linears(scheme, exact)
        for network, dtype in ((exact, torch.float32), (narrow, torch.bfloat16)):
            with replaced(network, packed, dtype):
                errors = [
                    relative(run.velocity(network, x, sigma), v)
                    for run, (steps, _) in zip(runs, known, strict=True)
                    for sigma, x, v in steps
                ]
                ends = [relative(trajectory(network, run)[1], end) for run, (_, end) in zip(runs, known, strict=True)]
            row += [sum(errors) / len(errors), max(errors), sum(ends) / len(ends)]
        cells = [row[0], row[1], row[3], row[2], row[5]]
        print(f"| {scheme.name} | " + " | ".join(_cell(value) for value in cells) + " |", flush=True)


def _cell(error: float) -> str:
    return f"{error:.5f}" if math.isfinite(error) else "not finite"


# Lens-Nano -----------------------------------------------------------------------------------------------------------


def nano_runs(prompts: Sequence[str], steps: int) -> tuple[LensTransformer2DModel, list[Run]]:
    """The shipped network in float32, one run for each prompt, with its own guidance."""
    from backend.checkpoints.resolve import resolve_model
    from backend.loading import load_transformer
    from backend.text.features import FeatureSource
    from backend.types import Encoder, Phase

    @contextmanager
    def silent(_: Phase) -> Iterator[None]:
        yield

    files = resolve_model("nano-base")  # `nano` is no file of Q8_0: an adapter is added to it
    cpu = torch.device("cpu")
    source = FeatureSource(
        files=files, encoder=Encoder.exact, dtype=torch.float32, device=cpu, store=None, llama=None
    )  # fmt: skip
    side, guidance = files.preset.default_base // GRID, files.preset.guidance

    def run(features: Tensor, seed: int) -> Run:
        def velocity(network: LensTransformer2DModel, x: Tensor, sigma: float) -> Tensor:
            t, given = torch.full((1,), sigma), x.to(network.img_in.weight.dtype)
            conditional = network(given, t, features, (side, side))
            unconditional = network(given, t, features[:, :0], (side, side))
            return sampling.guide(conditional, unconditional, guidance)

        return Run(latents.noise(seed, side, side), sampling.schedule(side * side, steps), velocity)

    runs = [run(features, seed) for seed, features in enumerate(source.features(list(prompts), silent))]
    return load_transformer(files, torch.float32, "cpu"), runs


# Published ranges ----------------------------------------------------------------------------------------------------

RESIDUAL, VALUES = 3e7, 1.4e5  # largest magnitudes reported of the published weights
LOUD = 4  # channels of the residual stream that reach it; the others stay three orders of magnitude below
LOUD_VALUES = 8  # of V
HIDDEN = (RESIDUAL / 1e3) ** 0.5  # what each of a gated unit's two factors is scaled by


def ranges_runs(blocks: int, side: int, words: int, steps: int) -> tuple[LensTransformer2DModel, list[Run]]:
    """Random blocks of the published width with planted outliers, and a short schedule without guidance."""
    torch.manual_seed(0)
    params = DiTParams(num_layers=blocks, enc_hidden_dim=256, selected_layer_index=(0, 1))
    network = LensTransformer2DModel(**asdict(params)).eval().requires_grad_(False)
    features = torch.randn(1, words, 2, 256)

    def velocity(network: LensTransformer2DModel, x: Tensor, sigma: float) -> Tensor:
        given = x.to(network.img_in.weight.dtype)
        return network(given, torch.full((1,), sigma), features.to(given.dtype), (side, side)).float()

    run = Run(torch.randn(1, side * side, params.in_channels), sampling.schedule(side * side, steps), velocity)
    plant(network)
    for _ in range(2):  # scales act on each other through the norms: twice is close enough, and checked below
        calibrate(network, lambda: velocity(network, run.noise_BNC, 1.0))
    found = magnitudes(network, lambda: velocity(network, run.noise_BNC, 1.0))
    print(f"largest residual {found.residual:.3g}, largest V {found.values:.3g}")
    assert 0.5 * RESIDUAL < found.residual < 2 * RESIDUAL and 0.5 * VALUES < found.values < 2 * VALUES, found
    return network, [run]


@dataclass(frozen=True)
class Magnitudes:
    residual: float  # after any block
    values: float  # V of any block, before attention
    first: float  # residual after the second block, in the loud channels
    quiet: float  # there, a typical other channel


def plant(network: LensTransformer2DModel) -> None:
    """Weights of usual size; a few channels of the residual stream and of V are made loud, their readers deaf."""
    for name, parameter in network.named_parameters():
        if parameter.ndim == 2:
            parameter.normal_(0, parameter.shape[1] ** -0.5)
        elif name.endswith("bias"):
            parameter.normal_(0, 0.02)
    heads = network.params.dim
    for index, block in enumerate(network.blocks()):
        for stream in ("img", "txt"):
            modulation = block.get_submodule(f"{stream}_mod.1")
            modulation.weight.mul_(0.3)  # pyright: ignore[reportCallIssue]
            qkv = block.attn.get_submodule(f"{stream}_qkv")
            out = block.attn.get_submodule("to_out.0" if stream == "img" else "to_add_out")
            loud = slice(2 * heads, 2 * heads + LOUD_VALUES)
            qkv.weight[loud].mul_(VALUES / 4)  # pyright: ignore[reportIndexIssue, reportCallIssue]
            out.weight[:, :LOUD_VALUES].div_(VALUES / 4)  # pyright: ignore[reportIndexIssue, reportCallIssue]
            if index >= 1:
                # By what passes between the matrices rather than by their own numbers: GGUF's float16 scales hold
                # published weights, and would not hold 1e7.
                for gate in ("w1", "w3"):
                    block.get_submodule(f"{stream}_mlp.{gate}").weight.mul_(HIDDEN)  # pyright: ignore[reportCallIssue]
            if index == 1:
                w2 = block.get_submodule(f"{stream}_mlp.w2").weight
                w2[:LOUD].mul_(1e3)  # pyright: ignore[reportIndexIssue, reportCallIssue]
            if index > 1:
                out.weight.mul_(RESIDUAL / 1e3)  # pyright: ignore[reportCallIssue]
                for norm in ("norm1", "norm2"):
                    weight = block.get_submodule(f"{stream}_{norm}").weight
                    weight.mul_(50)  # pyright: ignore[reportCallIssue]
                    weight[:LOUD].mul_(1e-3)  # pyright: ignore[reportIndexIssue, reportCallIssue]
    network.proj_out.weight[:, :LOUD].mul_(1e-3)


def calibrate(network: LensTransformer2DModel, run: Callable[[], Tensor]) -> None:
    """Bring the largest residual and the largest V to the published ones."""
    found = magnitudes(network, run)
    for index, block in enumerate(network.blocks()):
        for stream in ("img", "txt"):
            heads = network.params.dim
            loud = slice(2 * heads, 2 * heads + LOUD_VALUES)
            qkv = block.attn.get_submodule(f"{stream}_qkv")
            out = block.attn.get_submodule("to_out.0" if stream == "img" else "to_add_out")
            factor = VALUES / found.values
            qkv.weight[loud].mul_(factor)  # pyright: ignore[reportIndexIssue, reportCallIssue]
            out.weight[:, :LOUD_VALUES].div_(factor)  # pyright: ignore[reportIndexIssue, reportCallIssue]
            if index >= 1:
                w2 = block.get_submodule(f"{stream}_mlp.w2").weight
                w2.mul_(RESIDUAL / found.residual)  # pyright: ignore[reportCallIssue]


def magnitudes(network: LensTransformer2DModel, run: Callable[[], Tensor]) -> Magnitudes:
    """What one forward pass reaches, in float32."""
    residuals: list[Tensor] = []
    values: list[float] = []
    heads = network.params.dim

    def on_block(_module: nn.Module, _given: object, made: tuple[Tensor, Tensor]) -> None:
        residuals.append(made[0])

    def on_qkv(_module: nn.Module, _given: object, made: Tensor) -> None:
        values.append(made[..., 2 * heads :].abs().max().item())

    hooks = [block.register_forward_hook(on_block) for block in network.blocks()]
    hooks += [block.attn.img_qkv.register_forward_hook(on_qkv) for block in network.blocks()]
    run()
    for hook in hooks:
        hook.remove()
    second = residuals[1][0].abs()
    return Magnitudes(
        residual=max(r.abs().max().item() for r in residuals),
        values=max(values),
        first=second[:, :LOUD].max().item(),
        quiet=second[:, LOUD:].median().item(),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("nano", "ranges"))
    parser.add_argument("--prompts", type=int, default=2, help="of Lens-Nano, at most 3")
    parser.add_argument("--steps", type=int, default=None, help="20 for nano, 4 for ranges")
    parser.add_argument("--blocks", type=int, default=3, help="of the published width, at least 3; 340 MB each")
    parser.add_argument("--only", nargs="*", help="schemes by name")
    given = parser.parse_args()
    schemes = [scheme for scheme in SCHEMES if not given.only or scheme.name in given.only]
    start = time.perf_counter()
    with torch.inference_mode():
        if given.what == "nano":
            network, runs = nano_runs(PROMPTS[: given.prompts], given.steps or 20)
        else:
            network, runs = ranges_runs(given.blocks, 8, 24, given.steps or 4)
        table(network, runs, schemes)
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
