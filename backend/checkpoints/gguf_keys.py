"""GGUF names and keys of both networks: which tensor is called what, and how parameters travel in the header.

Standard library only. The text encoder follows llama.cpp's architecture `gpt-oss`, so one file serves llama.cpp and
torch. The transformer has no llama.cpp architecture; ours is called `lens` and keeps the public tensor names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from backend.errors import CheckpointError
from backend.params import DiTParams, TemplateParams, TextEncoderParams

TRANSFORMER_ARCH = "lens"
TEXT_ARCH = "gpt-oss"
HF_TOKENIZER_KEY = "tokenizer.huggingface.json"  # the whole tokenizer.json; a key of the GGUF specification

# (GGUF name, public name) of the tensors that are stored unchanged.
_TEXT_TOP = (
    ("token_embd.weight", "model.embed_tokens.weight"),
    ("output_norm.weight", "model.norm.weight"),
    ("output.weight", "lm_head.weight"),
)
_TEXT_LAYER = (
    ("attn_norm.weight", "input_layernorm.weight"),
    ("post_attention_norm.weight", "post_attention_layernorm.weight"),
    ("attn_q.weight", "self_attn.q_proj.weight"),
    ("attn_q.bias", "self_attn.q_proj.bias"),
    ("attn_k.weight", "self_attn.k_proj.weight"),
    ("attn_k.bias", "self_attn.k_proj.bias"),
    ("attn_v.weight", "self_attn.v_proj.weight"),
    ("attn_v.bias", "self_attn.v_proj.bias"),
    ("attn_output.weight", "self_attn.o_proj.weight"),
    ("attn_output.bias", "self_attn.o_proj.bias"),
    ("attn_sinks.weight", "self_attn.sinks"),
    ("ffn_gate_inp.weight", "mlp.router.weight"),
    ("ffn_gate_inp.bias", "mlp.router.bias"),
    ("ffn_down_exps.bias", "mlp.experts.down_proj_bias"),
)
# Experts are stored as (expert, output, input), with gate and up apart; the public form is (expert, input, output)
# with gate in the even and up in the odd outputs. Both ways: write_gguf.py and formats.py.
EXPERT_SUFFIXES = (
    "ffn_gate_exps.weight",
    "ffn_up_exps.weight",
    "ffn_down_exps.weight",
    "ffn_gate_exps.bias",
    "ffn_up_exps.bias",
)


def text_names(layers: int) -> dict[str, str]:
    """GGUF name -> public name of the tensors that are stored unchanged (all but the experts' projections)."""
    names = dict(_TEXT_TOP)
    for index in range(layers):
        for theirs, ours in _TEXT_LAYER:
            names[f"blk.{index}.{theirs}"] = f"model.layers.{index}.{ours}"
    return names


def transformer_header(params: DiTParams) -> dict[str, int | list[int]]:
    """`lens.<field>` for every field that is not None."""
    header: dict[str, int | list[int]] = {}
    for field in fields(params):
        value = getattr(params, field.name)
        if value is not None:
            header[f"{TRANSFORMER_ARCH}.{field.name}"] = list(value) if isinstance(value, tuple) else int(value)
    return header


def transformer_params(metadata: Mapping[str, Any], origin: str) -> DiTParams | None:
    """The parameters a `lens` GGUF states; None where the file states none (files of other converters).

    Raises CheckpointError, naming `origin`, where only some of them are there.
    """
    stated: dict[str, Any] = {}
    for field in fields(DiTParams):
        value = metadata.get(f"{TRANSFORMER_ARCH}.{field.name}")
        if value is not None:
            told = value if isinstance(value, list) else [value]
            whole = [part for part in told if type(part) is int and abs(part) <= 1 << 31]
            if len(whole) != len(told):
                raise CheckpointError(f"{origin}: {TRANSFORMER_ARCH}.{field.name} is no whole number")
            stated[field.name] = tuple(whole) if isinstance(value, list) else whole[0]
    if not stated:
        return None
    absent = [field.name for field in fields(DiTParams) if field.name not in stated and field.name != "mlp_hidden_dim"]
    if absent:
        raise CheckpointError(f"{origin}: the header states no {TRANSFORMER_ARCH}.{absent[0]}")
    return DiTParams(**stated)


# (key under "gpt-oss.", field of TextEncoderParams); llama.cpp reads all of these.
_TEXT_KEYS = (
    ("embedding_length", "hidden_size"),
    ("block_count", "num_hidden_layers"),
    ("attention.head_count", "num_attention_heads"),
    ("attention.head_count_kv", "num_key_value_heads"),
    ("attention.key_length", "head_dim"),
    ("expert_feed_forward_length", "intermediate_size"),
    ("expert_count", "num_local_experts"),
    ("expert_used_count", "num_experts_per_tok"),
    ("attention.sliding_window", "sliding_window"),
    ("attention.layer_norm_rms_epsilon", "rms_norm_eps"),
    ("rope.freq_base", "rope_theta"),
    ("rope.scaling.factor", "rope_factor"),
    ("rope.scaling.original_context_length", "rope_original_context"),
)
# llama.cpp has defaults for these, and the published gpt-oss files leave them out.
_TEXT_OPTIONAL = (
    ("rope.scaling.yarn_beta_fast", "rope_beta_fast"),
    ("rope.scaling.yarn_beta_slow", "rope_beta_slow"),
)
_TRUNCATE_KEY = "lens.rope_truncate"  # ours: llama.cpp always rounds, torch must know which network was trained
_TEMPLATE_KEY = "lens.template."


def text_header(params: TextEncoderParams) -> dict[str, int | float | str | bool]:
    """Everything llama.cpp needs to build the graph, and what torch needs beyond that (`lens.*`)."""
    header: dict[str, int | float | str | bool] = {}
    for key, name in (*_TEXT_KEYS, *_TEXT_OPTIONAL):
        header[f"{TEXT_ARCH}.{key}"] = getattr(params, name)
    header |= {
        f"{TEXT_ARCH}.context_length": int(params.rope_original_context * params.rope_factor),
        f"{TEXT_ARCH}.feed_forward_length": params.intermediate_size,
        f"{TEXT_ARCH}.attention.value_length": params.head_dim,
        f"{TEXT_ARCH}.rope.dimension_count": params.head_dim,
        f"{TEXT_ARCH}.rope.scaling.type": "yarn",
        f"{TEXT_ARCH}.vocab_size": params.vocab_size,
        _TRUNCATE_KEY: params.rope_truncate,
    }
    for field in fields(params.template):
        header[_TEMPLATE_KEY + field.name] = getattr(params.template, field.name)
    return header


def text_params(metadata: Mapping[str, Any], vocab_size: int, origin: str) -> TextEncoderParams:
    """The parameters of a gpt-oss GGUF; `vocab_size` is the number of rows of its token embedding.

    Without `lens.*` keys (the published gpt-oss conversions) the template is the published one and the YaRN range
    is not rounded, which is what that network was trained with. Raises CheckpointError naming a missing key.
    """
    architecture = metadata.get("general.architecture")
    if architecture != TEXT_ARCH:
        raise CheckpointError(f"{origin}: GGUF architecture {architecture!r}, expected {TEXT_ARCH!r}")
    if metadata.get(f"{TEXT_ARCH}.rope.scaling.type") != "yarn":
        raise CheckpointError(f"{origin}: the header states no YaRN rope scaling, which gpt-oss needs")
    values: dict[str, Any] = {"vocab_size": vocab_size}
    for key, name in _TEXT_KEYS:
        value = metadata.get(f"{TEXT_ARCH}.{key}")
        if value is None:
            raise CheckpointError(f"{origin}: the header states no {TEXT_ARCH}.{key}")
        values[name] = _as_stored(value)
    for key, name in _TEXT_OPTIONAL:
        value = metadata.get(f"{TEXT_ARCH}.{key}")
        if value is not None:
            values[name] = _as_stored(value)
    values["rope_truncate"] = bool(metadata.get(_TRUNCATE_KEY, False))
    if metadata.get(_TEMPLATE_KEY + "prefix_tokens") is not None:
        # The writer library leaves out empty strings, so an absent text of a stated template is the empty one.
        template = {
            field.name: metadata.get(_TEMPLATE_KEY + field.name, "" if field.type == "str" else None)
            for field in fields(TemplateParams)
        }
        values["template"] = TemplateParams(**template)
    return TextEncoderParams(**values)


def _as_stored(value: Any) -> int | float:
    """GGUF floats are 32-bit: 1e-5 comes back as 9.99999974e-06. The shortest decimal restores what was written."""
    return float(f"{value:.6g}") if isinstance(value, float) else int(value)
