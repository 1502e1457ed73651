"""Every saving of the denoiser, alone and all together, against the network stated plainly.

Why it can be trusted: the truth is `plain_lens` in float64, which shares no line with the product. Exact means: no
further from it than the published way of running the network (a batch of two under an additive mask), or merely the
same forward at batch 1, is. Judged at unit-normal activations and at those of the published model, which overflow or
swallow what is computed carelessly; that they occur is asserted, with hooks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from backend import loading, sampling
from backend.checkpoints.resolve import resolve_model
from backend.denoising import latents
from backend.denoising.denoiser import Denoiser
from backend.denoising.modulation import Folded, fold
from backend.denoising.stream import StreamedBlocks
from backend.model.transformer import JointAttention, LensBlock, LensTransformer2DModel
from tests.backend import plain_lens
from tests.backend.folding import fold_network
from tests.backend.plain_lens import Array

CONFIG: dict[str, Any] = {
    "patch_size": 2,
    "in_channels": 8,
    "out_channels": 2,
    "num_layers": 4,
    "attention_head_dim": 12,
    "num_attention_heads": 2,
    "enc_hidden_dim": 10,
    "axes_dims_rope": (2, 4, 6),
    "selected_layer_index": (0, 1, 2),
}
DIM = 24
GRID, LENGTH = (3, 4), 7
SIGMAS = sampling.schedule(12, 4)[:-1]
GUIDANCE = 5.0
RESIDUAL, VALUE = 3e7, 1.4e5  # largest in the published model
# Two ways of rounding the same sums end a little nearer or further from the truth by chance.
LUCK = 1.25
CASES = [(dtype, large) for large in (False, True) for dtype in (torch.float32, torch.bfloat16)]
NAMES = [f"{str(dtype).removeprefix('torch.')}-{'published ranges' if large else 'unit'}" for dtype, large in CASES]


# ------------------------------------------------------------------------------------------------------- the networks


def unit_weights() -> dict[str, Tensor]:
    """Norms around 1, biases and modulation that matter.

    Only the slow quarter of the time waves is heard: the angles of the fast ones, up to 1000, are off by 1e-4 in
    float32, the same in every way of running the network, which would hide all that is looked for here.
    """
    generator = torch.Generator().manual_seed(0)
    out: dict[str, Tensor] = {}
    for name, shape in plain_lens.shapes(CONFIG).items():
        spread = 0.3 if len(shape) == 1 else shape[1] ** -0.5
        mean = 1.0 if "norm" in name and len(shape) == 1 else 0.0
        out[name] = mean + spread * torch.randn(shape, generator=generator)
    heard = out["time_text_embed.timestep_embedder.linear_1.weight"]
    heard[:, :96], heard[:, 128 : 128 + 96] = 0.0, 0.0  # of 128 cosines and 128 sines
    return out


def large_weights() -> dict[str, Tensor]:
    """From block 1 on every channel of the residual streams is large, some 30 times larger than others; values too.

    Values are made large in front of the attention and small again behind it, which changes nothing else.
    """
    out = unit_weights()
    channels = 10 ** torch.linspace(0, 1.5, DIM)[torch.randperm(DIM, generator=torch.Generator().manual_seed(1))]
    for name, tensor in out.items():
        if name.startswith("transformer_blocks.0."):
            continue
        if ".attn.to_" in name or name.endswith("_mlp.w2.weight"):
            tensor *= channels.view(-1, *[1] * (tensor.dim() - 1))
    for name, wanted in (("residual", RESIDUAL), ("value", VALUE)):
        factor = wanted / largest(build(out, torch.float32))[name]
        for key, tensor in out.items():
            if key.startswith("transformer_blocks.0."):
                continue
            if name == "residual" and (".attn.to_" in key or key.endswith("_mlp.w2.weight")):
                tensor *= factor
            elif name == "value" and "_qkv." in key:
                tensor[2 * DIM :] *= factor
            elif name == "value" and ".attn.to_" in key and key.endswith("weight"):
                tensor /= factor
    return out


def build(weights: dict[str, Tensor], dtype: torch.dtype) -> LensTransformer2DModel:
    network = LensTransformer2DModel(**CONFIG)
    network.load_state_dict(weights)
    torch.nn.Module.to(network, dtype)
    return network.eval().requires_grad_(False)


def largest(network: LensTransformer2DModel) -> dict[str, float]:
    """The largest residual and the largest value of any token, block and stream, over all steps of both branches."""
    found = {"residual": 0.0, "value": 0.0}

    def note(name: str, tensor: Tensor) -> None:
        if tensor.numel():
            found[name] = max(found[name], float(tensor.float().abs().max()))

    def streams(_block: object, _inputs: object, out: tuple[Tensor, Tensor]) -> None:
        note("residual", out[0])
        note("residual", out[1])

    def values(_linear: object, _inputs: object, out: Tensor) -> None:
        note("value", out[..., 2 * DIM :])

    hooks = [block.register_forward_hook(streams) for block in network.blocks()]
    for block in network.blocks():
        hooks += [linear.register_forward_hook(values) for linear in (block.attn.img_qkv, block.attn.txt_qkv)]
    for step in range(len(SIGMAS)):
        denoiser(network, guidance=GUIDANCE).velocity(inputs(step)[0], step)
    for hook in hooks:
        hook.remove()
    return found


@functools.cache
def weights_of(large: bool, dtype: torch.dtype) -> dict[str, Tensor]:
    """As the network of that dtype holds them, so that both sides compute with the same numbers."""
    return {name: t.to(dtype).float() for name, t in (large_weights() if large else unit_weights()).items()}


def inputs(step: int) -> tuple[Tensor, Tensor]:
    """A noisy picture and the text; in bfloat16's numbers, so that casting costs nothing."""
    generator = torch.Generator().manual_seed(7)
    text = torch.randn(1, LENGTH, 3, 10, generator=generator) * torch.tensor([1.0, 10.0, 100.0])[:, None]
    x = torch.randn(1, 12, 8, generator=torch.Generator().manual_seed(step))
    return x.bfloat16().float(), text.bfloat16().float()


def denoiser(network: LensTransformer2DModel, *, guidance: float, text: Tensor | None = None, **more: Any) -> Denoiser:
    return Denoiser(
        network, fold_network(network, SIGMAS), GRID, inputs(0)[1] if text is None else text, guidance=guidance, **more
    )


# ---------------------------------------------------------------------- ways of computing both branches: (2, N, C)

Way = Callable[[LensTransformer2DModel, int], Tensor]


def published_way(network: LensTransformer2DModel, step: int) -> Tensor:
    """One batch of two; the unconditional half has padding for text, and a mask says so."""
    x, text = inputs(step)
    mask = torch.tensor([[True] * LENGTH, [False] * LENGTH])
    both = torch.cat((text, torch.zeros_like(text)))
    return network(torch.cat((x, x)), torch.full((2,), SIGMAS[step]), both, GRID, mask)


def another_batch_size(network: LensTransformer2DModel, step: int) -> Tensor:
    """The yardstick: the very same, one picture at a time."""
    x, text = inputs(step)
    t = torch.full((1,), SIGMAS[step])
    masks = (torch.ones(1, LENGTH, dtype=torch.bool), torch.zeros(1, LENGTH, dtype=torch.bool))
    return torch.cat([network(x, t, text * m[..., None, None], GRID, m) for m in masks])


def no_mask_no_padding(network: LensTransformer2DModel, step: int) -> Tensor:
    x, text = inputs(step)
    t = torch.full((1,), SIGMAS[step])
    return torch.cat([network(x, t, part, GRID) for part in (text, text[:, :0])])


def modulation_given(network: LensTransformer2DModel, step: int, *, skip: bool = False, folded: bool = True) -> Tensor:
    """The blocks in inference's way, one branch after the other, by hand."""
    given = fold_network(network, SIGMAS)
    x, _ = inputs(step)
    dtype = network.img_in.weight.dtype
    temb = network.time_text_embed(torch.full((1,), SIGMAS[step]), dtype)
    out = []
    for branch in denoiser(network, guidance=GUIDANCE).branches:
        image, words = network.img_in(x.to(dtype)), branch.text_1LD
        for index, block in enumerate(network.blocks()):
            modulation = given.block(step, index) if folded else block.modulation(temb)
            image, words = block(image, words, modulation, branch.rope, text_unread=skip and index == 3)
        out.append(network.proj_out(network.norm_out.modulated(image, given.final(step))))
    return torch.cat(out)


def last_text_skipped(network: LensTransformer2DModel, step: int) -> Tensor:
    return modulation_given(network, step, skip=True)


def everything(network: LensTransformer2DModel, step: int) -> Tensor:
    x, text = inputs(step)
    return torch.cat([denoiser(network, guidance=1.0, text=t).velocity(x, step) for t in (text, text[:, :0])])


WAYS: list[Way] = [no_mask_no_padding, modulation_given, last_text_skipped, everything]


@functools.cache
def truth(large: bool, dtype: torch.dtype, step: int) -> Array:
    """Both branches (2, N, C), float64, one token at a time."""
    weights = {name: tensor.double().numpy() for name, tensor in weights_of(large, dtype).items()}
    x, text = (tensor[0].double().numpy() for tensor in inputs(step))
    t = float(torch.tensor(SIGMAS[step]))  # the float32 value: at 1000 t the rounding would show
    return np.stack([plain_lens.velocity(weights, CONFIG, x, t, part, GRID) for part in (text, text[:0])])


def error(way: Way, large: bool, dtype: torch.dtype) -> float:
    """Root of the mean square over steps, branches, tokens and channels, relative."""
    network = build(weights_of(large, dtype), dtype)
    off = total = 0.0
    for step in range(len(SIGMAS)):
        wanted = truth(large, dtype, step)
        off += float(((way(network, step).double().numpy() - wanted) ** 2).sum())
        total += float((wanted**2).sum())
    return (off / total) ** 0.5


# ------------------------------------------------------------------------------------------------------------ exactness


@pytest.mark.parametrize(("dtype", "large"), CASES, ids=NAMES)
@torch.inference_mode()
def test_no_saving_costs_exactness(dtype: torch.dtype, large: bool) -> None:
    allowed = LUCK * max(error(published_way, large, dtype), error(another_batch_size, large, dtype))
    assert allowed < (1e-4 if dtype is torch.float32 else 0.1)  # rounding, not a yardstick that allows anything
    for way in WAYS:
        assert error(way, large, dtype) <= allowed, way.__name__


@pytest.mark.parametrize(("dtype", "large"), CASES, ids=NAMES)
@torch.inference_mode()
def test_guided_velocity(dtype: torch.dtype, large: bool) -> None:
    """Both branches and guidance in one call, against the published way and the guidance written out in float64."""
    network = build(weights_of(large, dtype), dtype)
    run = denoiser(network, guidance=GUIDANCE)
    ours = reference = total = 0.0
    for step, sigma in enumerate(SIGMAS):
        x, _ = inputs(step)
        c, u = truth(large, dtype, step)
        mixed = u + GUIDANCE * (c - u)
        wanted = mixed * np.linalg.norm(c, axis=-1, keepdims=True) / np.linalg.norm(mixed, axis=-1, keepdims=True)
        conditional, unconditional = published_way(network, step)
        got = run(x, sigma)
        assert torch.equal(got, run.velocity(x, step)) and got.dtype == torch.float32
        ours += float(((got[0].double().numpy() - wanted) ** 2).sum())
        reference += float(
            ((sampling.guide(conditional, unconditional, GUIDANCE).double().numpy() - wanted) ** 2).sum()
        )
        total += float((wanted**2).sum())
    assert ours <= LUCK**2 * reference
    assert (reference / total) ** 0.5 < (1e-4 if dtype is torch.float32 else 0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_the_published_ranges_occur(dtype: torch.dtype) -> None:
    found = largest(build(weights_of(True, dtype), dtype))
    assert 0.8 * RESIDUAL < found["residual"] < 1.25 * RESIDUAL
    assert 0.8 * VALUE < found["value"] < 1.25 * VALUE
    assert found["residual"] > torch.finfo(torch.float16).max  # why there is no float16
    small = largest(build(weights_of(False, dtype), dtype))
    assert 1 < small["residual"] < 100 and 1 < small["value"] < 100


@pytest.mark.parametrize(("dtype", "large"), CASES, ids=NAMES)
@torch.inference_mode()
def test_bit_for_bit(dtype: torch.dtype, large: bool) -> None:
    """Folding changes no bit of a step at all, nor does making text and positions once; every call repeats itself."""
    network = build(weights_of(large, dtype), dtype)
    for step in range(len(SIGMAS)):
        given = modulation_given(network, step)
        assert torch.equal(given, modulation_given(network, step, folded=False))
        assert torch.equal(everything(network, step), last_text_skipped(network, step))
        assert torch.equal(everything(network, step), everything(network, step))


# ---------------------------------------------------------------------------------------------------------- behaviour


@pytest.fixture
def network() -> LensTransformer2DModel:
    return build(unit_weights(), torch.float32)


@torch.inference_mode()
def test_guidance_of_one_is_the_conditional_branch(network: LensTransformer2DModel) -> None:
    x, text = inputs(1)
    run = denoiser(network, guidance=1.0, unconditional_1LTF=text[:, :2])
    assert len(run.branches) == 1
    assert torch.equal(run.velocity(x, 1), denoiser(network, guidance=1.0).velocity(x, 1))
    c, u = everything(network, 1)
    assert torch.equal(run.velocity(x, 1)[0], c) and not torch.allclose(c, u, rtol=1e-2)


@torch.inference_mode()
def test_a_negative_prompt_of_its_own_length(network: LensTransformer2DModel) -> None:
    x, text = inputs(2)
    other = text[:, 2:5].flip(1)
    got = denoiser(network, guidance=3.0, unconditional_1LTF=other).velocity(x, 2)
    c, u = (denoiser(network, guidance=1.0, text=t).velocity(x, 2) for t in (text, other))
    assert torch.equal(got, sampling.guide(c, u, 3.0))
    assert not torch.allclose(got, denoiser(network, guidance=3.0).velocity(x, 2), rtol=1e-2)


class Counted:
    """A source of blocks that says what it was asked for."""

    def __init__(self, network: LensTransformer2DModel) -> None:
        self.network = network
        self.given: list[LensBlock] = []
        self.finished = 0

    def blocks(self) -> Iterator[LensBlock]:
        for block in self.network.blocks():
            self.given.append(block)
            yield block
        self.finished += 1


@torch.inference_mode()
def test_one_pass_over_the_blocks_a_step(network: LensTransformer2DModel) -> None:
    """Both branches share it, and it is always finished: a source may prefetch the next pass."""
    source = Counted(network)
    run = denoiser(network, guidance=GUIDANCE, source=source)
    for step in (0, 1):
        x, _ = inputs(step)
        assert torch.equal(run.velocity(x, step), denoiser(network, guidance=GUIDANCE).velocity(x, step))
    assert source.given == 2 * list(network.blocks()) and source.finished == 2


@torch.inference_mode()
def test_streamed_blocks_give_the_same_bits() -> None:
    network = build(unit_weights(), torch.bfloat16)
    wanted = [denoiser(network, guidance=GUIDANCE).velocity(inputs(step)[0], step) for step in range(4)]
    folded: Folded = fold_network(network, SIGMAS)
    network.drop_modulation()
    source = StreamedBlocks(list(network.blocks()), "cpu", slots=2)
    run = Denoiser(network, folded, GRID, inputs(0)[1], guidance=GUIDANCE, source=source)
    for step in range(4):
        assert torch.equal(run.velocity(inputs(step)[0], step), wanted[step])


@torch.inference_mode()
def test_the_last_text_and_an_empty_text_cost_nothing(network: LensTransformer2DModel) -> None:
    """The layers that only they need do not run, and their weights change nothing."""
    ran: list[str] = []
    for name, module in network.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(lambda _m, _i, _o, name=name: ran.append(name))
    x, text = inputs(0)
    denoiser(network, guidance=1.0).velocity(x, 0)
    last = {"transformer_blocks.3.attn.to_add_out", *(f"transformer_blocks.3.txt_mlp.w{i}" for i in (1, 2, 3))}
    assert not last & set(ran) and "transformer_blocks.3.attn.txt_qkv" in ran
    assert {name.replace(".3.", ".2.") for name in last} <= set(ran)
    run = denoiser(network, guidance=1.0, text=text[:, :0])
    ran.clear()
    run.velocity(x, 0)
    assert not [name for name in ran if "txt" in name or "add_out" in name]
    assert len(ran) == 2 + 4 * 5  # in, out; qkv, out and three of the feed-forward a block


def test_impossible_calls(network: LensTransformer2DModel) -> None:
    run = denoiser(network, guidance=1.0)
    with pytest.raises(ValueError, match=r"\[1, 11\] image tokens do not fill one latent of 3 x 4"):
        run.velocity(torch.zeros(1, 11, 8), 0)
    with pytest.raises(ValueError, match=r"\[2, 12\] image tokens"):
        run.velocity(torch.zeros(2, 12, 8), 0)
    with pytest.raises(ValueError, match="not in tuple"):
        run(inputs(0)[0], 0.123)


def test_training_is_not_affected(network: LensTransformer2DModel) -> None:
    """`forward` goes the plain way, whose explicit attention, masks and gradients inference does not know."""
    network.train().requires_grad_(True)
    for module in network.modules():
        if isinstance(module, JointAttention):
            module.explicit = True
    x, text = inputs(0)
    network(x, torch.tensor([0.5]), text, GRID, torch.tensor([[True] * 5 + [False] * 2])).square().mean().backward()
    missing = {name for name, p in network.named_parameters() if p.grad is None}
    # What only the last block's text needs is in the graph of nothing, as ever.
    assert missing == {
        f"transformer_blocks.3.{rest}" for rest in (
            "txt_norm2.weight", "attn.to_add_out.weight", "attn.to_add_out.bias",
            "txt_mlp.w1.weight", "txt_mlp.w2.weight", "txt_mlp.w3.weight",
        )
    }  # fmt: skip


@torch.inference_mode()
def test_nano_draws_the_same() -> None:
    """Lens-Nano's latent after all steps, before and after these savings: rounding, and far less than a grey level."""
    nano = resolve_model("nano")
    params, grid = nano.preset.params.dit, (6, 8)
    sigmas = sampling.schedule(48, 4)
    network = loading.load_transformer(nano, torch.float32, "cpu")
    text = torch.randn(
        1, 20, len(params.selected_layer_index), params.enc_hidden_dim, generator=torch.Generator().manual_seed(3)
    )

    def plain(x: Tensor, sigma: float) -> Tensor:
        t = torch.full((1,), sigma)
        return sampling.guide(network(x, t, text, grid), network(x, t, text[:, :0], grid), GUIDANCE)

    noise = latents.noise(11, *grid)
    before = sampling.denoise(plain, noise, sigmas)
    table = loading.open_transformer_table(nano)
    bare = loading.load_for_schedules(table, params, torch.float32, "cpu")
    folded = fold(table, params, sigmas[:-1], torch.float32, "cpu")
    after = sampling.denoise(Denoiser(bare, folded, grid, text, guidance=GUIDANCE), noise, sigmas)
    assert float((after - before).norm() / before.norm()) < 1e-5
