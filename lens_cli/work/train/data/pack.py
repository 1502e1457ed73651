"""`lens train data bucket` and `pack`: a shape for every picture, then the tars that training reads."""

from __future__ import annotations

from collections import Counter

from backend.errors import PartialBatchError, counted, human_bytes
from lens_cli.work.train.data.call import Call, run_todo, span, tell_reasons
from train.data import pack_stages
from train.data.buckets import TOO_SMALL, BucketConfig
from train.data.filters import FILTERS
from train.data.report import totals
from train.data.scan import planned
from train.data.select import Funnel, funnel
from train.data.settings import section, write_section
from train.data.tars.pack import PackConfig

_TEXTS = {"caption": "dense captions", "brief": "brief captions", "alt": "the texts that came with the pictures"}


CAPTIONS = (
    "captions: a.txt beside a.jpg and run again; or --set caption.text=TEXT for all without, caption.local=MODEL (a "
    "vision model on this machine), caption.model=NAME with caption.base_url=URL"
)


def _nothing_packed(without: Counter[str], dropped: Funnel) -> PartialBatchError:
    """The error for a work folder of which no picture reaches the tars: its commonest reason and what to do."""
    total = without.total()
    if not total:
        hint = "lens train data report WORK shows which"
        if not dropped.first:
            return PartialBatchError("no picture is left to pack: the stages before dropped all of them", hint=hint)
        taken = dropped.pictures - dropped.kept
        name = max(dropped.first, key=lambda name: dropped.first[name])
        if limits := FILTERS[name].limits:
            off = " ".join(f"select.{limit}=none" for limit in limits)
            hint += f"; without that filter: lens train data run WORK --set {off}"
        return PartialBatchError(
            f"no picture is left to pack: of {dropped.pictures:,} the filters took {taken:,}, {name} the most "
            f"({dropped.first[name]:,})",
            hint=hint,
        )
    reason, count = without.most_common(1)[0]
    hint = CAPTIONS if "caption" in reason else "smaller pictures: --set bucket.bases=512 or bucket.upscale=1.34"
    return PartialBatchError(f"no picture was packed: {count:,} of {total:,}: {reason}", hint=hint)


class BucketCommand:
    """Gives each picture its shape."""

    def __init__(self, call: Call) -> None:
        self.call = call
        settings, self.remembered = section(BucketConfig, "bucket", call.folder, call.given)
        self.shards = planned(call.work)
        self.stage = stage = pack_stages.Bucket(call.work, settings)
        self.todo = [s for s in self.shards if not call.work.done("bucket", s, stage.stamp(s))]

    def run(self) -> None:
        call = self.call
        write_section(call.folder, "bucket", self.remembered)
        run_todo(call, "bucket", self.stage, self.todo)
        found = totals.buckets(call.work, self.shards)
        call.talk.say(f"bucket: {counted(found.shapes.total(), 'picture')} in {counted(len(found.shapes), 'shape')}")
        for shape, count in found.shapes.most_common():
            call.talk.say(f"  {shape:>10} {count:>12,}")
        tell_reasons(call, found.without, "in none: ")
        if found.without[TOO_SMALL]:
            call.talk.say("  to enlarge small ones a little: --set upscale=1.34")
        call.talk.result({"shapes": found.shapes, "without": found.without})

    def explain(self) -> None:
        self.call.talk.say(f"bucket: {len(self.todo):,} of {len(self.shards):,} shards to do")
        self.call.talk.result({"shards": len(self.todo)})


class PackCommand:
    """Writes the tars and their index."""

    def __init__(self, call: Call) -> None:
        self.call = call
        settings, self.remembered = section(PackConfig, "pack", call.folder, call.given)
        self.shards = planned(call.work)
        settings = pack_stages.choose_text(call.work, self.shards, settings)
        call.talk.say(f"pack: {_TEXTS[settings.text or '']} become the texts")
        self.stage = stage = pack_stages.Pack(call.work, settings)
        self.todo = [s for s in self.shards if not call.work.done("pack", s, stage.stamp(s))]

    def run(self) -> None:
        call = self.call
        write_section(call.folder, "pack", self.remembered)
        pack_stages.forget_others(call.work, self.shards)
        run_todo(call, "pack", self.stage, self.todo)
        found = totals.packed(call.work, self.shards)
        folder, size = call.folder / "pack", sum(found.tars.values())
        tars = counted(len(found.tars), "tar")
        call.talk.say(f"pack: {counted(found.pictures, 'picture')} in {tars}, {human_bytes(size)}")
        tell_reasons(call, found.without, "not packed: ")
        if not found.pictures:
            raise _nothing_packed(found.without, funnel(call.work, self.shards))
        call.talk.data(folder)
        told = {"pictures": found.pictures, "tars": len(found.tars), "bytes": size, "without": found.without}
        call.talk.result({"path": str(folder), **told})

    def explain(self) -> None:
        """Pictures, time and disk, measured by packing a few into memory."""
        talk, todo = self.call.talk, self.todo
        if not todo:
            talk.say("pack: nothing to do")
            talk.result({"shards": 0})
            return
        pictures = totals.to_pack(self.stage, todo)
        tried = self.stage.try_some(todo[0])
        talk.say(f"pack: {counted(pictures, 'picture')} in {counted(len(todo), 'shard')}")
        if not tried.pictures:
            talk.result({"pictures": pictures})
            return
        disk, seconds = pictures * tried.nbytes, pictures * tried.seconds
        cost = f"{human_bytes(disk)} and {span(seconds)} of one core"
        talk.say(f"  about {cost}, measured on {tried.pictures} of them here")
        talk.result({"pictures": pictures, "bytes": round(disk), "core_seconds": seconds})
