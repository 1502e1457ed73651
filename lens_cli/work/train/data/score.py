"""`lens train data score`: numbers of every picture."""

from __future__ import annotations

from dataclasses import replace

from backend.errors import counted
from lens_cli.work.train.data.call import Call, run_todo, span
from train.data import estimate
from train.data import score as scoring
from train.data.filters import LEARNED
from train.data.scan import ScanSettings, planned
from train.data.settings import section, write_section

_A_GPU = 4  # processes that share one, as one process cannot decode as fast as a GPU scores


class ScoreCommand:
    """The filters without a model first, then those whose models were named."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.settings, self.remembered = section(scoring.ScoreSettings, "score", call.folder, call.given)
        self.max_pixels = section(ScanSettings, "scan", call.folder)[0].max_pixels
        self.shards = planned(call.work)
        self.classic = scoring.Score(call.work, self.settings.filters, max_pixels=self.max_pixels)

    def run(self) -> None:
        call, settings = self.call, self.settings
        models = scoring.find_models(settings)
        write_section(call.folder, "score", self.remembered)
        run_todo(call, "score", self.classic, [s for s in self.shards if self.classic.missing(s)])
        if models:
            from train.data.scores.learned import describe

            for model in models:
                call.talk.say(describe(model))
            learned = replace(self.classic, classic=(), models=models, batch=settings.batch, device=settings.device)
            self._run_models(learned, [s for s in self.shards if learned.missing(s)])
        names = [*settings.filters, *(model.filter for model in models)]
        call.talk.say(f"score: {', '.join(names)} for {counted(len(self.shards), 'shard')}")
        call.talk.result({"filters": names, "shards": len(self.shards)})

    def _run_models(self, stage: scoring.Score, todo: list[int]) -> None:
        call, device = self.call, self.settings.device
        if call.engine == "local":
            run_todo(replace(call, workers=_model_workers(call.workers, device)), "score (models)", stage, todo)
        else:
            run_todo(call, "score (models)", stage, todo, gpus=0.0 if device == "cpu" else 1 / _A_GPU)

    def explain(self) -> None:
        """Pictures and hours for what is not scored yet."""
        call, names = self.call, self.settings.filters
        todo = [s for s in self.shards if self.classic.missing(s)]
        pictures = sum(mark.rows for shard in todo if (mark := call.work.mark("scan", shard)) is not None)
        call.talk.say(f"score: {', '.join(names)} for {counted(pictures, 'picture')} in {counted(len(todo), 'shard')}")
        hours = 0.0
        if pictures:
            tried, each = estimate.time_scoring(call.work, todo[0], names, self.max_pixels)
            workers = min(call.at_once, len(todo))
            hours = pictures * each / workers / 3600
            rate = f"for {workers} at once ({1 / each:.3g} pictures/s a core)"
            call.talk.say(f"  about {span(hours * 3600)}, measured on {tried} of them here {rate}")
        for name in LEARNED:
            if model := getattr(self.settings, name):
                call.talk.say(f"  {name} with {model}: its time is not foretold (it would have to be loaded and run)")
        call.talk.result({"pictures": pictures, "shards": len(todo), "hours": hours})


def _model_workers(asked: int | None, device: str) -> int:
    """Processes that each hold the models; on the CPU the one process that there is, whose threads have all cores.

    Raises UsageError for a device that is not here.
    """
    from train.data.scores.learned import pick_device

    kind = pick_device(device).type  # before anything starts
    if asked is not None:
        return asked
    import torch

    return 0 if kind == "cpu" else _A_GPU * (torch.cuda.device_count() if device == "auto" else 1)
