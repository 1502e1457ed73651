"""Names of the FLUX.2 autoencoder in Black Forest Labs' single file, and what diffusers calls them. No torch needed.

Source: facts 3.8; at the published size 251 of 251 keys map onto equal shapes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

# A full checkpoint keeps the autoencoder under one of these.
PREFIXES = ("", "first_stage_model.", "vae.")
# (in Black Forest Labs' names, in diffusers'); all that match apply, in this order.
_RENAMES = tuple(
    (re.compile(theirs), ours)
    for theirs, ours in (
        (r"^encoder\.quant_conv\.", "quant_conv."),
        (r"^decoder\.post_quant_conv\.", "post_quant_conv."),
        (r"^encoder\.down\.(\d+)\.block\.(\d+)\.", r"encoder.down_blocks.\1.resnets.\2."),
        (r"^encoder\.down\.(\d+)\.downsample\.conv\.", r"encoder.down_blocks.\1.downsamplers.0.conv."),
        (r"^decoder\.up\.(\d+)\.block\.(\d+)\.", r"decoder.up_blocks.\1.resnets.\2."),
        (r"^decoder\.up\.(\d+)\.upsample\.conv\.", r"decoder.up_blocks.\1.upsamplers.0.conv."),
        (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
        (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
        (r"\.mid\.attn_1\.norm\.", ".mid_block.attentions.0.group_norm."),
        (r"\.mid\.attn_1\.([qkv])\.", r".mid_block.attentions.0.to_\1."),
        (r"\.mid\.attn_1\.proj_out\.", ".mid_block.attentions.0.to_out.0."),
        (r"\.nin_shortcut\.", ".conv_shortcut."),
        (r"^(encoder|decoder)\.norm_out\.", r"\1.conv_norm_out."),
    )
)


def prefix_of(names: Iterable[str]) -> str:
    """The prefix in front of `decoder.conv_in.weight`; "" where there is none."""
    known = set(names)
    return next((prefix for prefix in PREFIXES if f"{prefix}decoder.conv_in.weight" in known), "")


def is_bfl(names: Iterable[str]) -> bool:
    """True where the names (prefix removed) are Black Forest Labs'."""
    return any(name.startswith(("encoder.down.", "decoder.up.", "decoder.mid.")) for name in names)


def to_diffusers(name: str, levels: int) -> str:
    """One BFL name -> its diffusers name; unknown names come back unchanged and fail the strict check.

    `levels`: number of resolutions; BFL counts the decoder's from the finest, diffusers from the coarsest.
    Convolutions of the middle attention (O, I, 1, 1) become linears (O, I): see `is_attention_linear`.
    """
    name = re.sub(r"^decoder\.up\.(\d+)\.", lambda m: f"decoder.up.{levels - 1 - int(m[1])}.", name)
    for theirs, ours in _RENAMES:
        name = theirs.sub(ours, name)
    return name


def is_attention_linear(diffusers_name: str) -> bool:
    """True for the weights that BFL stores as 1x1 convolutions and diffusers as linears."""
    return bool(re.search(r"\.attentions\.0\.(to_q|to_k|to_v|to_out\.0)\.weight$", diffusers_name))
