"""The heavy half of the later stages of `lens train data`: dedup, caption, bucket, pack, text-images.

Each function does what those of `lens_cli.work.train.data_stages` do: remember the settings, run the shards that are
not done, say what came of it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from backend.errors import UsageError
from lens_cli.terminal.console import human_bytes
from lens_cli.work.train.data_call import Call, run_stage, span
from train.data.buckets import TOO_SMALL, BucketConfig
from train.data.captions import ask as captions
from train.data.captions.batch import read_answers, write_requests
from train.data.captions.journals import follow
from train.data.duplicates.dedup import DedupSettings, Look, dedup, with_embeddings
from train.data.pack_stages import Bucket, Pack, choose_text, forget_others
from train.data.report import totals
from train.data.scan import planned
from train.data.settings import read_section, section, write_section
from train.data.tars.pack import PackConfig
from train.data.text_images import stage as textimages
from train.data.text_images.texts import TextImageSettings


def find_duplicates(call: Call) -> None:
    settings, remembered = section(DedupSettings, "dedup", call.folder, call.given)
    shards = planned(call.work)
    looks = Look(call.work) if "perceptual" in settings.kinds else None
    todo = [s for s in shards if looks and not call.work.done("dedup/look", s, looks.stamp(s))]
    clip = with_embeddings(call.work, shards, settings)
    kinds = [kind for kind in settings.kinds if kind != "clip" or clip]
    if "clip" in settings.kinds and not clip:
        call.talk.warn("no duplicates by CLIP: no embeddings were made (lens train data score WORK --set clip=MODEL)")
    if call.dry_run:
        call.talk.say(f"dedup: {', '.join(kinds)} over {len(shards):,} shards; {len(todo):,} to be looked at first")
        call.talk.result({"kinds": kinds, "shards": len(shards), "looks": len(todo)})
        return
    write_section(call.folder, "dedup", remembered)
    if looks:
        run_stage(call, "dedup (looks)", looks, todo, call.workers)
    counts = dedup(call.work, shards, settings)
    found = {kind: counts[kind] for kind in kinds}
    told = ", ".join(f"{number:,} {kind}" for kind, number in found.items())
    call.talk.say(f"dedup: {sum(found.values()):,} duplicates dropped ({told})")
    call.talk.result({"dropped": found})


# -------------------------------------------------------------------------------------------------------------- caption


def caption(call: Call, *, batch_out: Path | None = None, batch_in: Sequence[Path] = (), ask: bool = True) -> None:
    """Ask an endpoint, or write the questions as batch files, or take answers from batch files. `ask` False: only what
    was answered already becomes captions."""
    settings, remembered = section(captions.CaptionSettings, "caption", call.folder, call.given)
    shards = planned(call.work)
    if call.dry_run:
        _explain_captions(call, settings, shards)
        return
    stage = _captioner(call, settings, ask=ask and batch_out is None and not batch_in)
    write_section(call.folder, "caption", remembered)
    if moved := follow(call.work, shards):
        call.talk.say(f"caption: {moved:,} answers follow their pictures, which lie in other shards now")
    if batch_out is not None:
        files, count, skipped = write_requests(stage, shards, batch_out)
        call.talk.say(f"caption: {count:,} requests in {len(files):,} files" + _unreadable(skipped))
        call.talk.say("when they are answered: lens train data caption WORK --batch-in ANSWERS.jsonl")
        for file in files:
            call.talk.data(file)
        call.talk.result({"files": [str(file) for file in files], "requests": count, "unreadable": skipped})
        return
    if batch_in:
        arrived = read_answers(stage, batch_in)
        call.talk.say(
            f"caption: {arrived.taken:,} answers taken, {arrived.known:,} were known, {arrived.failed:,} failed, "
            f"{arrived.foreign:,} to other questions, {arrived.broken:,} no answers"
        )
    # Threads wait for the endpoint; more processes would only mean more questions at once than was said.
    run_stage(replace(call, engine="local"), "caption", stage, [s for s in shards if stage.missing(s)], 0)
    _tell_captions(call, shards)


def caption_if_told(call: Call) -> None:
    """For `run`: asks only where the stage's settings name a model or an address, since captions cost money. Without,
    and for batch files without an address, the captions that there are follow what is selected now."""
    from backend.settings import load

    settings, _ = section(captions.CaptionSettings, "caption", call.folder, call.given)
    told = settings.model is not None or settings.base_url is not None
    begun = any(call.work.mark("caption", shard) is not None for shard in planned(call.work))
    if told or settings.own or begun:
        ask = told and bool(settings.base_url or load().reasoner.base_url)
        if told and not ask:
            call.talk.say("caption: nobody is asked, as no endpoint was named; what was answered is used")
        caption(call, ask=ask)
    else:
        call.talk.say("caption: passed over; --set caption.model=NAME asks for captions")


def _unreadable(skipped: int) -> str:
    return f"; {skipped:,} pictures cannot be read" if skipped else ""


def _captioner(call: Call, settings: captions.CaptionSettings, *, ask: bool) -> captions.Caption:
    from backend.chat.address import Label, make_address
    from backend.chat.client import Client
    from backend.reasoner.address import setting_label
    from backend.settings import load

    reasoner = load().reasoner
    if set(read_section(call.folder, "sources")) <= set(settings.own):
        return captions.Caption(call.work, settings, "source", None)  # nobody is to be asked
    model = settings.model or reasoner.model
    if not model:
        raise UsageError("no model was named for captions", hint="--set model=NAME, or the setting reasoner.model")
    if not ask:
        return captions.Caption(call.work, settings, model, None)
    base_url = settings.base_url or reasoner.base_url
    if not base_url:
        hint = "--set base_url=http://127.0.0.1:8000/v1, or the setting reasoner.base_url; by files: --batch-out FOLDER"
        raise UsageError("no endpoint was named for captions", hint=hint)
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


def _tell_captions(call: Call, shards: Sequence[int]) -> None:
    found = totals.captions(call.work, shards)
    mean = found.words / found.captions if found.captions else None
    average = f", {mean:.0f} words on average (the paper's: 109)" if mean is not None else ""
    call.talk.say(f"caption: {found.captions:,} pictures have one{average}; {found.flaws.total():,} have a flaw")
    _list(call, found.flaws, "")
    call.talk.result({"captions": found.captions, "mean_words": mean, "flaws": found.flaws})


def _list(call: Call, counts: Counter[str], what: str) -> None:
    for reason, count in counts.most_common(8):
        call.talk.say(f"  {count:>10,} {what}{reason}")


def _explain_captions(call: Call, settings: captions.CaptionSettings, shards: Sequence[int]) -> None:
    """Questions, tokens and money, from answers that are there, else from OpenAI's rule for pictures."""
    stage = captions.Caption(call.work, settings, settings.model or "not named yet", None)
    ahead = totals.questions(stage, shards)
    questions = ahead.pictures * len(settings.kinds)
    if ahead.answers:
        each_in, each_out = ahead.tokens_in / ahead.answers, ahead.tokens_out / ahead.answers
        source = f"as in {ahead.answers:,} answers so far"
    else:
        tiles = -(-min(settings.side, 768) // 512)  # the rule scales the shorter side to 768 at most
        words = len(captions.prompt_of(settings, "dense").body.split())
        each_in, each_out = 85 + 170 * tiles**2 + 1.35 * words, 1.35 * 109
        source = "assumed: OpenAI's rule for a square picture, 1.35 tokens a word, 109 words an answer"
    call.talk.say(f"caption: {ahead.pictures:,} pictures, at most {questions:,} questions not counting repeated ones")
    call.talk.say(f"  {each_in:,.0f} tokens in and {each_out:,.0f} out for each ({source})")
    money = None
    if settings.price_in is not None and settings.price_out is not None:
        money = questions * (each_in * settings.price_in + each_out * settings.price_out) / 1e6
        call.talk.say(f"  about ${money:,.2f}; batch services charge about half")
    else:
        call.talk.say("  for the money: --set price_in=… --set price_out=… (dollars a million tokens)")
    call.talk.result(
        {
            "pictures": ahead.pictures,
            "questions": questions,
            "tokens_in": each_in,
            "tokens_out": each_out,
            "dollars": money,
        }
    )


# ----------------------------------------------------------------------------------------------------- bucket and pack


def bucket(call: Call) -> None:
    settings, remembered = section(BucketConfig, "bucket", call.folder, call.given)
    shards = planned(call.work)
    stage = Bucket(call.work, settings)
    todo = [s for s in shards if not call.work.done("bucket", s, stage.stamp(s))]
    if call.dry_run:
        call.talk.say(f"bucket: {len(todo):,} of {len(shards):,} shards to do")
        call.talk.result({"shards": len(todo)})
        return
    write_section(call.folder, "bucket", remembered)
    run_stage(call, "bucket", stage, todo, call.workers)
    found = totals.buckets(call.work, shards)
    call.talk.say(f"bucket: {found.shapes.total():,} pictures in {len(found.shapes)} shapes")
    for shape, count in found.shapes.most_common():
        call.talk.say(f"  {shape:>10} {count:>12,}")
    _list(call, found.without, "in none: ")
    if found.without[TOO_SMALL]:
        call.talk.say("  to enlarge small ones a little: --set upscale=1.34")
    call.talk.result({"shapes": found.shapes, "without": found.without})


_TEXTS = {"caption": "dense captions", "brief": "brief captions", "alt": "the texts that came with the pictures"}


def pack(call: Call) -> None:
    settings, remembered = section(PackConfig, "pack", call.folder, call.given)
    shards = planned(call.work)
    settings = choose_text(call.work, shards, settings)
    call.talk.say(f"pack: {_TEXTS[settings.text or '']} become the texts")
    stage = Pack(call.work, settings)
    todo = [s for s in shards if not call.work.done("pack", s, stage.stamp(s))]
    if call.dry_run:
        _explain_pack(call, stage, todo)
        return
    write_section(call.folder, "pack", remembered)
    forget_others(call.work, shards)
    run_stage(call, "pack", stage, todo, call.workers)
    found = totals.packed(call.work, shards)
    folder, size = call.folder / "pack", sum(found.tars.values())
    call.talk.say(f"pack: {found.pictures:,} pictures in {len(found.tars):,} tars, {human_bytes(size)}")
    _list(call, found.without, "not packed: ")
    call.talk.data(folder)
    told = {"pictures": found.pictures, "tars": len(found.tars), "bytes": size, "without": found.without}
    call.talk.result({"path": str(folder), **told})


def _explain_pack(call: Call, stage: Pack, todo: Sequence[int]) -> None:
    """Pictures, time and disk, measured by packing a few into memory."""
    if not todo:
        call.talk.say("pack: nothing to do")
        call.talk.result({"shards": 0})
        return
    pictures = totals.to_pack(stage, todo)
    tried = stage.try_some(todo[0])
    call.talk.say(f"pack: {pictures:,} pictures in {len(todo):,} shards")
    if tried.pictures:
        disk, hours = pictures * tried.nbytes, pictures * tried.seconds
        call.talk.say(
            f"  about {human_bytes(disk)} and {span(hours)} of one core, measured on {tried.pictures} of them here"
        )
        call.talk.result({"pictures": pictures, "bytes": round(disk), "core_seconds": hours})
    else:
        call.talk.result({"pictures": pictures})


# ---------------------------------------------------------------------------------------------------------- text images


def text_images(call: Call) -> None:
    """`call.folder` is the folder of the tars, with a config.json of its own beside them."""
    settings, remembered = section(TextImageSettings, "text-images", call.folder, call.given)
    stage = textimages.TextImages(call.folder, settings)
    todo = [shard for shard in stage.shards if not stage.done(shard)]
    if call.dry_run:
        from train.data.text_images.draw import materials

        given = materials(settings)
        start = time.process_time()
        for number in range(8):
            textimages.draw(number, settings, given)
        each = (time.process_time() - start) / 8
        pictures = min(len(todo) * textimages.A_TAR, settings.count)
        call.talk.say(f"text-images: {pictures:,} pictures to draw, about {span(pictures * each)} of one core")
        call.talk.result({"pictures": pictures, "core_seconds": pictures * each})
        return
    write_section(call.folder, "text-images", remembered)
    stage.forget_others()
    run_stage(call, "text-images", stage, todo, call.workers)
    call.talk.say(f"text-images: {settings.count:,} pictures in {len(stage.shards):,} tars")
    call.talk.say(f"take them in: lens train data scan WORK texts={call.folder} …")
    call.talk.say("and keep their captions and their plain grounds: --set own=texts for caption, and for select")
    call.talk.say("  --set texts.clarity=none --set texts.entropy=none --set texts.dark=none --set texts.bright=none")
    call.talk.data(call.folder)
    call.talk.result({"path": str(call.folder), "pictures": settings.count, "tars": len(stage.shards)})
