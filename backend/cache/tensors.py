"""Tensors kept on the disk across processes: encoded prompts, folded schedules. A `Store` of numbers, checked.

A file is named by the SHA-256 of everything that decides its numbers, and holds them in the dtype they were computed
in, so that a picture made from kept numbers is the same to the last bit. It does not hold the prompt: who reads the
folder learns how many prompts there were, not which.

Prompts are kept as the encoder leaves them, not as the transformer embeds them, which would take 7.5 times less space
at the published size: encoded once, a prompt serves Lens, Turbo and Base with every LoRA and packing, and opening the
encoder again for each of them costs more than the one product that is saved.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from backend.cache.store import DIGEST, Store, check_digest

_NAME = "features"


def cache_key(facts: Mapping[str, Any]) -> str:
    """SHA-256 of facts that JSON can hold, whatever their order."""
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def processor(device: torch.device) -> str:
    """What a matrix product's last bits depend on. The number of threads is left out: it rarely changes them, and a
    kept result that repeats the first picture's bits is the better answer where it does."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} {platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def read_rows(store: Store, key: str, width: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor | None:
    """(rows, *width) on the CPU, or None where nothing is kept. A damaged file is removed with a warning."""
    data = store.read(key)
    if data is None:
        return None
    try:
        check_digest(data)
        rows = load(data)[_NAME]
        if rows.dtype != dtype or rows.dim() != 1 + len(width) or tuple(rows.shape[1:]) != width:
            raise ValueError(f"it holds {list(rows.shape)} in {rows.dtype}")
    except (ValueError, KeyError, TypeError, SafetensorError) as error:
        store.drop(key, str(error) or type(error).__name__)
        return None
    return rows


def write_rows(store: Store, key: str, rows: torch.Tensor) -> None:
    """Keep a tensor of any device as it is."""
    plain = rows.detach().cpu().contiguous()
    # torch's own bytes are what safetensors writes after its header, so their hash can stand in the header.
    digest = hashlib.sha256(plain.view(torch.uint8).numpy().tobytes()).hexdigest()
    store.write(key, save({_NAME: plain}, {DIGEST: digest}))
