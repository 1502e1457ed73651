"""The beginnings of conversations that every request shares, kept on the disk as llama.cpp computed them.

A prompt's first 97 tokens are the same for every picture, and a system prompt is the same for every rewrite. At the
published size and on two cores a token costs 80 ms, so a process that finds them here is that much earlier done:
8 seconds before text features, a minute or more before a rewrite.

A file holds llama.cpp's own copy of the key/value cache and whatever the caller keeps beside it. It is named by
everything that decides these numbers, and checked before llama.cpp sees it. Numbers that were kept are the numbers
that would be computed, to the last bit. numpy only: a rewrite does not import torch.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from backend.cache.store import DIGEST, Store, check_digest, digest
from backend.errors import LensError

if TYPE_CHECKING:
    from backend.text.llama_library import Context

Arrays = Mapping[str, NDArray[np.float32]]

# Raised whenever this code would read a kept file differently, or hand llama.cpp other work for the same tokens.
CODE_VERSION = 1
_CACHE = "cache"


class PrefixCache:
    """Beginnings computed with one GGUF, opened one way. What is wrong with a file or the folder only costs time."""

    def __init__(self, store: Store, gguf: Path, *, repacked: bool, gpu_layers: int) -> None:
        self._store, self._gguf = store, gguf
        self._how = {"repacked": repacked, "gpu layers": gpu_layers}

    def recall(self, context: Context, job: str, ids: Sequence[int]) -> Arrays | None:
        """Put the beginning `ids` into an empty context. What was kept beside it; None where nothing is kept.

        `job`: what the caller computes besides the cache, and how, where `ids` and the context do not say it.
        """
        if not self._store.limit:
            return None
        key = self._key(context, job, ids)
        data = self._store.read(key)
        if data is None:
            return None
        try:
            check_digest(data)
            arrays = load(data)
            context.restore(arrays.pop(_CACHE), len(ids))
        except (ValueError, KeyError, TypeError, SafetensorError, LensError) as error:
            self._store.drop(key, str(error) or type(error).__name__)
            return None
        return arrays

    def keep(self, context: Context, job: str, ids: Sequence[int], beside: Arrays) -> None:
        """Keep what the context holds, which must be `ids` and no more, and `beside` it arrays of the caller's."""
        if not self._store.limit:
            return
        arrays = {_CACHE: context.saved(), **beside}
        self._store.write(self._key(context, job, ids), save(arrays, {DIGEST: digest(save(arrays))}))

    def _key(self, context: Context, job: str, ids: Sequence[int]) -> str:
        found = self._gguf.stat()  # as notes about files have it: hashing 12 GB takes longer than the beginning
        facts = {
            "code": CODE_VERSION,
            "library": version("llama-cpp-python"),
            "machine": [platform.machine(), platform.processor()],
            "weights": [str(self._gguf.resolve()), found.st_size, found.st_mtime_ns],
            "opened": self._how,
            "exact": context.exact,
            "job": job,
            "tokens": list(ids),
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
