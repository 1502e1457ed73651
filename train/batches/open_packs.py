"""The packed pictures that a pre-training names, opened and held against its plan before any network is loaded.

Shared by the run itself and by its plan (`--dry-run`), which has no torch: numpy and pyarrow only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from backend.errors import CheckpointError, UsageError
from train.config import PackedData, PretrainConfig, Stage
from train.data.tars.reader import PackedIndex, TarReader


@dataclass(frozen=True)
class Opened:
    """All that the config names, found to be there and to fit the stages."""

    index: PackedIndex
    readers: Mapping[int, TarReader]  # by the stage's place, of those that have steps
    held: TarReader | None  # of the held-out pictures


def open_packed(data: PackedData, stages: tuple[Stage, ...], seed: int) -> Opened:
    """What is named, before any network is loaded for it. Raises UsageError, FileError."""
    if data.work is None:
        raise UsageError("no data are named", hint="--data WORK, a folder that `lens train data` has packed")
    index = PackedIndex.load(data.work / "pack")
    readers = {
        place: TarReader(index, seed=seed + place, batches={base.base: base.batch for base in stage.bases})
        for place, stage in enumerate(stages)
        if stage.steps
    }
    held = None
    if data.held_out is not None:
        pictures = PackedIndex.load(data.held_out / "pack")
        _apart(index, pictures)
        held = TarReader(pictures, seed=0, batches={bucket.base: 1 for bucket in pictures.buckets})
    return Opened(index, readers, held)


def _apart(training: PackedIndex, held: PackedIndex) -> None:
    """Raises UsageError where pictures that are trained on are held out: their loss would say nothing.

    By the digests that are in memory, of a sample's bytes with its name in the tar: so a copied folder or shard is
    seen, also in part or among others, but not the same picture packed anew at another place.
    """
    hint = "data.held_out=WORK2, packed from other pictures; data.held_out=none: no validation loss"
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


# The order of the pictures -------------------------------------------------------------------------------------------


def order(config: PretrainConfig) -> list[dict[str, Any]] | None:
    """What decides where in the packed pictures a step stands, stage by stage, as JSON holds it; None: other data."""
    if config.data.source != "packed":
        return None
    begins = [sum(stage.steps for stage in config.stages[:i]) for i in range(len(config.stages))]
    return [
        {"begins": step, "groups": stage.groups, "batches": [[base.base, base.batch] for base in stage.bases]}
        for step, stage in zip(begins, config.stages, strict=True)
        if stage.steps
    ]


def check_order(config: PretrainConfig, before: list[dict[str, Any]] | None, step: int, where: str) -> None:
    """Raises CheckpointError where a run at `step`, found at `where`, would jump in the order it began with."""
    now = order(config)
    if before is None or now is None:
        return
    began, begin = ([stage for stage in stages if stage["begins"] < step] for stages in (before, now))
    if began != begin:
        raise CheckpointError(
            f"{where}: with other batches, groups or steps of a stage that has begun, the run would jump in "
            f"the order of its pictures; it began with {_stages(began)}, this is {_stages(begin)}",
            hint="as it began, or a new run: --set start_from=… --run-dir …",
        )


def _stages(stages: list[dict[str, Any]]) -> str:
    """In the words of --set, as one line."""
    words = (
        f"groups={stage['groups']}, " + ", ".join(f"batch={batch} of base {base}" for base, batch in stage["batches"])
        + f" from step {stage['begins']:,}"
        for stage in stages
    )  # fmt: skip
    return "; ".join(words)
