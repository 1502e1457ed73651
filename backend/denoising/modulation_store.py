"""Folded schedules across processes: the modulation layers of a known schedule are never read again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import version

import torch

from backend.cache import tensors
from backend.cache.store import Store
from backend.checkpoints.formats import TensorTable
from backend.denoising.modulation import Folded, fold, table_width
from backend.lora import apply
from backend.params import DiTParams
from backend.types import LoraUse

# Raised whenever `backend.denoising.modulation` computes other numbers than before from the same weights.
CODE_VERSION = 1


def read_or_fold(
    table: TensorTable,
    params: DiTParams,
    sigmas: Sequence[float],
    dtype: torch.dtype,
    device: torch.device | str,
    loras: Sequence[LoraUse] = (),
    store: Store | None = None,
    weights_sha256: Callable[[], str] | None = None,
) -> Folded:
    """The modulation of a schedule, from `store` where it is kept there, else computed from `table` and then kept.

    `table` holds the LoRAs' part. `weights_sha256`: of its files, asked for only where there is a store; None: it has
    none, and nothing is kept.
    """
    if store is None or not store.limit or weights_sha256 is None:
        return fold(table, params, sigmas, dtype, device)
    key = tensors.cache_key(
        {
            "code": CODE_VERSION,
            "library": version("torch"),
            "processor": tensors.processor(torch.device(device)),
            "dtype": str(dtype),
            "weights": weights_sha256(),
            "loras": apply.fingerprint(loras),
            "sigmas": list(sigmas),
        }
    )
    rows = tensors.read_rows(store, key, (table_width(params),), dtype)
    if rows is not None and len(rows) == len(sigmas):
        return Folded(tuple(sigmas), rows.to(device), params.dim)
    made = fold(table, params, sigmas, dtype, device)
    tensors.write_rows(store, key, made.table_SW)
    return made
