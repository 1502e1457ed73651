"""Which pictures of a shard are still in: what `select` kept, less the duplicates where `dedup` has run.

Heavy ring: pyarrow.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from train.data.work import Work


def selected_rows(work: Work, shard: int, columns: Sequence[str]) -> pa.Table:
    """Columns of `scan` (key among them) for what `select` kept, in the order of `scan`. Raises LensError."""
    return _rows(work, shard, columns, ["select"])


def kept_rows(work: Work, shard: int, columns: Sequence[str], *, deduplicated: bool) -> pa.Table:
    """Columns of `scan` (key among them) for the pictures that are in, in the order of `scan`.

    `deduplicated`: whether `dedup` must have run; else it counts only if it has. Raises LensError for a missing stage.
    """
    return _rows(work, shard, columns, stages_read(work, shard, deduplicated=deduplicated)[1:])


def stages_read(work: Work, shard: int, *, deduplicated: bool) -> tuple[str, ...]:
    """What `kept_rows` reads, for `Work.inputs`."""
    there = deduplicated or work.mark("dedup", shard) is not None
    return ("scan", "select", "dedup") if there else ("scan", "select")


def _rows(work: Work, shard: int, columns: Sequence[str], stages: Sequence[str]) -> pa.Table:
    rows = work.read("scan", shard, columns=columns)
    keep = set(rows["key"].to_pylist())
    for stage in stages:
        verdicts = work.read(stage, shard, columns=["key", "kept"])
        keep &= set(verdicts.filter(verdicts["kept"])["key"].to_pylist())
    return rows.filter(pa.array([key in keep for key in rows["key"].to_pylist()], pa.bool_()))
