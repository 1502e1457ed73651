"""The transformer against `plain_lens`, a second statement of the same equations in float64 loops.

Why it can be trusted: the reference shares no line with the product, every weight (norms, biases, modulation) is
random, and each known mistake of other ports, made on purpose in the reference, is shown to be noticed.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from backend.model.diffusers_transformer import LensTransformer2DModel
from backend.model.positions import attention_mask, rope_positions
from backend.model.transformer import JointAttention
from tests.backend import plain_lens
from tests.backend.plain_lens import PUBLISHED, Array, Choices

# Three different axis sizes, so that swapped axes show; 2 heads, 3 text layers, and int(dim / 3 * 8) = 64.
CONFIG: dict[str, Any] = {
    "patch_size": 2,
    "in_channels": 8,
    "out_channels": 2,
    "num_layers": 2,
    "attention_head_dim": 12,
    "num_attention_heads": 2,
    "enc_hidden_dim": 10,
    "axes_dims_rope": (2, 4, 6),
    "selected_layer_index": (0, 1, 2),
}
# transformer/config.json as published, without the two keys that diffusers writes.
PUBLISHED_CONFIG: dict[str, Any] = {
    "patch_size": 2,
    "in_channels": 128,
    "out_channels": 32,
    "num_layers": 48,
    "attention_head_dim": 64,
    "num_attention_heads": 24,
    "inner_dim": 1536,
    "enc_hidden_dim": 2880,
    "axes_dims_rope": [8, 28, 28],
    "gate_mlp": True,
    "rms_norm": True,
    "multi_layer_encoder_feature": True,
    "selected_layer_index": [5, 11, 17, 23],
}
# The shape table of the published files, B = 0 ... 47.
PUBLISHED_SHAPES = """
img_in.weight 1536x128; img_in.bias 1536; txt_in.weight 1536x11520; txt_in.bias 1536
txt_norm.0.weight 2880; txt_norm.1.weight 2880; txt_norm.2.weight 2880; txt_norm.3.weight 2880
time_text_embed.timestep_embedder.linear_1.weight 1536x256; time_text_embed.timestep_embedder.linear_1.bias 1536
time_text_embed.timestep_embedder.linear_2.weight 1536x1536; time_text_embed.timestep_embedder.linear_2.bias 1536
norm_out.linear.weight 3072x1536; norm_out.linear.bias 3072; proj_out.weight 128x1536; proj_out.bias 128
B.attn.img_qkv.weight 4608x1536; B.attn.img_qkv.bias 4608; B.attn.txt_qkv.weight 4608x1536; B.attn.txt_qkv.bias 4608
B.attn.norm_q.weight 64; B.attn.norm_k.weight 64; B.attn.norm_added_q.weight 64; B.attn.norm_added_k.weight 64
B.attn.to_out.0.weight 1536x1536; B.attn.to_out.0.bias 1536
B.attn.to_add_out.weight 1536x1536; B.attn.to_add_out.bias 1536
B.img_mod.1.weight 9216x1536; B.img_mod.1.bias 9216; B.txt_mod.1.weight 9216x1536; B.txt_mod.1.bias 9216
B.img_norm1.weight 1536; B.img_norm2.weight 1536; B.txt_norm1.weight 1536; B.txt_norm2.weight 1536
B.img_mlp.w1.weight 4096x1536; B.img_mlp.w3.weight 4096x1536; B.img_mlp.w2.weight 1536x4096
B.txt_mlp.w1.weight 4096x1536; B.txt_mlp.w3.weight 4096x1536; B.txt_mlp.w2.weight 1536x4096
"""
TOLERANCE = 1e-5  # float32 against float64; the product is measured at about 1e-6
NOTICED = 1e-3  # a mistake moves the answer by at least a hundred times the tolerance


def random_weights(config: dict[str, Any] = CONFIG, seed: int = 0) -> dict[str, Array]:
    """float32 values, so that both sides hold the same numbers; norms around 1, biases and modulation not zero."""
    rng = np.random.default_rng(seed)
    out = {}
    for key, shape in plain_lens.shapes(config).items():
        spread = 0.3 if len(shape) == 1 else 1.0 / np.sqrt(shape[1])
        values = rng.normal(0.0, spread, shape) + (1.0 if "norm" in key and len(shape) == 1 else 0.0)
        out[key] = values.astype(np.float32).astype(np.float64)
    return out


def build(weights: dict[str, Array], config: dict[str, Any] = CONFIG) -> LensTransformer2DModel:
    model = LensTransformer2DModel(**config)
    model.load_state_dict({key: torch.from_numpy(value).float() for key, value in weights.items()}, strict=True)
    return model.eval()


def inputs(grid: tuple[int, int], length: int, seed: int = 1, batch: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, grid[0] * grid[1], CONFIG["in_channels"], generator=generator)
    text = torch.randn(batch, length, 3, CONFIG["enc_hidden_dim"], generator=generator)
    return x, text * torch.tensor([1.0, 10.0, 100.0])[:, None]  # deeper encoder layers are larger


def plain(
    weights: dict[str, Array], x: Tensor, t: float, text: Tensor, grid: tuple[int, int],
    keep: list[bool] | None = None, choices: Choices = PUBLISHED,
) -> Array:  # fmt: skip
    """The reference on one picture given as float32 tensors without a batch axis."""
    return plain_lens.velocity(weights, CONFIG, x.double().numpy(), t, text.double().numpy(), grid, keep, choices)


def error(got: Tensor, wanted: Array) -> float:
    """Largest difference over the largest value."""
    return float(np.abs(got.double().numpy() - wanted).max() / np.abs(wanted).max())


@pytest.fixture(scope="module")
def weights() -> dict[str, Array]:
    return random_weights()


@pytest.fixture(scope="module")
def model(weights: dict[str, Array]) -> LensTransformer2DModel:
    return build(weights)


# ------------------------------------------------------------------------------------------------------------ parity


@pytest.mark.parametrize("length", [0, 1, 17])
@pytest.mark.parametrize("grid", [(4, 2), (3, 5), (1, 1)])
@torch.no_grad()
def test_parity(model: LensTransformer2DModel, weights: dict[str, Array], grid: tuple[int, int], length: int) -> None:
    x, text = inputs(grid, length)
    t = torch.tensor([0.7671999])
    got = model(x, t, text, grid)
    assert got.shape == (1, grid[0] * grid[1], 8)
    assert error(got[0], plain(weights, x[0], float(t), text[0], grid)) < TOLERANCE


@pytest.mark.parametrize("t", [1.0, 0.96738398, 0.001, 0.0])
@torch.no_grad()
def test_parity_at_every_time(model: LensTransformer2DModel, weights: dict[str, Array], t: float) -> None:
    x, text = inputs((3, 2), 4)
    t_B = torch.tensor([t])  # the reference gets the float32 value: at 1000 t the rounding would show
    assert error(model(x, t_B, text, (3, 2))[0], plain(weights, x[0], float(t_B), text[0], (3, 2))) < TOLERANCE


@torch.no_grad()
def test_batch_of_unequal_lengths(model: LensTransformer2DModel, weights: dict[str, Array]) -> None:
    """Two pictures, two times, 7 and 3 real tokens: each as if alone, whatever stands in the padding."""
    grid = (3, 4)
    x, text = inputs(grid, 7, batch=2)
    t = torch.tensor([0.9, 0.3])
    mask = torch.tensor([[True] * 7, [True] * 3 + [False] * 4])
    got = model(x, t, text, grid, mask)
    for i, length in enumerate((7, 3)):
        alone = plain(weights, x[i], float(t[i]), text[i, :length], grid)
        padded = plain(weights, x[i], float(t[i]), text[i], grid, mask[i].tolist())
        np.testing.assert_allclose(alone, padded, rtol=1e-12, atol=1e-12)  # the two readings of a mask agree
        assert error(got[i], alone) < TOLERANCE


@torch.no_grad()
def test_mask_with_holes(model: LensTransformer2DModel, weights: dict[str, Array]) -> None:
    """Masked tokens keep their places: the ones after a hole stand where they stood."""
    x, text = inputs((2, 3), 6)
    keep = [True, False, True, False, False, True]
    got = model(x, torch.tensor([0.5]), text, (2, 3), torch.tensor([keep]))
    assert error(got[0], plain(weights, x[0], 0.5, text[0], (2, 3), keep)) < TOLERANCE


@torch.no_grad()
def test_dropped_caption_is_no_text(model: LensTransformer2DModel) -> None:
    """All text masked equals a call with no text tokens: caption dropout trains the branch that inference runs."""
    x, text = inputs((3, 3), 5)
    t = torch.tensor([0.4])
    dropped = model(x, t, text, (3, 3), torch.zeros(1, 5, dtype=torch.bool))
    none = model(x, t, text[:, :0], (3, 3))
    torch.testing.assert_close(dropped, none, rtol=1e-5, atol=1e-5)
    assert error(model(x, t, text, (3, 3))[0], none[0].double().numpy()) > NOTICED


# ------------------------------------------------------------------------------------------------ mistakes are noticed


def scaled(weights: dict[str, Array], ending: str, factor: float) -> dict[str, Array]:
    return {key: value * factor if key.endswith(ending) else value for key, value in weights.items()}


def tiny_queries(weights: dict[str, Array]) -> dict[str, Array]:
    """Queries and keys of about 1e-3, whose mean square is near the epsilon; the values stay."""
    out = dict(weights)
    for key, value in weights.items():
        if "_qkv." in key:
            rows = 2 * len(value) // 3
            out[key] = np.concatenate((value[:rows] * 1e-3, value[rows:]))
    return out


def tiny_streams(weights: dict[str, Array]) -> dict[str, Array]:
    """Embeddings and all residual updates of about 1e-3, for the norms inside blocks and the last one."""
    out = dict(weights)
    for key, value in weights.items():
        if key.startswith(("img_in", "txt_in")) or ".attn.to_" in key or key.endswith("_mlp.w2.weight"):
            out[key] = value * 1e-3
    return out


MISTAKES = {
    "qk-norm eps 1e-5": (replace(PUBLISHED, qk_eps=1e-5), tiny_queries, 1.0),
    "text-norm eps 1e-6": (replace(PUBLISHED, text_eps=1e-6), dict, 1e-4),
    "block norm eps 1e-5": (replace(PUBLISHED, block_eps=1e-5), tiny_streams, 1.0),
    "final norm eps 1e-5": (replace(PUBLISHED, final_eps=1e-5), tiny_streams, 1.0),
    "final norm shift first": (replace(PUBLISHED, final_scale_first=False), dict, 1.0),
    "modulation scale first": (replace(PUBLISHED, modulation=("scale", "shift", "gate")), dict, 1.0),
    "modulation gate first": (replace(PUBLISHED, modulation=("gate", "shift", "scale")), dict, 1.0),
    "modulation without SiLU": (replace(PUBLISHED, modulation_silu=False), dict, 1.0),
    "time fed 0 to 1": (replace(PUBLISHED, time_scale=1.0), dict, 1.0),
    "sines first": (replace(PUBLISHED, cosine_first=False), dict, 1.0),
    "half-split rotation": (replace(PUBLISHED, pairs_are_neighbours=False), dict, 1.0),
    "odd sizes one off": (replace(PUBLISHED, odd_extra_on_negative_side=False), dict, 1.0),
    "text from position 0": (replace(PUBLISHED, text_starts_at_larger_half=False), dict, 1.0),
    "text spaced by linspace": (replace(PUBLISHED, text_linspace=True), dict, 1.0),
    "heads before q, k, v": (replace(PUBLISHED, qkv_before_heads=False), dict, 1.0),
    "w3 as the gate": (replace(PUBLISHED, w1_is_gate=False), dict, 1.0),
    "one norm over all layers": (replace(PUBLISHED, per_layer_text_norm=False), dict, 1.0),
    "padding seen": (replace(PUBLISHED, mask_padding=False), dict, 1.0),
    "scale of the whole width": (replace(PUBLISHED, attention_scale_of_head=False), dict, 1.0),
}


@pytest.mark.parametrize("name", MISTAKES)
@torch.no_grad()
def test_mistakes_are_noticed(weights: dict[str, Array], name: str) -> None:
    """The product agrees with the published behaviour and not with the mistake, on the same inputs."""
    wrong, change, text_scale = MISTAKES[name]
    changed = {key: value.astype(np.float32).astype(np.float64) for key, value in change(weights).items()}
    grid = (3, 2)
    x, text = inputs(grid, 4)
    text = text * text_scale
    keep = [True, True, True, False]
    got = build(changed)(x, torch.tensor([0.25]), text, grid, torch.tensor([keep]))[0]
    assert error(got, plain(changed, x[0], 0.25, text[0], grid, keep)) < TOLERANCE
    assert error(got, plain(changed, x[0], 0.25, text[0], grid, keep, wrong)) > NOTICED


def test_every_choice_has_a_mistake() -> None:
    tried = {
        field for wrong, _, _ in MISTAKES.values() for field, value in vars(wrong).items()
        if value != getattr(PUBLISHED, field)
    }  # fmt: skip
    assert tried == set(vars(PUBLISHED))


@pytest.mark.parametrize("grid", [(4, 6), (5, 3), (73, 2), (1, 1)])
def test_positions(grid: tuple[int, int]) -> None:
    """Image tokens first, row by row; then the text. 73 rows run from -37 to 35."""
    h, w = grid
    found = [tuple(map(float, row)) for row in rope_positions(h, w, 3).tolist()]
    assert found == plain_lens.image_positions(h, w) + plain_lens.text_positions(h, w, 3)
    assert (found[0][1], found[h * w - 1][1]) == {4: (-2, 1), 5: (-3, 1), 73: (-37, 35), 1: (-1, -1)}[h]


@pytest.mark.parametrize(("h", "w", "t0"), [(64, 64, 32), (90, 90, 45), (121, 68, 60), (130, 65, 65)])
def test_first_text_position(h: int, w: int, t0: int) -> None:
    assert rope_positions(h, w, 2)[h * w :].tolist() == [[t0] * 3, [t0 + 1] * 3]


def test_image_comes_first_in_the_mask() -> None:
    mask = attention_mask(torch.tensor([[True, False], [False, True]]), 3)
    assert mask[:, 0, 0].tolist() == [[True, True, True, True, False], [True, True, True, False, True]]


@torch.no_grad()
def test_order_of_the_words_matters(model: LensTransformer2DModel) -> None:
    """Text tokens carry positions: the same tokens in another order, or doubled by padding unmasked, differ."""
    x, text = inputs((2, 2), 5)
    t = torch.tensor([0.5])
    straight = model(x, t, text, (2, 2))[0].double().numpy()
    assert error(model(x, t, text.flip(1), (2, 2))[0], straight) > NOTICED
    assert error(model(x, t, torch.nn.functional.pad(text, (0, 0, 0, 0, 1, 0)), (2, 2))[0], straight) > NOTICED


def test_too_many_positions() -> None:
    rope_positions(64, 64, 4096 - 32)
    with pytest.raises(ValueError, match="4096 positions"):
        rope_positions(64, 64, 4096 - 31)


# ---------------------------------------------------------------------------------------------- the published network


def test_published_size() -> None:
    """1,264 tensors, 4,104,225,152 parameters, every name and shape as in the published files."""
    with torch.device("meta"):
        model = LensTransformer2DModel()
    found = {key: "x".join(map(str, tensor.shape)) for key, tensor in model.state_dict().items()}
    expected: dict[str, str] = {}
    for entry in PUBLISHED_SHAPES.replace("\n", ";").split(";"):
        if entry.strip():
            key, shape = entry.split()
            for b in range(48) if key.startswith("B.") else range(1):
                expected[key.replace("B.", f"transformer_blocks.{b}.", 1) if key.startswith("B.") else key] = shape
    assert found == expected
    assert len(found) == 1264
    assert sum(p.numel() for p in model.parameters()) == 4_104_225_152
    assert not list(model.buffers())


def test_config_is_the_published_one(tmp_path: Path) -> None:
    """The published config.json builds the network, and what we would write has the same keys and values."""
    with torch.device("meta"):
        model: Any = LensTransformer2DModel.from_config(PUBLISHED_CONFIG | {"_class_name": "LensTransformer2DModel"})
    assert sum(p.numel() for p in model.parameters()) == 4_104_225_152
    model.save_config(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written.pop("_class_name") == "LensTransformer2DModel"
    written.pop("_diffusers_version")
    assert written.pop("mlp_hidden_dim") is None  # ours: the width of small models' feed-forward layers
    assert written == PUBLISHED_CONFIG
    defaults = dict(LensTransformer2DModel(**CONFIG).config)
    assert set(PUBLISHED_CONFIG) <= set(defaults)


@torch.no_grad()
def test_saved_and_loaded(model: LensTransformer2DModel, tmp_path: Path) -> None:
    """diffusers' own save_pretrained and from_pretrained, in one file and in shards: the same weights and answers."""
    x, text = inputs((2, 3), 3)
    wanted = model(x, torch.tensor([0.5]), text, (2, 3))
    for name, shard in (("whole", "1GB"), ("shards", "40KB")):
        model.save_pretrained(tmp_path / name, max_shard_size=shard)
        loaded = LensTransformer2DModel.from_pretrained(tmp_path / name)
        assert isinstance(loaded, LensTransformer2DModel)
        assert loaded.params == model.params
        theirs = loaded.state_dict()
        assert theirs.keys() == model.state_dict().keys()
        assert all(torch.equal(theirs[key], value) for key, value in model.state_dict().items())
        # Weights in a mapped file lie at other addresses, for which some processors' libraries take other kernels.
        torch.testing.assert_close(loaded(x, torch.tensor([0.5]), text, (2, 3)), wanted, rtol=1e-5, atol=1e-5)
    assert (tmp_path / "shards" / "diffusion_pytorch_model.safetensors.index.json").exists()


def test_gradient_checkpointing_gives_the_same_gradients(weights: dict[str, Array]) -> None:
    gradients = []
    x, text = inputs((2, 3), 4)
    for checkpointing in (False, True):
        model = build(weights).train()
        if checkpointing:
            model.enable_gradient_checkpointing()
            assert model.is_gradient_checkpointing
        model(x, torch.tensor([0.6]), text, (2, 3)).square().mean().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        # Text leaves the last block unread, so some of its weights have no gradient; then in both runs.
        other = gradients[1][name]
        assert (gradient is None) == (other is None), name
        if gradient is not None and other is not None:
            torch.testing.assert_close(gradient, other, rtol=1e-6, atol=1e-8, msg=lambda m, name=name: f"{name}: {m}")
    assert sum(g is not None and bool(g.any()) for g in gradients[0].values()) >= 60


@pytest.mark.parametrize("keep", [None, [True, True, False, True], [False] * 4])
def test_explicit_attention_is_the_same(weights: dict[str, Array], keep: list[bool] | None) -> None:
    """The training path without a fused kernel: the same velocity, mask and gradient."""
    x, text = inputs((2, 3), 4)
    mask = None if keep is None else torch.tensor([keep])
    results: list[tuple[Tensor, Tensor | None]] = []
    for explicit in (False, True):
        model = build(weights)
        for module in model.modules():
            if isinstance(module, JointAttention):
                module.explicit = explicit
        out = model(x, torch.tensor([0.6]), text, (2, 3), mask)
        out.square().mean().backward()
        results.append((out.detach(), model.get_parameter("transformer_blocks.0.attn.img_qkv.weight").grad))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-6)
    assert error(results[1][0][0], plain(weights, x[0], float(torch.tensor(0.6)), text[0], (2, 3), keep)) < TOLERANCE


@torch.no_grad()
def test_taps_are_what_a_hook_sees_and_nothing_runs_behind_them(model: LensTransformer2DModel) -> None:
    seen: dict[int, Tensor] = {}

    def keep(n: int) -> Callable[[nn.Module, object, tuple[Tensor, ...]], None]:
        return lambda _module, _inputs, out: seen.update({n: out[0]})

    hooks = [block.register_forward_hook(keep(n)) for n, block in enumerate(model.transformer_blocks)]
    x, text = inputs((2, 3), 4)
    last = len(model.transformer_blocks) - 1
    try:
        model(x, torch.tensor([0.6]), text, (2, 3))
        whole = dict(seen)
        assert len(whole) == last + 1
        for taps in ((0,), (0, last), (last,)):
            seen.clear()
            found = model(x, torch.tensor([0.6]), text, (2, 3), taps=taps)
            assert torch.equal(found, torch.stack([whole[place] for place in taps])) and max(seen) == taps[-1]
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def test_bfloat16(model: LensTransformer2DModel, weights: dict[str, Array]) -> None:
    """In bfloat16 the answer stays bfloat16 and near; positions and sinusoids are computed in float32."""
    x, text = inputs((4, 4), 6)
    got = torch.nn.Module.to(build(weights), torch.bfloat16)(x, torch.tensor([0.9]), text, (4, 4))
    assert got.dtype == torch.bfloat16
    assert error(got[0].float(), plain(weights, x[0], float(torch.tensor(0.9)), text[0], (4, 4))) < 0.05


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gate_mlp": False}, "gate_mlp"),
        ({"axes_dims_rope": (2, 4, 4)}, r"\(2, 4, 4\).*12"),
        ({"axes_dims_rope": (3, 3, 6)}, "even"),
    ],
)
def test_impossible_configurations(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LensTransformer2DModel(**CONFIG | change)


def test_tokens_must_fill_the_grid(model: LensTransformer2DModel) -> None:
    x, text = inputs((2, 3), 1)
    with pytest.raises(ValueError, match="6 image tokens do not fill a latent of 2 x 4"):
        model(x, torch.tensor([0.5]), text, (2, 4))
