"""Names of the FLUX.2 autoencoder in Black Forest Labs' single file, and what diffusers calls them. No torch needed.

Source: facts 3.8; at the published size 251 of 251 keys map onto equal shapes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

# A full checkpoint keeps the autoencoder under one of these.
PREFIXES = ("", "first_stage_model.", "vae.")
_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}


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
    if name.startswith("encoder.quant_conv."):
        return name.removeprefix("encoder.")
    if name.startswith("decoder.post_quant_conv."):
        return name.removeprefix("decoder.")
    name = re.sub(r"^encoder\.down\.(\d+)\.block\.(\d+)\.", r"encoder.down_blocks.\1.resnets.\2.", name)
    name = re.sub(r"^encoder\.down\.(\d+)\.downsample\.conv\.", r"encoder.down_blocks.\1.downsamplers.0.conv.", name)
    if match := re.match(r"^decoder\.up\.(\d+)\.(block\.(\d+)|upsample\.conv)\.", name):
        target = f"resnets.{match[3]}" if match[3] is not None else "upsamplers.0.conv"
        name = f"decoder.up_blocks.{levels - 1 - int(match[1])}.{target}." + name[match.end() :]
    name = re.sub(r"\.mid\.block_([12])\.", lambda m: f".mid_block.resnets.{int(m[1]) - 1}.", name)
    if match := re.search(r"\.mid\.attn_1\.(norm|q|k|v|proj_out)\.", name):
        name = f"{name[: match.start()]}.mid_block.attentions.0.{_ATTENTION[match[1]]}.{name[match.end() :]}"
    name = name.replace(".nin_shortcut.", ".conv_shortcut.")
    return re.sub(r"^(encoder|decoder)\.norm_out\.", r"\1.conv_norm_out.", name)


def is_attention_linear(diffusers_name: str) -> bool:
    """True for the weights that BFL stores as 1x1 convolutions and diffusers as linears."""
    return bool(re.search(r"\.attentions\.0\.(to_q|to_k|to_v|to_out\.0)\.weight$", diffusers_name))
