"""Packed pictures (`lens train data pack`) as a source of batches: read, decoded and encoded ahead of their use."""

from __future__ import annotations

import hashlib
import random
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from backend.cache import tensors
from backend.errors import FileError, UsageError
from backend.sizes import GRID
from train.batches.encoders import Encoders, feature_dtype
from train.batches.keeper import Keeper
from train.batches.open_packs import Opened
from train.config import At, PackedData, PretrainConfig, Stage
from train.data.tars.reader import TarBucket, TarSample
from train.run.batch import Grid, Group, Loaded, padded
from train.run.metrics import on_stderr

HELD = 256  # pictures of the validation loss


class PackedSource:
    """The reader's order: position k of a stage is group k. So a step is the same whatever the number of ranks."""

    def __init__(
        self, config: PretrainConfig, opened: Opened, encoders: Encoders, device: torch.device,
        say: Callable[[str], None] = on_stderr,
    ) -> None:  # fmt: skip
        """`say` is told of files of the cache that are damaged and made again."""
        assert isinstance(config.data, PackedData)
        self.data, self.seed, self.device = config.data, config.seed, device
        self.opened, self.index, self.encoders = opened, opened.index, encoders
        self.networks = encoders.networks() if encoders.networks else None  # SHA-256, for checkpoints
        # Decoding and hashing leave Python's lock.
        self._threads = ThreadPoolExecutor(max(1, config.machine.workers))
        self._alone = threading.Lock()  # validation may read while a thread reads ahead
        self._kept: _Kept | None = None
        if config.data.cache is not None:
            self._kept = _Kept(config, encoders, device, self._threads, say)

    @property
    def fingerprint(self) -> str:
        """Tells these packed pictures and their order from others."""
        return self.index.fingerprint

    def groups(self, at: At) -> list[tuple[Grid, list[Hashable]]]:
        reader = self.opened.readers[at.place]
        first = (at.step - at.before) * at.stage.groups
        out: list[tuple[Grid, list[Hashable]]] = []
        for position in range(first, first + at.stage.groups):
            _, bucket, numbers = reader.plan(position)
            refs: list[Hashable] = [(self._place(bucket), int(number)) for number in numbers]
            out.append((_grid(bucket), refs))
        return out

    def load(self, at: At, group: Group) -> Loaded:
        reader = self.opened.readers[at.place]
        pairs = [ref for ref in group.refs if isinstance(ref, tuple)]
        samples = [reader.sample(self.index.buckets[bucket], number) for bucket, number in pairs]
        return self._encode(samples, f"{at.step}")

    def held(self, stage: Stage) -> list[tuple[Grid, Loaded]]:
        """The first pictures of every bucket of the held-out folder, in equal shares."""
        reader = self.opened.held
        if reader is None:
            return []
        buckets = reader.index.buckets
        share = max(1, HELD // len(buckets))
        out: list[tuple[Grid, Loaded]] = []
        for bucket in buckets:
            count = min(share, len(bucket))
            for start in range(0, count, 8):  # few at a time: the largest shapes too fit where a step fits
                samples = [reader.sample(bucket, number) for number in range(start, min(start + 8, count))]
                loaded = self._encode(samples, "held out")
                # On the CPU meanwhile: 256 captions of the published encoder take 1 GB.
                out.append(
                    (
                        _grid(bucket),
                        Loaded(loaded.x0_BNC.cpu(), loaded.text_BLTF.cpu(), loaded.mask_BL.cpu(), loaded.names),
                    )
                )
        reader.close()  # not needed again for a thousand steps
        return out

    def _encode(self, samples: list[TarSample], when: str) -> Loaded:
        captions = [self._caption(sample, when) for sample in samples]
        if self._kept is None:
            pictures = np.stack(list(self._threads.map(TarSample.pixels, samples)))
            x0_BNC, texts = self.encoders.images(pictures), self.encoders.texts(captions)
        else:
            with self._alone:
                latents, texts = self._kept.latents(samples), self._kept.texts(captions)
                x0_BNC = torch.stack([rows.to(self.device) for rows in latents])
                texts = [rows.to(self.device) for rows in texts]
        text, mask = padded(texts)
        names = tuple(str(sample.record.get("key", "?")) for sample in samples)
        return Loaded(x0_BNC, text, mask, names)

    def _caption(self, sample: TarSample, when: str) -> str:
        """The dense caption, or the brief one where the config asks for it and the picture has one."""
        brief = sample.record.get("brief")
        if not brief or not self.data.brief_share:
            return sample.text
        rng = random.Random(f"caption {self.seed} {when} {sample.record.get('key')}")
        return str(brief) if rng.random() < self.data.brief_share else sample.text

    def _place(self, bucket: TarBucket) -> int:
        return next(i for i, one in enumerate(self.index.buckets) if one is bucket)


def _grid(bucket: TarBucket) -> Grid:
    return bucket.height // GRID, bucket.width // GRID


class _Kept:
    """Latents and text features of packed pictures, kept on the disk. For one thread at a time."""

    def __init__(
        self, config: PretrainConfig, encoders: Encoders, device: torch.device, threads: ThreadPoolExecutor,
        say: Callable[[str], None],
    ) -> None:  # fmt: skip
        """Raises UsageError for networks without files, FileError for a folder that is not to be had."""
        assert isinstance(config.data, PackedData) and config.data.cache is not None
        if encoders.identify is None:
            raise UsageError("networks that are only in memory have no name to keep by", hint="--set data.cache=none")
        self.encoders = encoders
        self._about_images, self._about_texts = encoders.identify()
        params, cache = config.params, config.data.cache
        width = (len(params.selected_layer_index), params.enc_hidden_dim)
        self._latents = Keeper(cache / "latents", (params.in_channels,), torch.float32, say, threads)
        self._texts = Keeper(cache / "texts", width, feature_dtype(device), say, threads)
        try:
            self._latents.open()
            self._texts.open()
        except FileError as error:
            raise FileError(str(error), hint="another --set data.cache=FOLDER, or data.cache=none") from error

    def latents(self, samples: Sequence[TarSample]) -> list[Tensor]:
        """(N, C) float32 of each."""

        def make(places: Sequence[int]) -> Iterator[Tensor]:
            return (self.encoders.images(samples[place].pixels()[None])[0] for place in places)

        pictures = [hashlib.sha256(sample.picture).hexdigest() for sample in samples]
        return self._rows(self._latents, self._about_images, pictures, make)

    def texts(self, captions: Sequence[str]) -> list[Tensor]:
        """(L, T, F) of each caption."""

        def make(places: Sequence[int]) -> Iterator[Tensor]:
            return (self.encoders.texts([captions[place]])[0] for place in places)

        return self._rows(self._texts, self._about_texts, captions, make)

    def _rows(
        self, keeper: Keeper, network: str, what: Sequence[str], make: Callable[[Sequence[int]], Iterator[Tensor]]
    ) -> list[Tensor]:
        keys = [tensors.cache_key({"network": network, "what": one}) for one in what]
        try:
            return keeper.rows(keys, make)
        except FileError as error:
            raise FileError(
                str(error),
                hint="free some space and run the same command again, or keep nothing: --set data.cache=none",
            ) from error
