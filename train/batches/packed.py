"""Packed pictures (`lens train data pack`) as a source of batches: read, decoded and encoded ahead of their use."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import torch

from backend.sizes import GRID
from train.batches.encoders import Encoders
from train.batches.open_packs import Opened
from train.config import At, PretrainConfig, Stage
from train.data.tars.reader import TarBucket, TarSample
from train.run.batch import Grid, Group, Loaded, padded
from train.run.metrics import on_stderr

if TYPE_CHECKING:
    from train.batches.kept import Encoded

HELD = 256  # pictures of the validation loss


class PackedSource:
    """The reader's order: position k of a stage is group k. So a step is the same whatever the number of ranks."""

    def __init__(
        self, config: PretrainConfig, opened: Opened, encoders: Encoders, device: torch.device,
        say: Callable[[str], None] = on_stderr,
    ) -> None:  # fmt: skip
        """`say` is told of files of the cache that are damaged and made again."""
        self.config, self.opened, self.index, self.encoders = config, opened, opened.index, encoders
        self.networks = encoders.networks() if encoders.networks else None  # SHA-256, for checkpoints
        self._threads = ThreadPoolExecutor(max(1, config.workers))  # decoding and hashing leave Python's lock
        self._alone = threading.Lock()  # validation may read while a thread reads ahead
        self._kept: Encoded | None = None
        if config.cache is not None:
            from train.batches.kept import Encoded

            self._kept = Encoded(config, encoders, device, self._threads, say)

    @property
    def fingerprint(self) -> str:
        """Of the packed pictures and their order."""
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
                x0_BNC, texts = self._kept.latents(samples), self._kept.texts(captions)
        text, mask = padded(texts)
        names = tuple(str(sample.record.get("key", "?")) for sample in samples)
        return Loaded(x0_BNC, text, mask, names)

    def _caption(self, sample: TarSample, when: str) -> str:
        """The dense caption, or the brief one where the config asks for it and the picture has one."""
        brief = sample.record.get("brief")
        if not brief or not self.config.brief_share:
            return sample.text
        rng = random.Random(f"caption {self.config.seed} {when} {sample.record.get('key')}")
        return str(brief) if rng.random() < self.config.brief_share else sample.text

    def _place(self, bucket: TarBucket) -> int:
        return next(i for i, one in enumerate(self.index.buckets) if one is bucket)


def _grid(bucket: TarBucket) -> Grid:
    return bucket.height // GRID, bucket.width // GRID
