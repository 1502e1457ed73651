"""`lens train data select`: which pictures the thresholds keep."""

from __future__ import annotations

from lens_cli.work.train.data.call import Call, run_todo
from train.data import select as selecting
from train.data.scan import planned
from train.data.settings import read_section, write_section


class SelectCommand:
    """Applies the thresholds; warns of those that cannot be applied."""

    def __init__(self, call: Call) -> None:
        self.call = call
        remembered, sources = read_section(call.folder, "select"), list(read_section(call.folder, "sources"))
        settings, self.remembered = selecting.read_settings(remembered, call.given, sources)
        self.shards = planned(call.work)
        scored = selecting.scored_filters(call.work, self.shards)
        for name in selecting.not_applied(settings, scored):
            call.talk.warn(f"{name} is not applied: it was not scored")
        self.stage = selecting.Select(call.work, settings, scored)

    def run(self) -> None:
        call, work, stage = self.call, self.call.work, self.stage
        write_section(call.folder, "select", self.remembered)
        run_todo(call, "select", stage, [s for s in self.shards if not work.done("select", s, stage.stamp(s))])
        funnel = selecting.funnel(work, self.shards)
        call.talk.say(f"select: {funnel.kept:,} of {funnel.pictures:,} pictures kept")
        call.talk.result({**self._tell(funnel), "alone": funnel.alone})

    def explain(self) -> None:
        """What these thresholds would keep. All scores are read, nothing is written."""
        funnel = self.stage.foretell(self.shards)
        self.call.talk.say(f"select: would keep {funnel.kept:,} of {funnel.pictures:,} pictures")
        self.call.talk.result(self._tell(funnel))

    def _tell(self, funnel: selecting.Funnel) -> dict[str, object]:
        for name, taken in funnel.first.items():
            limits = ", ".join(selecting.limits_of(self.stage.settings, name))
            alone = f"{funnel.alone[name]:,} by it alone{f' ({limits})' if limits else ''}"
            self.call.talk.say(f"  {name:<10} {taken:>10,} dropped, {alone}")
        return {"pictures": funnel.pictures, "kept": funnel.kept, "dropped": dict(funnel.first)}
