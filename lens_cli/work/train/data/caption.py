"""`lens train data caption`: what each kept picture shows, asked of an endpoint or by batch files."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from backend.errors import UsageError
from backend.settings import ReasonerSettings
from lens_cli.work.train.data.call import Call, DataStage, run_todo, tell_reasons
from train.data.captions import ask as captions
from train.data.captions.batch import read_answers, write_requests
from train.data.captions.journals import follow
from train.data.report import totals
from train.data.scan import planned
from train.data.settings import read_section, section, write_section


class CaptionCommand:
    """Asks, or writes the questions as batch files, or takes answers from batch files. `ask` False: only what was
    answered already becomes captions."""

    def __init__(
        self, call: Call, *, batch_out: Path | None = None, batch_in: Sequence[Path] = (), ask: bool = True
    ) -> None:
        self.call, self.batch_out, self.batch_in = call, batch_out, batch_in
        self.ask = ask and batch_out is None and not batch_in
        self.settings, self.remembered = section(captions.CaptionSettings, "caption", call.folder, call.given)
        self.shards = planned(call.work)

    def run(self) -> None:
        call, stage = self.call, _stage(self.call, self.settings, ask=self.ask)
        write_section(call.folder, "caption", self.remembered)
        if moved := follow(call.work, self.shards):
            call.talk.say(f"caption: {moved:,} answers follow their pictures, which lie in other shards now")
        if self.batch_out is not None:
            self._write_requests(stage, self.batch_out)
            return
        if self.batch_in:
            arrived = read_answers(stage, self.batch_in)
            call.talk.say(
                f"caption: {arrived.taken:,} answers taken, {arrived.known:,} were known, {arrived.failed:,} failed, "
                f"{arrived.foreign:,} to other questions, {arrived.broken:,} no answers"
            )
        # Threads wait for the endpoint; more processes would only mean more questions at once than was said.
        alone = replace(call, engine="local", workers=0)
        run_todo(alone, "caption", stage, [s for s in self.shards if stage.missing(s)])
        self._tell()

    def _write_requests(self, stage: captions.Caption, folder: Path) -> None:
        talk = self.call.talk
        files, count, skipped = write_requests(stage, self.shards, folder)
        unreadable = f"; {skipped:,} pictures cannot be read" if skipped else ""
        talk.say(f"caption: {count:,} requests in {len(files):,} files{unreadable}")
        talk.say("when they are answered: lens train data caption WORK --batch-in ANSWERS.jsonl")
        for file in files:
            talk.data(file)
        talk.result({"files": [str(file) for file in files], "requests": count, "unreadable": skipped})

    def _tell(self) -> None:
        talk, found = self.call.talk, totals.captions(self.call.work, self.shards)
        mean = found.words / found.captions if found.captions else None
        average = f", {mean:.0f} words on average (the paper's: 109)" if mean is not None else ""
        talk.say(f"caption: {found.captions:,} pictures have one{average}; {found.flaws.total():,} have a flaw")
        tell_reasons(self.call, found.flaws)
        talk.result({"captions": found.captions, "mean_words": mean, "flaws": found.flaws})

    def explain(self) -> None:
        """Questions, tokens and money, from answers that are there, else from OpenAI's rule for pictures."""
        talk, settings = self.call.talk, self.settings
        stage = captions.Caption(self.call.work, settings, settings.model or "not named yet", None)
        ahead = totals.questions(stage, self.shards)
        questions = ahead.pictures * len(settings.kinds)
        if ahead.answers:
            each_in, each_out = ahead.tokens_in / ahead.answers, ahead.tokens_out / ahead.answers
            source = f"as in {ahead.answers:,} answers so far"
        else:
            tiles = -(-min(settings.side, 768) // 512)  # the rule scales the shorter side to 768 at most
            words = len(captions.prompt_of(settings, "dense").body.split())
            each_in, each_out = 85 + 170 * tiles**2 + 1.35 * words, 1.35 * 109
            source = "assumed: OpenAI's rule for a square picture, 1.35 tokens a word, 109 words an answer"
        talk.say(f"caption: {ahead.pictures:,} pictures, at most {questions:,} questions not counting repeated ones")
        talk.say(f"  {each_in:,.0f} tokens in and {each_out:,.0f} out for each ({source})")
        money = None
        if settings.price_in is not None and settings.price_out is not None:
            money = questions * (each_in * settings.price_in + each_out * settings.price_out) / 1e6
            talk.say(f"  about ${money:,.2f}; batch services charge about half")
        else:
            talk.say("  for the money: --set price_in=… --set price_out=… (dollars a million tokens)")
        counts = {"pictures": ahead.pictures, "questions": questions}
        talk.result({**counts, "tokens_in": each_in, "tokens_out": each_out, "dollars": money})


def _stage(call: Call, settings: captions.CaptionSettings, *, ask: bool) -> captions.Caption:
    """Who is asked. Raises UsageError where that was not named."""
    from backend.chat.address import Label, make_address
    from backend.chat.client import Client
    from backend.reasoner.address import setting_label
    from backend.settings import load

    reasoner = load().reasoner
    if settings.text is not None or set(read_section(call.folder, "sources")) <= set(settings.own):
        return captions.Caption(call.work, settings, "source", None)  # nobody is to be asked
    if settings.local is not None:
        return _local(call, settings, settings.local, ask=ask)
    model = settings.model or reasoner.model
    if not model:
        raise UsageError("no model was named for captions", hint="--set model=NAME, or the setting reasoner.model")
    if not ask:
        return captions.Caption(call.work, settings, model, None)
    base_url = settings.base_url or reasoner.base_url
    if not base_url:
        hint = "--set base_url=http://127.0.0.1:8000/v1, or the setting reasoner.base_url; by files: --batch-out FOLDER"
        raise UsageError("no endpoint was named for captions", hint=hint)
    _check_named(call, settings.base_url, reasoner)
    labels = {name: Label(name, f"--set {name}=…") for name in ("base_url", "model", "timeout", "max_tokens")}
    address = make_address(
        base_url,
        model,
        key=reasoner.api_key,
        timeout=settings.timeout,
        max_tokens=settings.max_tokens,
        labels={**labels, "key": setting_label("api_key")},
    )
    return captions.Caption(call.work, settings, model, Client(address, say=call.talk.detail))


def _local(call: Call, settings: captions.CaptionSettings, name: str, *, ask: bool) -> captions.Caption:
    """A model on this machine answers. Raises what finding and loading it raise."""
    if not ask:
        return captions.Caption(call.work, settings, f"local:{name}", None)
    from train.data.captions.local import LocalCaptioner, find_captioner

    folder = find_captioner(name, download=settings.download)
    call.talk.say(f"caption: loading {name}")
    captioner = LocalCaptioner(folder, device=settings.device, max_tokens=settings.max_tokens)
    return captions.Caption(call.work, settings, f"local:{name}", captioner)


def _check_named(call: Call, base_url: str | None, reasoner: ReasonerSettings) -> None:
    """Raises UsageError for an address that only the work folder names."""
    from backend.reasoner.named import check_named, name_endpoint

    if base_url is None:
        return
    if any(text.partition("=")[0].strip() == "base_url" for text in call.given):
        name_endpoint(base_url)
        return
    allow = f"lens train data caption {shlex.quote(str(call.folder))} --set base_url={shlex.quote(base_url)}"
    check_named(base_url, reasoner, origin=str(call.folder / "config.json"), allow=allow)


def caption_if_told(call: Call) -> DataStage | None:
    """For `run`: asks only where the stage's settings name a model or an address, since captions cost money. Without,
    and for batch files without an address, the captions that there are follow what is selected now."""
    from backend.settings import load

    settings, _ = section(captions.CaptionSettings, "caption", call.folder, call.given)
    told = settings.names_somebody
    begun = any(call.work.mark("caption", shard) is not None for shard in planned(call.work))
    if not (told or settings.own or begun):
        call.talk.say("caption: passed over, the texts beside the pictures are taken; --set caption.model=NAME asks an")
        call.talk.say("  endpoint, caption.local=MODEL a model on this machine, caption.text=TEXT is one for all")
        return None
    ask = told and bool(settings.local or settings.text or settings.base_url or load().reasoner.base_url)
    if told and not ask:
        call.talk.say("caption: nobody is asked, as no endpoint was named; what was answered is used")
    return CaptionCommand(call, ask=ask)
