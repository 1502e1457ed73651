"""Packed pictures and captions as the frozen networks see them, kept on the disk: encoded once, read ever after.

A file is named by the SHA-256 of everything that decides its numbers: the picture's bytes or the caption, the
network's weights, what stands around the caption, the processor. So epochs, runs, ranks and stages may share one
folder, a changed picture is encoded anew and nothing else is. Each picture and each caption is encoded alone: what it
is does not depend, not in its last bit, on what a step encodes beside it, on the number of ranks, or on whether it was
kept already.

What it takes is stated by `lens train pretrain --dry-run` before anything starts. Heavy ring: torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from pathlib import Path

import torch
from torch import Tensor

from backend.cache import tensors
from backend.cache.store import Store, remove_abandoned
from backend.disk import make_folder, write_atomic
from backend.errors import FileError, UsageError
from train.batches.encoders import Encoders
from train.config import PretrainConfig
from train.data.tars.reader import TarSample


class RunCache(Store):
    """Files of a run: none is ever forgotten, and one that cannot be written ends the run."""

    def write(self, key: str, data: bytes) -> None:
        """Raises FileError."""
        write_atomic(self.path(key), data)


class Encoded:
    """Latents and text features of packed pictures. For one thread at a time; files are read by `threads`."""

    def __init__(
        self, config: PretrainConfig, encoders: Encoders, device: torch.device, threads: Executor,
        say: Callable[[str], None],
    ) -> None:  # fmt: skip
        """Raises UsageError for networks without files, FileError for a folder that is not to be had."""
        assert config.cache is not None
        if encoders.identify is None:
            raise UsageError("networks that are only in memory have no name to keep by", hint="--set cache=none")
        self.encoders, self.threads = encoders, threads
        self._about_images, self._about_texts = encoders.identify()
        self._device, self._dtype = device, feature_dtype(device)
        self._channels = (config.params.in_channels,)
        self._width = (len(config.params.selected_layer_index), config.params.enc_hidden_dim)
        self._latents, self._texts = (_store(config.cache / name, say) for name in ("latents", "texts"))

    def latents(self, samples: Sequence[TarSample]) -> Tensor:
        """(B, N, C) float32 on the device, of pictures of one shape."""
        keys = [self._key(self._about_images, hashlib.sha256(sample.picture).hexdigest()) for sample in samples]

        def made(number: int) -> Tensor:
            return self.encoders.images(samples[number].pixels()[None])[0].float()

        return torch.stack(self._rows(self._latents, keys, self._channels, torch.float32, made))

    def texts(self, captions: Sequence[str]) -> list[Tensor]:
        """(L, T, F) of each caption on the device."""
        keys = [self._key(self._about_texts, caption) for caption in captions]

        def made(number: int) -> Tensor:
            return self.encoders.texts([captions[number]])[0].to(self._dtype)

        return self._rows(self._texts, keys, self._width, self._dtype, made)

    def _rows(
        self, store: Store, keys: Sequence[str], width: tuple[int, ...], dtype: torch.dtype,
        made: Callable[[int], Tensor],
    ) -> list[Tensor]:  # fmt: skip
        """What is kept, read at once; what is not, made in turn and kept. Raises FileError (no space)."""
        out: list[Tensor] = []
        found = self.threads.map(lambda key: tensors.read_rows(store, key, width, dtype), keys)
        for number, (key, rows) in enumerate(zip(keys, list(found), strict=True)):
            if rows is None:
                rows = made(number)
                if bool(torch.isfinite(rows).all()):  # else the step says which picture it was, and nothing stays
                    _keep(store, key, rows)
            out.append(rows.to(self._device))
        return out

    def _key(self, network: str, what: str) -> str:
        return tensors.cache_key({"network": network, "what": what})


def feature_dtype(device: torch.device) -> torch.dtype:
    """Of kept text features: as the encoders are loaded."""
    return torch.float32 if device.type == "cpu" else torch.bfloat16


def _store(folder: Path, say: Callable[[str], None]) -> RunCache:
    try:
        make_folder(folder)
    except FileError as error:
        raise FileError(str(error), hint="another --set cache=FOLDER, or cache=none") from error
    remove_abandoned(folder)  # what processes that were killed have left half-written
    return RunCache(folder, ".safetensors", 1, say)


def _keep(store: Store, key: str, rows: Tensor) -> None:
    try:
        tensors.write_rows(store, key, rows)
    except FileError as error:
        raise FileError(
            str(error), hint="free some space and run the same command again, or keep nothing: --set cache=none"
        ) from error
