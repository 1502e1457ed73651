"""`lens train data … --dry-run`: what there is, and what it would cost, measured on a few of the pictures."""

from __future__ import annotations

import os
from collections.abc import Sequence

from backend.disk import free_bytes
from lens_cli.terminal.console import human_bytes
from lens_cli.work.train.data_call import Call, span
from train.data import estimate
from train.data.buckets import BucketConfig
from train.data.filters import CLASSIC, LEARNED
from train.data.scan import ScanSettings
from train.data.score import ScoreSettings
from train.data.select import Select
from train.data.settings import section
from train.data.sources import PictureSource
from train.data.tars.pack import PackConfig


def explain_sources(call: Call, sources: Sequence[PictureSource], settings: ScanSettings) -> None:
    """Pictures, bytes, disk and hours of `scan`, of the filters that need no model, and of `pack`."""
    listed = estimate.list_sources(sources, settings, call.folder)
    for note in listed.notes:
        call.talk.warn(note)
    say = call.talk.say
    for name, pictures in listed.by_source.items():
        say(f"{name}: {pictures:,} pictures")
    beyond = f", and {listed.unknown:,} pictures of a size that only reading tells" if listed.unknown else ""
    say(f"in all {listed.pictures:,} pictures in {listed.shards:,} shards, {human_bytes(listed.nbytes)}{beyond}")
    say(f"captions beside them: {listed.captions:,}")
    if not listed.pictures:
        call.talk.result({"pictures": 0})
        return
    buckets, _ = section(BucketConfig, "bucket", call.folder)
    packing, _ = section(PackConfig, "pack", call.folder)
    tried = estimate.try_sample(listed, CLASSIC, settings.max_pixels, buckets, packing)
    cores = max(1, call.workers if call.workers is not None else os.cpu_count() or 1)
    cores = min(cores, listed.shards)
    hours = {
        "scan": listed.pictures * tried.scan_seconds / cores / 3600,
        "score": listed.pictures * tried.score_seconds / cores / 3600,
        "pack": listed.pictures * tried.pack_seconds / cores / 3600,
    }
    disk, tars = listed.pictures * tried.row_bytes, listed.pictures * tried.packed_bytes
    say(f"measured on {tried.pictures} of them here, for {cores} at once:")
    say(f"  scan   {span(hours['scan'] * 3600):>9}  ({1 / tried.scan_seconds:.3g} pictures/s a core)")
    say(f"  score  {span(hours['score'] * 3600):>9}  ({1 / tried.score_seconds:.3g} pictures/s a core; no models)")
    say(f"  pack   {span(hours['pack'] * 3600):>9}  (were every picture kept that has a bucket)")
    free = human_bytes(free_bytes(call.folder))
    say(f"  disk   about {human_bytes(disk)} of tables and {human_bytes(tars)} of tars; {free} are free there")
    call.talk.result(
        {
            "pictures": listed.pictures,
            "shards": listed.shards,
            "bytes": listed.nbytes,
            "disk": round(disk + tars),
            "hours": hours,
            "measured_on": tried.pictures,
        }
    )


def explain_score(call: Call, settings: ScoreSettings, todo: Sequence[int], max_pixels: int) -> None:
    """Pictures and hours of `score` for what is not scored yet."""
    pictures = sum(mark.rows for shard in todo if (mark := call.work.mark("scan", shard)) is not None)
    call.talk.say(f"score: {', '.join(settings.filters)} for {pictures:,} pictures in {len(todo):,} shards")
    hours = 0.0
    if pictures:
        tried, each = estimate.time_scoring(call.work, todo[0], settings.filters, max_pixels)
        workers = max(1, call.workers if call.workers is not None else os.cpu_count() or 1)
        workers = min(workers, len(todo))
        hours = pictures * each / workers / 3600
        rate = f"{1 / each:.3g} pictures/s a core"
        call.talk.say(f"  about {span(hours * 3600)}, measured on {tried} of them here for {workers} at once ({rate})")
    for name in LEARNED:
        model = getattr(settings, name)
        if model:
            call.talk.say(f"  {name} with {model}: its time is not foretold (it would have to be loaded and run)")
    call.talk.result({"pictures": pictures, "shards": len(todo), "hours": hours})


def explain_select(call: Call, stage: Select, shards: Sequence[int]) -> None:
    """What these thresholds would keep. All scores are read, nothing is written."""
    funnel = stage.foretell(shards)
    call.talk.say(f"select: would keep {funnel.kept:,} of {funnel.pictures:,} pictures")
    for name, taken in funnel.first.items():
        call.talk.say(f"  {name:<10} {taken:>10,} dropped, {funnel.alone[name]:,} by it alone")
    call.talk.result({"pictures": funnel.pictures, "kept": funnel.kept, "dropped": dict(funnel.first)})
