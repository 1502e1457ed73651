"""config.json of each network -> its frozen parameters. Standard library only.

Keys that only say what Lens always is (gate_mlp, rms_norm, ...) are checked, not stored; keys that do not matter for
the forward pass are ignored; a key that is needed and absent is an error, never a default, because a checkpoint run
with the wrong YaRN or the wrong blocks makes pictures that are only slightly wrong.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, cast

from backend.errors import CheckpointError, shown
from backend.foreign import documents
from backend.foreign.documents import Unreadable
from backend.params import DiTParams, TemplateParams, TextEncoderParams, VAEParams

VAE_METADATA_KEY = "lens.config"  # vae/config.json inside a safetensors header: Lens-Nano's single VAE file
TRANSFORMER_METADATA_KEY = VAE_METADATA_KEY  # transformer/config.json in the header of what lens quantised
_LAYERS = 1_000
_LARGEST = 1 << 31  # of any number in a config: a vocabulary has 200,000 words
TEMPLATE_KEY = "lens_template"  # ours, in text_encoder/config.json: a conversation other than the published one


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises CheckpointError naming the file."""
    try:
        text = documents.read_text(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (OSError, Unreadable) as error:
        raise CheckpointError(f"{path}: unreadable ({documents.reason(error)})") from error
    return parse_json(text, str(path))


def parse_json(text: str, origin: str) -> dict[str, Any]:
    """A JSON object from text. Raises CheckpointError naming `origin`."""
    try:
        table = documents.parse_json(text)
    except Unreadable as error:
        raise CheckpointError(f"{origin}: unreadable ({error})") from error
    if not isinstance(table, dict):
        raise CheckpointError(f"{origin}: not a JSON object")
    return table


def transformer_params(config: Mapping[str, Any], origin: str) -> DiTParams:
    """From transformer/config.json. `mlp_hidden_dim` is ours and optional."""
    kind = config.get("_class_name", "LensTransformer2DModel")
    if kind != "LensTransformer2DModel":
        raise CheckpointError(f"{origin}: _class_name is {kind!r}, expected 'LensTransformer2DModel'")
    for key in ("gate_mlp", "rms_norm", "multi_layer_encoder_feature"):
        if config.get(key, True) is not True:
            raise CheckpointError(f"{origin}: {key} is {config[key]!r}; Lens has it true, and so has this code")
    values: dict[str, Any] = {}
    for field in fields(DiTParams):
        value = _needed(config, field.name, origin, optional=field.name == "mlp_hidden_dim")
        if field.name in ("axes_dims_rope", "selected_layer_index"):
            values[field.name] = tuple(_integer(part, field.name, origin) for part in _list(value, field.name, origin))
        elif value is not None:
            values[field.name] = _integer(value, field.name, origin)
    return DiTParams(**values)


def text_encoder_params(config: Mapping[str, Any], origin: str) -> TextEncoderParams:
    """From text_encoder/config.json, with `rope_parameters` (transformers 5) or `rope_scaling` (4)."""
    kind = config.get("model_type", "gpt_oss")
    if kind != "gpt_oss":
        raise CheckpointError(f"{origin}: model_type is {kind!r}, expected 'gpt_oss'")
    rope = config.get("rope_parameters") or config.get("rope_scaling")
    if not isinstance(rope, dict) or rope.get("rope_type", rope.get("type")) != "yarn":
        raise CheckpointError(f"{origin}: neither rope_parameters nor rope_scaling states YaRN, which gpt-oss needs")
    integers = (
        "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
        "intermediate_size", "num_local_experts", "sliding_window",
    )  # fmt: skip
    values: dict[str, Any] = {name: _integer(_needed(config, name, origin), name, origin) for name in integers}
    used = config.get("num_experts_per_tok", config.get("experts_per_token"))
    values["num_experts_per_tok"] = _integer(used, "num_experts_per_tok", origin)
    values["rms_norm_eps"] = _number(_needed(config, "rms_norm_eps", origin), "rms_norm_eps", origin)
    values["swiglu_limit"] = _number(config.get("swiglu_limit", 7.0), "swiglu_limit", origin)
    theta = rope.get("rope_theta", config.get("rope_theta"))
    values["rope_theta"] = _number(theta, "rope_theta", origin)
    values["rope_factor"] = _number(rope.get("factor"), "factor", origin)
    context = rope.get("original_max_position_embeddings", config.get("initial_context_length"))
    values["rope_original_context"] = _integer(context, "original_max_position_embeddings", origin)
    values["rope_beta_fast"] = _number(rope.get("beta_fast", 32.0), "beta_fast", origin)
    values["rope_beta_slow"] = _number(rope.get("beta_slow", 1.0), "beta_slow", origin)
    # transformers rounds where nothing is said; the published file says false.
    values["rope_truncate"] = bool(rope.get("truncate", True))
    check_layers(values["num_hidden_layers"], origin)
    layers = config.get("layer_types")
    expected = ["full_attention" if i % 2 else "sliding_attention" for i in range(values["num_hidden_layers"])]
    if layers is not None and layers != expected:
        raise CheckpointError(f"{origin}: layer_types do not alternate sliding_attention, full_attention")
    template = config.get(TEMPLATE_KEY)
    if template is not None:
        values["template"] = template_params(template, origin)
    return TextEncoderParams(**values)


def vae_params(config: Mapping[str, Any], origin: str) -> VAEParams:
    """From vae/config.json; `force_upcast`, `batch_norm_momentum` and the like do not touch inference."""
    kind = config.get("_class_name", "AutoencoderKLFlux2")
    if kind != "AutoencoderKLFlux2":
        raise CheckpointError(f"{origin}: _class_name is {kind!r}, expected 'AutoencoderKLFlux2'")
    published = VAEParams()
    values: dict[str, Any] = {}
    for field in fields(VAEParams):
        value = config.get(field.name, getattr(published, field.name))
        if field.name == "block_out_channels":
            value = _list(_needed(config, field.name, origin), field.name, origin)
            values[field.name] = tuple(_integer(part, field.name, origin, least=1) for part in value)
            if not values[field.name]:
                raise CheckpointError(f"{origin}: {field.name} is empty")
        elif field.name == "mid_block_add_attention":
            values[field.name] = bool(value)
        elif field.name == "batch_norm_eps":
            values[field.name] = _number(value, field.name, origin)
        else:
            values[field.name] = _integer(value, field.name, origin)
    return VAEParams(**values)


def vae_config_text(params: VAEParams) -> str:
    """The JSON that `vae_params` reads back; for VAE_METADATA_KEY."""
    return json.dumps({"_class_name": "AutoencoderKLFlux2", **asdict(params)}, sort_keys=True)


def _needed(config: Mapping[str, Any], key: str, origin: str, *, optional: bool = False) -> Any:
    if key not in config and not optional:
        raise CheckpointError(f"{origin}: {key} is missing")
    return config.get(key)


def _list(value: Any, key: str, origin: str) -> list[Any]:
    if not isinstance(value, list):
        raise CheckpointError(f"{origin}: {key} is {value!r}, expected a list")
    return value


def template_params(template: Any, origin: str) -> TemplateParams:
    """A conversation's parts as a file states them. Raises CheckpointError."""
    if not isinstance(template, dict):
        raise CheckpointError(f"{origin}: {TEMPLATE_KEY} is no table")
    known = {field.name: type(field.default) for field in fields(TemplateParams)}
    for key, value in cast("dict[str, Any]", template).items():
        if key not in known:
            raise CheckpointError(f"{origin}: {TEMPLATE_KEY} has the unknown key {shown(key)}")
        if type(value) is not known[key] or (isinstance(value, int) and not 0 <= value <= _LARGEST):
            raise CheckpointError(f"{origin}: {TEMPLATE_KEY}.{key} is {shown(value)}")
    return TemplateParams(**template)


def check_layers(layers: int, origin: str) -> None:
    """Raises CheckpointError for more layers than any network has: names are made for each of them."""
    if layers > _LAYERS:
        raise CheckpointError(f"{origin}: {layers:,} layers; at most {_LAYERS} are read")


def _integer(value: Any, key: str, origin: str, *, least: int = 0) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= _LARGEST:
        said = shown(value) if isinstance(value, str) else str(value)[:40]
        raise CheckpointError(f"{origin}: {key} is {said}, expected a whole number of {least} or more")
    return value


def _number(value: Any, key: str, origin: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise CheckpointError(f"{origin}: {key} is {value!r}, expected a number")
    return float(value)
