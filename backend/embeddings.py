"""Encoded prompts, kept on the disk across processes: a known prompt never opens the language model again.

A file is named by the SHA-256 of everything that decides its numbers, and holds them in the dtype they were computed
in, so that a picture made from kept features is the same to the last bit. It does not hold the prompt: who reads the
folder learns how many prompts there were, not which.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from backend.caches import Store

_NAME, _DIGEST = "features", "sha256"


def cache_key(facts: Mapping[str, Any]) -> str:
    """SHA-256 of facts that JSON can hold, whatever their order."""
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def read_features(store: Store, key: str, width: tuple[int, int], dtype: torch.dtype) -> torch.Tensor | None:
    """(T, *width) on the CPU, or None where nothing is kept. A damaged file is removed with a warning."""
    data = store.read(key)
    if data is None:
        return None
    try:
        body = 8 + int.from_bytes(data[:8], "little")
        stated = json.loads(data[8:body])["__metadata__"][_DIGEST]
        if hashlib.sha256(data[body:]).hexdigest() != stated:
            raise ValueError("its checksum differs")
        features = load(data)[_NAME]
        if features.dtype != dtype or features.dim() != 3 or tuple(features.shape[1:]) != width:
            raise ValueError(f"it holds {list(features.shape)} in {features.dtype}")
    except (ValueError, KeyError, TypeError, SafetensorError) as error:
        store.drop(key, str(error) or type(error).__name__)
        return None
    return features


def write_features(store: Store, key: str, features_TLF: torch.Tensor) -> None:
    """Keep features of any device as they are."""
    plain = features_TLF.detach().cpu().contiguous()
    # torch's own bytes are what safetensors writes after its header, so their hash can stand in the header.
    digest = hashlib.sha256(plain.view(torch.uint8).numpy().tobytes()).hexdigest()
    store.write(key, save({_NAME: plain}, {_DIGEST: digest}))
