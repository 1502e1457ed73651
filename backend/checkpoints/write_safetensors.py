"""Writes a safetensors file tensor by tensor: the library's own writer wants all of them in memory at once.

Layout: u64 length of the header, JSON header padded with blanks to 8 bytes, tensor bytes. Tensors of wider elements
come first, so that every one of them is aligned and readers can map the file. Source: the format's description.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save

from backend.checkpoints.config_files import VAE_METADATA_KEY, vae_config_text
from backend.disk import replacing, write_atomic
from backend.errors import CheckpointError
from backend.packing.storage import TensorGroup
from backend.params import VAEParams

_DTYPES = {
    torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float8_e4m3fn: "F8_E4M3",
    torch.int8: "I8", torch.uint8: "U8",
}  # fmt: skip


def stream_safetensors(
    path: Path,
    items: Sequence[TensorGroup],
    metadata: Mapping[str, str],
    on_tensor: Callable[[int], None] = lambda n: None,
) -> None:
    """Write `items` to `path`, replacing what is there in one step.

    `on_tensor` is told the bytes of each item written. Whatever it or `make` raises ends the writing; the unfinished
    file is removed then. Raises FileError where the file cannot be written.
    """
    header, starts = _layout(items, metadata)
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(header)
        for item in items:
            made = item.make()
            for spec, tensor in zip(item.specs, made, strict=True):
                assert (tensor.dtype, tuple(tensor.shape)) == (spec.dtype, spec.shape), (spec, tensor.shape)
                file.seek(len(header) + starts[spec.name])
                file.write(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
            on_tensor(sum(spec.nbytes for spec in item.specs))


def file_bytes(items: Sequence[TensorGroup], metadata: Mapping[str, str]) -> int:
    """Size of the finished file."""
    header, _ = _layout(items, metadata)
    return len(header) + sum(spec.nbytes for item in items for spec in item.specs)


def _layout(items: Sequence[TensorGroup], metadata: Mapping[str, str]) -> tuple[bytes, dict[str, int]]:
    """The header with its length in front, and where each tensor starts behind it."""
    specs = [spec for item in items for spec in item.specs]
    specs.sort(key=lambda spec: -spec.dtype.itemsize)
    table: dict[str, object] = {"__metadata__": dict(metadata)}
    starts: dict[str, int] = {}
    at = 0
    for spec in specs:
        assert spec.name not in starts, f"{spec.name} is written twice"
        offsets = [at, at + spec.nbytes]
        table[spec.name] = {"dtype": _DTYPES[spec.dtype], "shape": list(spec.shape), "data_offsets": offsets}
        starts[spec.name] = at
        at += spec.nbytes
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text, starts


def write_vae(
    path: Path | str,
    state: Mapping[str, torch.Tensor],
    params: VAEParams,
    *,
    dtype: torch.dtype = torch.bfloat16,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write diffusers-named tensors: convolutions in `dtype`, vectors (norms, biases, latent statistics) in float32.

    `params` go into the header, because the number of norm groups is not in the tensors. Raises CheckpointError for
    a value that is not finite or does not fit `dtype`, FileError where the file cannot be written.
    """
    stored: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        value = tensor.detach().to("cpu")
        if value.is_floating_point():
            value = value.to(dtype if value.ndim > 1 else torch.float32)
            if not torch.isfinite(value).all():
                raise CheckpointError(f"{path}: not written: {name!r} is not finite in {value.dtype}")
        stored[name] = value.contiguous()
    header = {"format": "pt", VAE_METADATA_KEY: vae_config_text(params), **(metadata or {})}
    write_atomic(Path(path), save(stored, metadata=header))
