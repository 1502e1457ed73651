"""`lens train data run`: all stages in their order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from backend.errors import PartialBatchError, UsageError
from lens_cli.terminal.console import Talk
from lens_cli.work.train.data.call import Call, DataStage
from lens_cli.work.train.data.caption import caption_if_told
from lens_cli.work.train.data.dedup import Dedup
from lens_cli.work.train.data.pack import BucketCommand, PackCommand
from lens_cli.work.train.data.report import ReportCommand
from lens_cli.work.train.data.scan import ScanCommand
from lens_cli.work.train.data.score import ScoreCommand
from lens_cli.work.train.data.select import SelectCommand
from train.data.buckets import BucketConfig
from train.data.captions.ask import CaptionSettings
from train.data.duplicates.dedup import DedupSettings
from train.data.report.page import ReportSettings
from train.data.score import ScoreSettings
from train.data.select import read_settings
from train.data.settings import read_section, section, write_section
from train.data.tars.pack import PackConfig

AFTER_SCAN: Mapping[str, Callable[[Call], DataStage | None]] = {  # None: this one has nothing to do
    "score": ScoreCommand,
    "select": SelectCommand,
    "dedup": Dedup,
    "caption": caption_if_told,
    "bucket": BucketCommand,
    "pack": PackCommand,
    "report": ReportCommand,
}
SETTINGS: Mapping[str, type[Any]] = {  # of the stages whose settings depend on no source's name
    "score": ScoreSettings,
    "dedup": DedupSettings,
    "caption": CaptionSettings,
    "bucket": BucketConfig,
    "pack": PackConfig,
    "report": ReportSettings,
}


class _Among(Talk):
    """The voice of a stage among others: of all answers in JSON only the last may go to stdout."""

    def result(self, data: dict[str, Any]) -> None:
        pass


class RunAll:
    """`--set stage.key=value` goes to its stage. With --dry-run: what `scan` can tell."""

    def __init__(self, call: Call, sources: Sequence[str]) -> None:
        settings: dict[str, list[str]] = {name: [] for name in ("scan", *AFTER_SCAN)}
        for text in call.given:
            stage, dot, rest = text.partition(".")
            if not dot or stage not in settings:
                raise UsageError(f"--set {text}: not stage.key=value", hint=f"stages: {', '.join(settings)}")
            settings[stage].append(rest)
        inner = replace(call, talk=_Among(**vars(call.talk)))
        self.call = call
        self.calls = {name: replace(inner, given=tuple(given)) for name, given in settings.items()}
        self.scan = ScanCommand(self.calls["scan"], sources)
        for name, kind in SETTINGS.items():  # a value that the last stage refuses is said before the first one begins
            section(kind, name, call.folder, settings[name])
        names = [source.name for source in self.scan.sources]
        read_settings(read_section(call.folder, "select"), settings["select"], names)

    def run(self) -> None:
        self.scan.run()
        for name, kind in (("caption", CaptionSettings), ("pack", PackConfig)):  # `dedup` asks which texts will be used
            _, remembered = section(kind, name, self.call.folder, self.calls[name].given)
            if remembered != read_section(self.call.folder, name):
                write_section(self.call.folder, name, remembered)
        failed: PartialBatchError | None = None
        for name, make in AFTER_SCAN.items():  # each is made when those before have run, and looks at what they did
            if (stage := make(self.calls[name])) is not None:
                try:
                    stage.run()
                except PartialBatchError as error:  # nothing was packed: the report shows where the pictures went
                    failed = error
        if failed is not None:
            raise failed
        self.call.talk.result({"work": str(self.call.folder)})

    def explain(self) -> None:
        self.scan.explain()
        self.call.talk.result({"work": str(self.call.folder)})
