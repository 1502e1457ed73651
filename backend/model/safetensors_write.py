"""Writes an autoencoder as one safetensors file that describes itself: how Lens-Nano's VAE is stored."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save

from backend.errors import CheckpointError
from backend.files import write_atomic
from backend.model.config_files import VAE_METADATA_KEY, vae_config_text
from backend.params import VAEParams


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
