"""`lens train data scan`: what pictures there are, and with --dry-run what all stages would cost."""

from __future__ import annotations

from collections.abc import Sequence

from backend.disk import free_bytes
from backend.errors import UsageError, counted, human_bytes
from lens_cli.work.train.data.call import Call, run_todo, span
from train.data import estimate
from train.data import scan as scanning
from train.data.buckets import BucketConfig
from train.data.filters import CLASSIC
from train.data.settings import read_section, section, write_section
from train.data.sources import PictureSource, find_source, parse_source
from train.data.tars.pack import PackConfig


class ScanCommand:
    """`given`: the sources of the command line; none: those of last time."""

    def __init__(self, call: Call, given: Sequence[str]) -> None:
        self.call = call
        self.sources = [parse_source(text) for text in given] or _remembered(call)
        self.settings, self.remembered = section(scanning.ScanSettings, "scan", call.folder, call.given)

    def run(self) -> None:
        call = self.call
        write_section(call.folder, "sources", {source.name: source.path for source in self.sources})
        write_section(call.folder, "scan", self.remembered)
        shards, notes = scanning.make_plan(call.work, self.sources, self.settings, call.engine, call.workers)
        for note in notes:
            call.talk.warn(note)
        stage = scanning.Scan(call.work, self.settings.max_pixels)
        run_todo(call, "scan", stage, [s for s in shards if not call.work.done("scan", s, stage.stamp(s))])
        totals = scanning.totals(call.work)
        unusable = totals["captions_unusable"]
        call.talk.say(
            f"scan: {counted(totals['pictures'], 'picture')} in {counted(totals['shards'], 'shard')}, "
            f"{human_bytes(totals['bytes'])}; "
            f"{totals['unreadable']:,} unreadable; {totals['captions']:,} with a caption"
            + (f" ({unusable:,} captions cannot be used)" if unusable else "")
        )
        call.talk.result(totals)

    def explain(self) -> None:
        """Pictures, bytes, disk and hours of `scan`, of the filters that need no model, and of `pack`."""
        call, talk = self.call, self.call.talk
        listed = estimate.list_sources(self.sources, self.settings, call.folder)
        for note in listed.notes:
            talk.warn(note)
        for name, pictures in listed.by_source.items():
            talk.say(f"{name}: {pictures:,} pictures")
        beyond = f", and {listed.unknown:,} pictures of a size that only reading tells" if listed.unknown else ""
        size = human_bytes(listed.nbytes)
        talk.say(f"in all {counted(listed.pictures, 'picture')} in {counted(listed.shards, 'shard')}, {size}{beyond}")
        talk.say(f"captions beside them: {listed.captions:,}")
        if not listed.pictures:
            talk.result({"pictures": 0})
            return
        cores = min(call.at_once, listed.shards)
        tried = self._try_sample(listed)
        each = {"scan": tried.scan_seconds, "score": tried.score_seconds, "pack": tried.pack_seconds}
        hours = {name: listed.pictures * seconds / cores / 3600 for name, seconds in each.items()}
        notes = {
            "scan": f"({1 / tried.scan_seconds:.3g} pictures/s a core)",
            "score": f"({1 / tried.score_seconds:.3g} pictures/s a core; no models)",
            "pack": "(were every picture kept that has a bucket)",
        }
        talk.say(f"measured on {tried.pictures} of them here, for {cores} at once:")
        for name, note in notes.items():
            talk.say(f"  {name:<6} {span(hours[name] * 3600):>9}  {note}")
        disk, tars = listed.pictures * tried.row_bytes, listed.pictures * tried.packed_bytes
        free = human_bytes(free_bytes(call.folder))
        talk.say(f"  disk   about {human_bytes(disk)} of tables and {human_bytes(tars)} of tars; {free} are free there")
        counts = {"pictures": listed.pictures, "shards": listed.shards, "bytes": listed.nbytes}
        talk.result({**counts, "disk": round(disk + tars), "hours": hours, "measured_on": tried.pictures})

    def _try_sample(self, listed: estimate.Listing) -> estimate.ShardTrial:
        buckets, _ = section(BucketConfig, "bucket", self.call.folder)
        packing, _ = section(PackConfig, "pack", self.call.folder)
        return estimate.try_sample(listed, CLASSIC, self.settings.max_pixels, buckets, packing)


def _remembered(call: Call) -> list[PictureSource]:
    remembered = read_section(call.folder, "sources")
    if not remembered:
        named = call.folder.is_dir() and not (call.folder / "config.json").is_file() and any(call.folder.iterdir())
        both = f"WORK {call.folder}" if named else f"{call.folder} PICTURES/"  # a full folder is meant as theirs
        raise UsageError("no pictures were named", hint=f"lens {call.talk.command} {both}")
    return [find_source(str(path), name) for name, path in remembered.items()]
