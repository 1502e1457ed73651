"""What model a file holds, told from tensor names and shapes alone. Standard library only, no tensor data.

What cannot be told: Lens, Lens-Turbo and Lens-Base have the same tensors, so a name, a sidecar or the person decides
(`backend.checkpoints.resolve`). The axes of the rotary embedding and the encoder blocks that are read are not in the
tensors either; the published values are taken where every other number is the published one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from backend.errors import CheckpointError
from backend.params import DiTParams, TextEncoderParams, VAEParams

TRANSFORMER_PREFIXES = ("", "model.diffusion_model.", "net.", "diffusion_model.", "transformer.")
TEXT_PREFIXES = ("model.", "", "text_encoder.model.", "text_encoders.gpt_oss.transformer.model.")

# (what it is, a part of a tensor name that only this has); first match wins. Used for error messages alone.
_FOREIGN = (
    ("a LoRA, not a full model", (".lora_A.", ".lora_B.", "lora_unet_", ".lora_down.", "lokr_w1", "hada_w1")),
    ("a FLUX model", ("double_blocks.", "single_blocks.", "single_transformer_blocks.")),
    ("a Stable Diffusion model", ("input_blocks.", "joint_blocks.", "down_blocks.0.attentions.")),
    ("a Qwen-Image model", ("img_mlp.net.", "attn.add_q_proj.")),
    ("a PixArt or Wan model", ("scale_shift_table", "blocks.0.cross_attn.")),
    ("a T5 text encoder", ("encoder.block.0.layer.", "enc.blk.0.")),
    ("a CLIP text encoder", ("text_model.encoder.layers.",)),
    ("a GPT-OSS text encoder in OpenAI's own layout", ("mlp.mlp1_weight",)),
)


def identify(names: Collection[str]) -> str:
    """A phrase for what the tensors are: a Lens part, a known other model, or "an unknown model"."""
    known = set(names)
    if is_transformer(known):
        return "a Lens transformer"
    if is_text_encoder(known):
        return "a GPT-OSS text encoder"
    for phrase, marks in _FOREIGN:
        if any(mark in name for name in known for mark in marks):
            return phrase
    if is_vae(known):
        return "a FLUX.2 autoencoder"
    if any("decoder.conv_in" in name for name in known):
        return "an autoencoder of another model"
    return "an unknown model"


def is_transformer(names: Collection[str]) -> bool:
    """Qwen-Image shares img_mod.1 and norm_added_q; only Lens has the fused img_qkv with img_mlp.w1."""
    return any(
        f"{prefix}transformer_blocks.0.attn.img_qkv.weight" in names
        and f"{prefix}transformer_blocks.0.img_mlp.w1.weight" in names
        for prefix in TRANSFORMER_PREFIXES
    )


def is_text_encoder(names: Collection[str]) -> bool:
    """GPT-OSS by its attention sinks: Hugging Face's, Comfy's or llama.cpp's names."""
    return "blk.0.attn_sinks.weight" in names or any(
        f"{prefix}layers.0.self_attn.sinks" in names for prefix in TEXT_PREFIXES
    )


def is_vae(names: Collection[str]) -> bool:
    """FLUX.2's autoencoder by its latent batch norm, which no other one has."""
    return any(name.endswith("bn.running_mean") and name.count(".") <= 2 for name in names) and any(
        name.endswith("decoder.conv_in.weight") for name in names
    )


def transformer_prefix(names: Collection[str]) -> str:
    """The prefix before `img_in.weight`; "" where there is none."""
    return next((p for p in TRANSFORMER_PREFIXES if f"{p}img_in.weight" in names), "")


def transformer_params_from_shapes(shapes: Mapping[str, tuple[int, ...]], origin: str) -> DiTParams:
    """Parameters of a transformer that comes without a config. `shapes`: public names, prefix removed.

    Raises CheckpointError where the shapes do not decide and are not the published ones.
    """
    try:
        dim, channels = shapes["img_in.weight"]
        head = shapes["transformer_blocks.0.attn.norm_q.weight"][0]
        mlp = shapes["transformer_blocks.0.img_mlp.w1.weight"][0]
        hidden = shapes["txt_norm.0.weight"][0]
        out = shapes["proj_out.weight"][0]
    except (KeyError, ValueError, IndexError) as error:
        raise CheckpointError(f"{origin}: no complete Lens transformer ({error} is missing or misshapen)") from None
    layers = 1 + max(int(n.split(".")[1]) for n in shapes if n.startswith("transformer_blocks."))
    taps = sum(name.startswith("txt_norm.") for name in shapes)
    published = DiTParams()
    if head != published.attention_head_dim or dim % head or out % published.patch_size**2:
        raise CheckpointError(f"{origin}: width {dim}, head {head}: only a config.json could describe this")
    if hidden != published.enc_hidden_dim or taps != len(published.selected_layer_index):
        raise CheckpointError(
            f"{origin}: which text-encoder blocks it reads ({taps} of width {hidden}) is not in its tensors",
            hint="put its config.json beside it",
        )
    params = DiTParams(
        in_channels=channels,
        out_channels=out // published.patch_size**2,
        num_layers=layers,
        num_attention_heads=dim // head,
    )
    return params if params.mlp_dim == mlp else DiTParams(**{**vars(params), "mlp_hidden_dim": mlp})


def text_params_from_shapes(shapes: Mapping[str, tuple[int, ...]], origin: str) -> TextEncoderParams:
    """The published gpt-oss-20b, if it is that; anything else needs its config.json. `shapes`: names end as public."""
    published = TextEncoderParams()
    rows = next((shape for name, shape in shapes.items() if name.endswith("embed_tokens.weight")), None)
    layers = sum(name.endswith("self_attn.sinks") for name in shapes)
    if rows == (published.vocab_size, published.hidden_size) and layers == published.num_hidden_layers:
        return published
    raise CheckpointError(
        f"{origin}: {layers} blocks with an embedding of {list(rows or ())} is not gpt-oss-20b",
        hint="put its config.json beside it",
    )


def vae_params_from_shapes(shapes: Mapping[str, tuple[int, ...]], origin: str) -> VAEParams:
    """Parameters of an autoencoder without a config. `shapes`: diffusers or BFL names, prefix removed.

    The number of norm groups is not in the shapes: 32, as published, where every width divides by it.
    """
    bfl = "encoder.down.0.block.0.conv1.weight" in shapes
    stem, inner = ("encoder.down.", ".block.") if bfl else ("encoder.down_blocks.", ".resnets.")
    channels: list[int] = []
    while (width := shapes.get(f"{stem}{len(channels)}{inner}0.conv1.weight")) is not None:
        channels.append(width[0])
    per_block = sum(name.startswith(f"{stem}0{inner}") and name.endswith("conv1.weight") for name in shapes)
    latent = shapes.get("decoder.conv_in.weight", (0, 0))[1]
    published = VAEParams()
    if not channels or any(width % published.norm_num_groups for width in channels):
        raise CheckpointError(
            f"{origin}: channels {channels}: the number of norm groups is not in the tensors",
            hint="put its config.json beside it",
        )
    return VAEParams(
        block_out_channels=tuple(channels),
        latent_channels=latent,
        layers_per_block=per_block,
        mid_block_add_attention=any(".mid.attn_1." in n or ".mid_block.attentions." in n for n in shapes),
    )
