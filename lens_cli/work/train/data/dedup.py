"""`lens train data dedup`: of pictures that are alike the best one."""

from __future__ import annotations

from lens_cli.work.train.data.call import Call, run_todo
from train.data.captions.ask import captioned_sources
from train.data.duplicates.dedup import DedupSettings, Look, dedup, with_embeddings
from train.data.scan import planned
from train.data.settings import section, write_section


class Dedup:
    """Looks at every shard, then compares all pictures at once."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.settings, self.remembered = section(DedupSettings, "dedup", call.folder, call.given)
        self.shards = planned(call.work)
        wanted = self.settings.kinds
        looks = self.looks = Look(call.work) if "perceptual" in wanted else None
        self.todo = [s for s in self.shards if looks and not call.work.done("dedup/look", s, looks.stamp(s))]
        clip = with_embeddings(call.work, self.shards, self.settings)
        self.kinds = [kind for kind in wanted if kind != "clip" or clip]
        if "clip" in wanted and not clip:
            hint = "lens train data score WORK --set clip=MODEL"
            call.talk.warn(f"no duplicates by CLIP: no embeddings were made ({hint})")

    def run(self) -> None:
        call = self.call
        write_section(call.folder, "dedup", self.remembered)
        if self.looks:
            run_todo(call, "dedup (looks)", self.looks, self.todo)
        counts = dedup(call.work, self.shards, self.settings, captioned_sources(call.work, self.shards))
        found = {kind: counts[kind] for kind in self.kinds}
        told = ", ".join(f"{number:,} {kind}" for kind, number in found.items())
        call.talk.say(f"dedup: {sum(found.values()):,} duplicates dropped ({told})")
        call.talk.result({"dropped": found})

    def explain(self) -> None:
        shards, looks = len(self.shards), len(self.todo)
        self.call.talk.say(f"dedup: {', '.join(self.kinds)} over {shards:,} shards; {looks:,} to be looked at first")
        self.call.talk.result({"kinds": self.kinds, "shards": shards, "looks": looks})
