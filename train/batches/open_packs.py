"""The packed pictures that a pre-training names, opened and held against its plan before any network is loaded.

Shared by the run itself and by its plan (`--dry-run`), which has no torch: numpy and pyarrow only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from backend.errors import UsageError
from train.config import PretrainConfig
from train.data.tars.reader import PackedIndex, TarReader


@dataclass(frozen=True)
class Opened:
    """All that the config names, found to be there and to fit the stages."""

    index: PackedIndex
    readers: Mapping[int, TarReader]  # by the stage's place, of those that have steps
    held: TarReader | None  # of the held-out pictures


def open_packed(config: PretrainConfig) -> Opened:
    """What the config names, before any network is loaded for it. Raises UsageError, FileError."""
    if config.data is None:
        raise UsageError("no data are named", hint="--data WORK, a folder that `lens train data` has packed")
    index = PackedIndex.load(config.data / "pack")
    readers = {
        place: TarReader(index, seed=config.seed + place, batches={base.base: base.batch for base in stage.bases})
        for place, stage in enumerate(config.stages)
        if stage.steps
    }
    held = None
    if config.held_out is not None:
        pictures = PackedIndex.load(config.held_out / "pack")
        _apart(index, pictures)
        held = TarReader(pictures, seed=0, batches={bucket.base: 1 for bucket in pictures.buckets})
    return Opened(index, readers, held)


def _apart(training: PackedIndex, held: PackedIndex) -> None:
    """Raises UsageError where pictures that are trained on are held out: their loss would say nothing.

    By the digests that are in memory, of a sample's bytes with its name in the tar: so a copied folder or shard is
    seen, also in part or among others, but not the same picture packed anew at another place.
    """
    hint = "held_out=WORK2, packed from other pictures; held_out=none: no validation loss"
    if held.fingerprint == training.fingerprint:
        raise UsageError(f"held_out={held.folder.parent} holds the very pictures that are trained on", hint=hint)
    ours = np.unique(np.concatenate([bucket.digest for bucket in held.buckets]))  # sorted
    seen = np.zeros(len(ours), bool)
    for bucket in training.buckets:
        places = np.searchsorted(ours, bucket.digest)
        places[places == len(ours)] = 0
        seen[places[ours[places] == bucket.digest]] = True
    if seen.any():
        raise UsageError(
            f"{int(seen.sum()):,} of the {len(ours):,} pictures of held_out={held.folder.parent} are trained on too",
            hint=hint,
        )
