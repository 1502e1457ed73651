"""Work folders for the tests of the later data stages: really scanned, everything selected."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa

from train.data.scan import Scan, ScanSettings, make_plan
from train.data.sources import PictureSource
from train.data.work import Work


def scanned(folder: Path, sources: Mapping[str, Mapping[str, bytes]], *, shard_size: int = 4096) -> Work:
    """A work folder below `folder` over sources (name -> file name -> bytes); all that is readable is selected."""
    given: list[PictureSource] = []
    for name, files in sources.items():
        for file, data in files.items():
            path = folder / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        given.append(PictureSource(name, str(folder / name)))
    work = Work(folder / "work")
    settings = ScanSettings(shard_size=shard_size)
    shards, _ = make_plan(work, given, settings, "local", 0)
    for shard in shards:
        Scan(work, settings.max_pixels)(shard)
        rows = work.read("scan", shard)
        kept = rows["error"].is_null()
        work.write(
            "select", shard, pa.table({"key": rows["key"], "kept": kept}), f"selected {work.sha256('scan', shard)}"
        )
    return work
