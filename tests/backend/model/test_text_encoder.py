"""Our GPT-OSS against the one in `transformers` (eager attention, float32), block by block, and YaRN's numbers.

Why it can be trusted: the reference is the code the published checkpoints were made for, given the same random
weights under the same names; sinks, biases and norms are random too, and the residual stream is read by hooks right
after each block, so that the final norm cannot hide in it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GptOssConfig, GptOssForCausalLM

from backend.model.text_encoder import LensGptOssEncoder, yarn_frequencies
from backend.params import TextEncoderParams

TINY = TextEncoderParams(
    vocab_size=40,
    hidden_size=24,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    intermediate_size=20,
    num_local_experts=4,
    num_experts_per_tok=2,
    sliding_window=5,
    swiglu_limit=1.5,  # low enough to clamp
    rope_original_context=64,
)
VARIANTS = {
    "few experts": TINY,
    "many experts": replace(TINY, num_local_experts=9),
    "one key head, rounded ramp": replace(TINY, num_key_value_heads=1, rope_truncate=True),
    "no sharing of heads": replace(TINY, num_key_value_heads=4, num_local_experts=5),
    "head size of another power": replace(TINY, head_dim=8, rope_truncate=True, num_experts_per_tok=1),
}
TOLERANCE = 1e-5


def reference(params: TextEncoderParams) -> GptOssForCausalLM:
    config = GptOssConfig(
        vocab_size=params.vocab_size,
        hidden_size=params.hidden_size,
        num_hidden_layers=params.num_hidden_layers,
        num_attention_heads=params.num_attention_heads,
        num_key_value_heads=params.num_key_value_heads,
        head_dim=params.head_dim,
        intermediate_size=params.intermediate_size,
        num_local_experts=params.num_local_experts,
        num_experts_per_tok=params.num_experts_per_tok,
        sliding_window=params.sliding_window,
        swiglu_limit=params.swiglu_limit,
        rms_norm_eps=params.rms_norm_eps,
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": params.rope_theta,
            "factor": params.rope_factor,
            "original_max_position_embeddings": params.rope_original_context,
            "beta_fast": params.rope_beta_fast,
            "beta_slow": params.rope_beta_slow,
            "truncate": params.rope_truncate,
        },
        max_position_embeddings=int(params.rope_original_context * params.rope_factor),
        attn_implementation="eager",  # pyright: ignore[reportCallIssue]
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
        tie_word_embeddings=False,
    )
    model = GptOssForCausalLM(config).float().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "norm" in name:
                p.copy_(1 + 0.3 * torch.randn(p.shape, generator=generator))
            elif "embed" in name or "sinks" in name:
                p.copy_(torch.randn(p.shape, generator=generator))
            else:
                p.copy_(0.4 * torch.randn(p.shape, generator=generator))
    return model


def run_reference(model: GptOssForCausalLM, ids: Tensor, mask: Tensor | None) -> tuple[list[Tensor], Tensor]:
    """The residual stream after every block, and logits."""
    states: list[Tensor] = []

    def note(_module: object, _inputs: object, output: object) -> None:
        states.append(output[0] if isinstance(output, tuple) else output)  # pyright: ignore[reportArgumentType]

    hooks = [layer.register_forward_hook(note) for layer in model.model.layers]
    with torch.no_grad():
        logits = model(ids, attention_mask=None if mask is None else mask.long(), use_cache=False).logits
    for hook in hooks:
        hook.remove()
    return states, logits


def ours(params: TextEncoderParams, model: GptOssForCausalLM, *, head: bool = True) -> LensGptOssEncoder:
    encoder = LensGptOssEncoder(params, head=head)
    state = {k: v for k, v in model.state_dict().items() if head or not k.startswith("lm_head")}
    encoder.load_state_dict(state, strict=True)
    return encoder.eval()


def error(got: Tensor, wanted: Tensor) -> float:
    return float((got - wanted).abs().max() / wanted.abs().max())


@pytest.fixture(scope="module", params=VARIANTS)
def pair(request: pytest.FixtureRequest) -> tuple[TextEncoderParams, GptOssForCausalLM]:
    return VARIANTS[request.param], reference(VARIANTS[request.param])


@torch.no_grad()
def test_every_block_and_the_logits(pair: tuple[TextEncoderParams, GptOssForCausalLM]) -> None:
    """Two sentences of 3 sliding windows each."""
    params, model = pair
    ids = torch.randint(0, params.vocab_size, (2, 16), generator=torch.Generator().manual_seed(1))
    wanted, logits = run_reference(model, ids, None)
    encoder = ours(params, model)
    got = encoder.hidden_states(ids, range(params.num_hidden_layers))
    assert len(got) == len(wanted) == 4
    for mine, theirs in zip(got, wanted, strict=True):
        assert error(mine, theirs) < TOLERANCE
    assert error(encoder.logits(ids), logits) < TOLERANCE
    # What the reference calls the last hidden state is normed; ours must not be.
    assert error(model.model.norm(got[-1]), got[-1]) > 0.1


@torch.no_grad()
def test_right_padding(pair: tuple[TextEncoderParams, GptOssForCausalLM]) -> None:
    """Real tokens do not see the padding, with or without saying where it is; padded rows stay finite."""
    params, model = pair
    ids = torch.randint(0, params.vocab_size, (2, 14), generator=torch.Generator().manual_seed(2))
    real = torch.tensor([[True] * 14, [True] * 4 + [False] * 10])
    wanted, _ = run_reference(model, ids, real)
    encoder = ours(params, model)
    alone = encoder.hidden_states(ids[1:, :4], (3,))[0]
    for mask in (real, None):
        got = encoder.hidden_states(ids, (0, 3), mask)
        for mine, theirs in zip(got, (wanted[0], wanted[3]), strict=True):
            assert error(mine[real], theirs[real]) < TOLERANCE
        assert all(torch.isfinite(state).all() for state in got)
        assert error(got[1][1:, :4], alone) < TOLERANCE


@torch.no_grad()
def test_routed_and_dense_experts_agree() -> None:
    """The path for few experts and the path for many, on the same weights."""
    params = VARIANTS["many experts"]
    encoder = ours(params, reference(params))
    mlp: Any = encoder.model.layers[1].mlp
    x = torch.randn(7, params.hidden_size, generator=torch.Generator().manual_seed(3))
    weights, index = mlp.router.choose(x)
    torch.testing.assert_close(weights.sum(-1), torch.ones(7))
    share = torch.zeros(7, 9).scatter(1, index, weights)
    torch.testing.assert_close(mlp.experts.mixed(x, share), mlp(x[None])[0], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_window_sinks_and_clamp_matter() -> None:
    """The inputs of the parity test reach what they are meant to reach: each part, switched off, shows."""
    params = TINY
    model = reference(params)
    ids = torch.randint(0, params.vocab_size, (1, 16), generator=torch.Generator().manual_seed(1))
    right = ours(params, model).hidden_states(ids, (3,))[0]
    for change in (
        {"sliding_window": 6},
        {"sliding_window": 4},
        {"swiglu_limit": 7.0},
        {"rope_truncate": True},
        {"rope_factor": 1.0},
        {"rms_norm_eps": 1e-2},
        {"num_experts_per_tok": 3},
    ):
        assert error(ours(replace(params, **change), model).hidden_states(ids, (3,))[0], right) > 1e-3, change
    without = ours(params, model)
    layers: Any = without.model.layers
    for layer in layers:
        layer.self_attn.sinks.fill_(-100.0)
    assert error(without.hidden_states(ids, (3,))[0], right) > 1e-3


@torch.no_grad()
def test_only_the_blocks_asked_for_run() -> None:
    encoder = ours(TINY, reference(TINY), head=False)
    ran: list[int] = []
    for i, layer in enumerate(encoder.model.layers):
        layer.register_forward_hook(lambda *_, i=i: ran.append(i))
    ids = torch.arange(6)[None]
    one, two = encoder.hidden_states(ids, (0, 2))
    assert ran == [0, 1, 2]
    whole = encoder.hidden_states(ids, (0, 1, 2, 3))
    assert torch.equal(one, whole[0]) and torch.equal(two, whole[2])
    with pytest.raises(ValueError, match="without a language-model head"):
        encoder.logits(ids)


@torch.no_grad()
def test_bfloat16_stays_near() -> None:
    model = reference(TINY)
    ids = torch.arange(12)[None]
    exact = ours(TINY, model).hidden_states(ids, (0,))[0]
    rounded = ours(TINY, model).to(torch.bfloat16).hidden_states(ids, (0,))[0]
    assert rounded.dtype == torch.bfloat16
    assert float((rounded.float() - exact).norm() / exact.norm()) < 0.03


def test_heads_must_share_evenly() -> None:
    with pytest.raises(ValueError, match="4 heads cannot share 3"):
        LensGptOssEncoder(replace(TINY, num_key_value_heads=3))


# ------------------------------------------------------------------------------------------------- the published model


def test_yarn_of_the_published_model() -> None:
    """Correction range 8.0928 ... 17.3980, not rounded; pairs 0-8 keep their frequency, 18-31 are divided by 32."""
    frequency, factor = yarn_frequencies(TextEncoderParams())
    assert factor == pytest.approx(1.3465736, abs=1e-7)
    table = {
        9: 0.03170570, 10: 0.01933500, 12: 0.006794959, 16: 0.000456484, 17: 0.000129319, 18: 3.83088e-5,
    }  # fmt: skip
    for index, value in table.items():
        assert float(frequency[index]) == pytest.approx(value, rel=5e-6)  # six digits are published
    for index in range(32):
        plain = 150000.0 ** (-2 * index / 64)
        if index <= 8 or index >= 18:
            wanted = plain if index <= 8 else plain / 32
        else:
            ramp = (index - 8.092779) / (17.398025 - 8.092779)
            wanted = plain * (1 - ramp) + plain / 32 * ramp
        assert float(frequency[index]) == pytest.approx(wanted, rel=2e-6)


def test_yarn_with_the_range_rounded() -> None:
    """As llama.cpp has it: 8 ... 18, which moves pairs 9 to 17 by -0.3 % to +76 %."""
    exact, _ = yarn_frequencies(TextEncoderParams())
    rounded, factor = yarn_frequencies(TextEncoderParams(rope_truncate=True))
    assert factor == pytest.approx(1.3465736, abs=1e-7)
    ratio = (rounded / exact).tolist()
    assert [i for i, r in enumerate(ratio) if abs(r - 1) > 1e-6] == list(range(9, 18))
    assert min(ratio) == pytest.approx(1 - 0.003, abs=5e-4)
    assert max(ratio) == pytest.approx(1.76, abs=5e-3)
    assert float(((rounded - exact).abs() * 512).max()) == pytest.approx(0.11, abs=5e-3)  # radians at position 512
    for index in range(8, 19):
        plain, ramp = 150000.0 ** (-2 * index / 64), (index - 8) / 10
        assert float(rounded[index]) == pytest.approx(plain * (1 - ramp) + plain / 32 * ramp, rel=2e-6)


def test_published_shapes() -> None:
    """Names and shapes of the dequantised checkpoint, on the meta device: 459 tensors as stored, experts whole here."""
    with torch.device("meta"):
        encoder = LensGptOssEncoder(TextEncoderParams(), head=True)
    found = {k: tuple(v.shape) for k, v in encoder.state_dict().items()}
    layer = {
        "self_attn.q_proj.weight": (4096, 2880), "self_attn.q_proj.bias": (4096,),
        "self_attn.k_proj.weight": (512, 2880), "self_attn.k_proj.bias": (512,),
        "self_attn.v_proj.weight": (512, 2880), "self_attn.v_proj.bias": (512,),
        "self_attn.o_proj.weight": (2880, 4096), "self_attn.o_proj.bias": (2880,),
        "self_attn.sinks": (64,),
        "input_layernorm.weight": (2880,), "post_attention_layernorm.weight": (2880,),
        "mlp.router.weight": (32, 2880), "mlp.router.bias": (32,),
        "mlp.experts.gate_up_proj": (32, 2880, 5760), "mlp.experts.gate_up_proj_bias": (32, 5760),
        "mlp.experts.down_proj": (32, 2880, 2880), "mlp.experts.down_proj_bias": (32, 2880),
    }  # fmt: skip
    expected = {f"model.layers.{i}.{k}": v for i in range(24) for k, v in layer.items()}
    expected |= {
        "model.embed_tokens.weight": (201088, 2880),
        "lm_head.weight": (201088, 2880),
        "model.norm.weight": (2880,),
    }
    assert found == expected
    # Stored, each of the two expert matrices is two tensors (blocks and scales): 459.
    assert len(found) + 2 * 24 == 459
    assert [block.window for block in encoder.model.layers] == [128, None] * 12
