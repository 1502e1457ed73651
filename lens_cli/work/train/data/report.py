"""`lens train data report`: one HTML file of what the stages kept and dropped."""

from __future__ import annotations

from lens_cli.work.train.data.call import Call
from train.data.report.page import ReportSettings, write_report
from train.data.scan import planned
from train.data.settings import section, write_section


class ReportCommand:
    """Writes WORK/report.html."""

    def __init__(self, call: Call) -> None:
        self.call, self.path = call, call.folder / "report.html"
        self.settings, self.remembered = section(ReportSettings, "report", call.folder, call.given)

    def run(self) -> None:
        write_section(self.call.folder, "report", self.remembered)
        write_report(self.call.work, self.path, self.settings)
        self.call.talk.data(self.path)
        self.call.talk.result({"path": str(self.path)})

    def explain(self) -> None:
        self.call.talk.say(f"report: would write {self.path} from {len(planned(self.call.work)):,} shards")
