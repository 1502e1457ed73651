"""Which pictures of a shard are still in: what `select` kept, less the duplicates where `dedup` has run.

Heavy ring: pyarrow.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from train.data.work import Work


def kept_rows(work: Work, shard: int, columns: Sequence[str], *, deduplicated: bool) -> pa.Table:
    """Columns of `scan` (key among them) for the pictures that are in, in the order of `scan`.

    `deduplicated`: whether `dedup` must have run; else it counts only if it has. Raises LensError for a missing stage.
    """
    rows = work.read("scan", shard, columns=columns)
    keep = set(_kept(work.read("select", shard)))
    if deduplicated or work.mark("dedup", shard) is not None:
        keep &= set(_kept(work.read("dedup", shard)))
    return rows.filter(pa.array([key in keep for key in rows["key"].to_pylist()], pa.bool_()))


def stages_read(work: Work, shard: int, *, deduplicated: bool) -> tuple[str, ...]:
    """What `kept_rows` reads, for `Work.inputs`."""
    there = deduplicated or work.mark("dedup", shard) is not None
    return ("scan", "select", "dedup") if there else ("scan", "select")


def _kept(table: pa.Table) -> list[str]:
    return table.filter(table["kept"])["key"].to_pylist()
