"""The LoRAs that are part of a model, as those that a request names.

They are fused wherever the transformer's tensors are read (`backend.loading.open_transformer_table`), by inference and
training alike, so that a model of a base and an adapter is one model everywhere.
"""

from __future__ import annotations

import hashlib
import json

from backend.checkpoints.identity import files_sha256
from backend.checkpoints.resolve import ModelFiles
from backend.lora.names import lora_sha256
from backend.types import LoraMode, LoraUse


def own_loras(files: ModelFiles) -> tuple[LoraUse, ...]:
    """Those that act, at the strength that the model has them."""
    return tuple(
        LoraUse(path=str(one.path), sha256=lora_sha256(one.path), scale=one.strength, mode=LoraMode.fused)
        for one in files.adapters
        if one.strength
    )


def transformer_sha256(files: ModelFiles) -> str:
    """SHA-256 of all that decides the transformer's weights: its files', or with adapters of these and those."""
    alone, own = files_sha256(files.transformer), own_loras(files)
    if not own:
        return alone
    return hashlib.sha256(json.dumps([alone, *([use.sha256, use.scale] for use in own)]).encode()).hexdigest()
