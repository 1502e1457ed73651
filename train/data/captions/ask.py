"""Stage `caption`: what each kept picture shows, asked of a vision model behind any OpenAI-compatible endpoint.

Every answer is money, so none is lost and none is paid for twice. Answers go, as they came, into a journal beside the
shard's table (`caption/00003.jsonl`); the table is computed from journal and settings alone. A crash, another band of
lengths or more attempts cost nothing for what is there. Only another model or another prompt asks anew.

A picture is asked about up to `attempts` times, until an answer has no flaw (`train.data.captions.checks`). A failure
of the endpoint that its client could not wait out is told in the picture's row; many in a row end the stage.

The journal is also where answers from batch files arrive (`train.data.captions.batch`).

Heavy ring: pyarrow, Pillow.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import pyarrow as pa

import prompts
from backend.chat.replies import ChatReply, Message, picture_part
from backend.errors import FileError, LensError, UsageError
from backend.fields import Range, check_range, check_ranges, within
from train.data.captions.checks import Band, count_words, flaw, language_of, tidy
from train.data.captions.journals import Answer, Journal, answer_of, journal_path
from train.data.selection import kept_rows, stages_read
from train.data.settings import read_section, section
from train.data.tars.pack import PackConfig
from train.data.text_rules import unusable
from train.data.work import Work, open_picture, stamp

VERSION = 1
KINDS = ("dense", "brief")
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("caption", pa.string()),  # None: none without a flaw
        ("brief", pa.string()),  # None: not asked for, or none without a flaw
        ("language", pa.string()),  # of the caption, ISO 639-1; None: too short to tell
        ("words", pa.int32()),  # of the caption
        ("error", pa.string()),  # why there is no caption, or no brief one that was asked for
        ("model", pa.string()),  # that wrote it; "source": it came with the picture
    ]
)
_COLUMNS = ("key", "source", "path", "member", "offset", "nbytes", "sha256", "caption")  # of `scan`
_GIVE_UP = 8  # failures of the endpoint with no answer between them


@dataclass(frozen=True, kw_only=True)
class CaptionSettings:
    """What the stage `caption` is told. The endpoint's key comes from the settings, never from here."""

    model: str | None = None  # at the endpoint; None: the setting reasoner.model
    base_url: str | None = None  # None: the setting reasoner.base_url
    local: str | None = None  # an image-to-text model of transformers on this machine: a folder or a Hub id
    download: bool = False  # fetch `local` from the Hub where it is not on this disk
    device: str = "auto"  # of `local`
    text: str | None = None  # the caption of every picture that has no usable one of its own; nobody is asked
    prompt: str = "dense"  # a name in prompts/captions, or a file
    brief: bool = False  # also a brief caption, by a question of its own (the paper's ablation)
    brief_prompt: str = "brief"
    own: tuple[str, ...] = ()  # sources whose own captions are taken as they are (text images, pictures with .txt)
    side: int = within(1024, 64, 8192)  # pixels: the longer side of what is sent, at most
    quality: int = within(90, 1, 100)  # JPEG, of what is sent
    max_tokens: int = within(700, 16, 100_000)  # of an answer: 250 words are about 340 tokens, of other scripts more
    attempts: int = within(3, 1, 100)  # questions a picture and kind, at most
    temperature: float | None = None  # None: the endpoint's own
    at_once: int = within(16, 1, 4096)  # questions under way
    timeout: float = 180.0  # seconds without an answer
    # The paper's mean is 109. None: 40, of a local model 1, as small captioners write a line.
    least_words: int | None = within(None, 1, 10_000)
    most_words: int = 250
    least_brief: int = within(2, 1, 10_000)
    most_brief: int = 25
    language: str | None = "en"  # of what is not quoted, ISO 639-1; None: any
    price_in: float | None = None  # dollars a million tokens, for --dry-run; None: not told
    price_out: float | None = None

    def __post_init__(self) -> None:
        check_ranges(self)
        check_range("most_words", self.most_words, Range(self.fewest_words, 10_000))
        check_range("most_brief", self.most_brief, Range(self.least_brief, 10_000))
        told = [name for name in ("text", "local", "base_url") if getattr(self, name) is not None]
        if len(told) > 1:
            raise UsageError(f"{' and '.join(told)} each say where captions come from", hint="key=default forgets one")
        if self.text is not None and (reason := unusable(self.text)):
            raise UsageError(f"text={self.text!r}: {reason}")

    @property
    def fewest_words(self) -> int:
        """Of a dense caption."""
        return self.least_words or (1 if self.local is not None else 40)

    def band(self, kind: str) -> Band:
        return Band(self.fewest_words, self.most_words) if kind == "dense" else Band(self.least_brief, self.most_brief)

    @property
    def names_somebody(self) -> bool:
        """Whether where captions come from is named here, and not only in the reasoner's settings."""
        return any(told is not None for told in (self.model, self.base_url, self.local, self.text))

    @property
    def kinds(self) -> tuple[str, ...]:
        return KINDS if self.brief else KINDS[:1]


class Asker(Protocol):
    """Who answers: `backend.chat.client.Client`."""

    def complete(
        self,
        messages: Sequence[Message],
        *,
        seed: int | None = None,
        temperature: float | None = None,
        on_answer: Callable[[ChatReply], None],
    ) -> ChatReply: ...


# -------------------------------------------------------------------------------------------------------- the questions


def judge(answers: Iterable[Answer], band: Band, language: str | None) -> tuple[str | None, str | None]:
    """(the first caption without a flaw, None), or (None, the last flaw)."""
    reason: str | None = "not asked yet"
    for answer in answers:
        text = tidy(answer.text)
        if answer.refused:
            reason = "a refusal"
        elif answer.cut:
            reason = "cut at the limit of tokens"
        else:
            reason = flaw(text, band, language)
        if reason is None:
            return text, None
    return None, reason


def prompt_of(settings: CaptionSettings, kind: str) -> prompts.SystemPrompt:
    """Raises UsageError where there is none of that name."""
    try:
        return prompts.captioning(settings.prompt if kind == "dense" else settings.brief_prompt)
    except prompts.PromptError as error:
        raise UsageError(str(error), hint=error.hint) from error


def identity_of(model: str, prompt: prompts.SystemPrompt) -> str:
    """Names what wrote an answer: answers of another model or prompt are others' answers."""
    return hashlib.sha256(f"{model}\n{prompt.sha256}".encode()).hexdigest()[:16]


def messages(prompt: str, picture: bytes, settings: CaptionSettings) -> list[Message]:
    """The question about one picture, scaled down and sent within the request. Raises Unreadable."""
    from PIL import Image

    from train.data.pictures import decode

    image = decode(picture)
    image.thumbnail((settings.side, settings.side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=settings.quality)
    return [{"role": "system", "content": prompt}, {"role": "user", "content": [picture_part(buffer.getvalue())]}]


def caption_rows(
    rows: pa.Table,
    read: Callable[[Mapping[str, Any]], bytes],
    settings: CaptionSettings,
    journal: Journal,
    model: str,
    asker: Asker | None,
) -> pa.Table:
    """The stage's body: ask what the journal does not know yet, then the table (SCHEMA), in the order of `rows`.

    `rows`: key, source, sha256, caption (that came with the picture) and what `read` needs. `asker` None: nothing is
    asked. Copies of a file are asked about once.
    Raises FileError where the journal cannot be written, and the endpoint's error where it fails again and again.
    """
    wanted = {kind: prompt_of(settings, kind) for kind in settings.kinds}
    asked = {row["sha256"]: row for row in rows.to_pylist() if row["source"] not in settings.own}
    failures: dict[str, str] = {}
    if asker is not None:
        for kind, prompt in wanted.items():
            questions = (
                row for sha, row in asked.items() if open_question(sha, kind, prompt, settings, journal, model)
            )
            failures |= _ask_all(questions, kind, prompt, read, settings, journal, model, asker)
    made = [_row(row, wanted, settings, journal, model, failures.get(row["sha256"])) for row in rows.to_pylist()]
    return pa.Table.from_pylist(made, schema=SCHEMA)


def open_question(
    picture: str, kind: str, prompt: prompts.SystemPrompt, settings: CaptionSettings, journal: Journal, model: str
) -> bool:
    """Whether a picture (its file's SHA-256) still lacks a caption of this kind and may be asked about once more."""
    answers = journal.of(picture, kind, identity_of(model, prompt))
    return len(answers) < settings.attempts and judge(answers, settings.band(kind), settings.language)[0] is None


def _ask_all(
    rows: Iterable[Mapping[str, Any]],
    kind: str,
    prompt: prompts.SystemPrompt,
    read: Callable[[Mapping[str, Any]], bytes],
    settings: CaptionSettings,
    journal: Journal,
    model: str,
    asker: Asker,
) -> dict[str, str]:
    """Ask about all rows, `at_once` at a time; returns sha256 -> what failed. Raises what fails again and again."""
    from train.data.pictures import Unreadable

    identity = identity_of(model, prompt)

    def ask(row: Mapping[str, Any]) -> None:
        def note(reply: ChatReply) -> None:
            journal.add(answer_of(reply, row["sha256"], kind, identity))

        try:
            question = messages(prompt.body, read(row), settings)
        except (Unreadable, FileError) as error:
            raise _NoPicture(str(error)) from error
        while open_question(row["sha256"], kind, prompt, settings, journal, model):
            seed = len(journal.of(row["sha256"], kind, identity))  # another one each time, or the flaw would come again
            asker.complete(question, seed=seed, temperature=settings.temperature, on_answer=note)

    failures: dict[str, str] = {}
    in_a_row = 0
    left = iter(rows)
    running: dict[Future[None], str] = {}
    with ThreadPoolExecutor(settings.at_once, thread_name_prefix="caption") as pool:
        try:
            while True:
                for row in islice(left, settings.at_once - len(running)):
                    running[pool.submit(ask, row)] = row["sha256"]
                if not running:
                    return failures
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    picture, error = running.pop(future), future.exception()
                    if isinstance(error, _NoPicture):
                        failures[picture] = str(error)
                    elif isinstance(error, LensError) and not isinstance(error, FileError):  # that: a full disk
                        failures[picture], in_a_row = str(error), in_a_row + 1
                        if in_a_row >= _GIVE_UP:
                            raise error
                    elif error is not None:
                        raise error
                    else:
                        in_a_row = 0
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


class _NoPicture(Exception):
    """A picture that cannot be shown; the others go on."""


def _row(
    row: Mapping[str, Any],
    wanted: Mapping[str, prompts.SystemPrompt],
    settings: CaptionSettings,
    journal: Journal,
    model: str,
    failure: str | None,
) -> dict[str, Any]:
    if row["source"] in settings.own or settings.text is not None:
        reason = unusable(row["caption"])
        text = row["caption"].strip() if reason is None else None
        if text is None and settings.text is not None:
            return _told(row["key"], settings.text.strip(), None, None, "text")
        return _told(row["key"], text, None, reason, "source" if text else None)
    texts: dict[str, str | None] = {}
    errors: list[str] = []
    for kind, prompt in wanted.items():
        answers = journal.of(row["sha256"], kind, identity_of(model, prompt))
        texts[kind], reason = judge(answers, settings.band(kind), settings.language)
        if reason is not None:
            errors.append(f"{kind}: {failure or reason}")
    dense = texts["dense"]
    return _told(row["key"], dense, texts.get("brief"), "; ".join(errors) or None, model if dense else None)


def _told(key: str, text: str | None, brief: str | None, error: str | None, model: str | None) -> dict[str, Any]:
    measured = {"words": count_words(text), "language": language_of(text)} if text else {}
    return {"key": key, "caption": text, "brief": brief, "error": error, "model": model, **measured}


# ------------------------------------------------------------------------------------------------------------ the stage


def captioned_sources(work: Work, shards: Sequence[int]) -> tuple[str, ...]:
    """Sources whose pictures are given captions by this stage, as the work folder's settings and tables have it.

    None where nobody is named to be asked and no caption was written yet, or where `pack` takes the texts that came
    with the pictures. Raises FileError, UsageError for a config.json that was edited by hand.
    """
    settings, _ = section(CaptionSettings, "caption", work.folder)
    if settings.text is not None:  # a text of its own is worth more than the one that all get
        return ()
    asked = settings.names_somebody or any(work.mark("caption", shard) is not None for shard in shards)
    if not asked or section(PackConfig, "pack", work.folder)[0].text == "alt":
        return ()
    return tuple(name for name in read_section(work.folder, "sources") if name not in settings.own)


@dataclass(frozen=True)
class Caption:
    """Writes `caption/<shard>`."""

    work: Work
    settings: CaptionSettings
    model: str
    asker: Asker | None  # None: only what the journal knows

    def journal(self, shard: int) -> Journal:
        return Journal(journal_path(self.work, shard))

    def rows(self, shard: int) -> pa.Table:
        return kept_rows(self.work, shard, _COLUMNS, deduplicated=False)

    def stamp(self, shard: int) -> str:
        """Hash what the table is computed from. The journal counts only by whether anything is still to be asked."""
        s = self.settings
        rules = [self.model, s.brief, s.own, s.language, s.attempts, s.band("dense"), s.band("brief")]
        rules += [prompt_of(s, kind).sha256 for kind in s.kinds]
        rules += [] if s.text is None else [s.text]
        return stamp(VERSION, {"rules": rules}, *self._inputs(shard).values())

    def _inputs(self, shard: int) -> dict[str, str]:
        return self.work.inputs(shard, stages_read(self.work, shard, deduplicated=False))

    def missing(self, shard: int) -> bool:
        """Whether the table is out of date, or somebody can be asked about what it lacks."""
        if not self.work.done("caption", shard, self.stamp(shard)):
            return True
        table = self.work.read("caption", shard, columns=["key", "error"])
        lacking = {row["key"] for row in table.to_pylist() if row["error"] is not None}
        if self.asker is None or not lacking:
            return False
        asked = [r for r in self.rows(shard).to_pylist() if r["source"] not in self.settings.own]
        journal = self.journal(shard)
        wanted = {kind: prompt_of(self.settings, kind) for kind in self.settings.kinds}
        return any(
            open_question(row["sha256"], kind, prompt, self.settings, journal, self.model)
            for row in asked
            for kind, prompt in wanted.items()
            if row["key"] in lacking
        )

    def __call__(self, shard: int) -> None:
        if not self.missing(shard):
            return
        known, read, journal = self.stamp(shard), self._inputs(shard), self.journal(shard)
        table = caption_rows(self.rows(shard), open_picture, self.settings, journal, self.model, self.asker)
        self.work.write("caption", shard, table, known, read)
