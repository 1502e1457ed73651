"""Writes low-rank updates of a language model as GGUF: an adapter that llama.cpp applies in some contexts only.

llama.cpp computes W x + scale · up (down x). Here the scale is 1: whoever has another folds it into `up`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
import torch

from backend.checkpoints.gguf_keys import TEXT_ARCH
from backend.disk import replacing
from backend.errors import CheckpointError

HALF_MAX = 65504.0  # largest float16


def write_adapter_gguf(
    path: Path, updates: Mapping[str, tuple[torch.Tensor, torch.Tensor]], metadata: Mapping[str, str] | None = None
) -> None:
    """Write updates of a gpt-oss in float16.

    `updates`: GGUF name of a weight -> (down (…, R, I), up (…, O, R)), experts leading. Raises CheckpointError for a
    pair that does not fit together, is not finite or too large, FileError where it cannot be written.
    """
    if not updates:
        raise CheckpointError(f"{path}: not written: no updates")
    writer = gguf.GGUFWriter(None, TEXT_ARCH)
    writer.add_string("general.type", "adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 0.0)  # 0: llama.cpp does not divide by the rank
    for key, value in (metadata or {}).items():
        writer.add_string(key, value)
    for name, (down, up) in updates.items():
        if down.shape[:-2] != up.shape[:-2] or down.dim() < 2 or down.shape[-2] != up.shape[-1]:
            raise CheckpointError(f"{path}: not written: {name!r} has factors {list(down.shape)} and {list(up.shape)}")
        for suffix, factor in (("lora_a", down), ("lora_b", up)):
            array = factor.detach().to("cpu", torch.float32).numpy()
            if not np.isfinite(array).all() or np.abs(array).max(initial=0.0) > HALF_MAX:
                raise CheckpointError(f"{path}: not written: {name!r} has values that float16 does not hold")
            writer.add_tensor(f"{name}.{suffix}", np.ascontiguousarray(array.astype(np.float16)))
    with replacing(path) as temporary:
        try:
            writer.write_header_to_file(temporary)
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()
