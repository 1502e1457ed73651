"""Captioning by files instead of questions: OpenAI's batch format out and in.

    {"custom_id": …, "method": "POST", "url": "/v1/chat/completions", "body": {…}}      a request a line
    {"custom_id": …, "response": {"status_code": 200, "body": {…}}, "error": null}      an answer a line, in any order

`vllm run-batch` reads and writes the same lines, so one machine with a GPU serves as well as a batch service. Answers
go into the journals of `train.data.captions.ask`, as if they had been asked for: what is still missing or has a flaw
can be written out again, or asked for at an endpoint.

A `custom_id` names shard, picture (the start of its file's SHA-256), kind and attempt, and the start of the hash of
model and prompt: an answer to another question is recognised and left alone, one about a picture that lies in another
shard by now is found a place.

Heavy ring: pyarrow, Pillow.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backend.chat.replies import ChatReply, read_completion
from backend.disk import make_folder, read_error, replacing
from backend.errors import FileError, UsageError
from train.data.captions.ask import KINDS, Caption, CaptionSettings, identity_of, messages, open_question, prompt_of
from train.data.captions.journals import Journal, answer_of, pictures_of
from train.data.pictures import Unreadable
from train.data.scan import planned
from train.data.work import open_picture

URL = "/v1/chat/completions"
MAX_REQUESTS = 50_000  # a file: the limit that OpenAI and Together state
MAX_BYTES = 95_000_000  # a file: Together's 100 MB, less a picture; OpenAI takes 200 MB
_SHARDS_HELD = 64  # journals in memory: answers come about in the order of the requests
_START = 20  # hex digits of a picture's SHA-256
_MISSED_HELD = 100_000  # answers about pictures that are not where they were: a search over all shards for so many
_ID = re.compile(r"(\d{5,})-([0-9a-f]{20})-(dense|brief)-(\d+)-([0-9a-f]{16})")


@dataclass
class Arrivals:
    """What became of the lines of answer files."""

    taken: int = 0  # new answers in the journals
    known: int = 0  # lines whose answer was there already
    failed: int = 0  # lines that tell of an error
    foreign: int = 0  # answers to other questions: another work folder, model or prompt, a picture that is gone
    broken: int = 0  # lines that are no answer


def write_requests(
    stage: Caption, shards: Sequence[int], folder: Path, *, max_bytes: int = MAX_BYTES, max_requests: int = MAX_REQUESTS
) -> tuple[list[Path], int, int]:
    """Write what is still to be asked as `requests-00000.jsonl` and so on; returns (files, requests, unreadable ones).

    Raises FileError, and UsageError where the folder holds request files already: they may be under way.
    """
    make_folder(folder)
    if there := sorted(folder.glob("requests-*.jsonl")):
        raise UsageError(f"{there[0]} is there already", hint="give another folder, or delete what is not needed")
    skipped = 0

    def lines() -> Iterator[bytes]:
        nonlocal skipped
        for shard in shards:
            for line in _lines(stage, shard):
                if line is None:
                    skipped += 1
                else:
                    yield line

    files: list[Path] = []
    written = 0
    left = lines()
    line = next(left, None)
    while line is not None:
        path = folder / f"requests-{len(files):05d}.jsonl"
        size = count = 0
        with replacing(path) as temporary, temporary.open("wb") as file:
            while line is not None and (not count or (size + len(line) <= max_bytes and count < max_requests)):
                file.write(line)
                size, count = size + len(line), count + 1
                line = next(left, None)
        files.append(path)
        written += count
    return files, written, skipped


def _lines(stage: Caption, shard: int) -> Iterator[bytes | None]:
    """The requests of a shard; None for a picture that cannot be read."""
    settings, journal = stage.settings, stage.journal(shard)
    for kind in settings.kinds:
        prompt = prompt_of(settings, kind)
        identity = identity_of(stage.model, prompt)
        asked = {row["sha256"]: row for row in stage.rows(shard).to_pylist() if row["source"] not in settings.own}
        for picture, row in asked.items():
            if not open_question(picture, kind, prompt, settings, journal, stage.model):
                continue
            try:
                asked = messages(prompt.body, open_picture(row), settings)
            except (Unreadable, FileError):
                yield None
                continue
            attempt = len(journal.of(picture, kind, identity))
            body = _body(stage.model, asked, settings, attempt)
            name = f"{shard:05d}-{picture[:_START]}-{kind}-{attempt}-{identity}"
            request = {"custom_id": name, "method": "POST", "url": URL, "body": body}
            yield json.dumps(request, ensure_ascii=False).encode() + b"\n"


def _body(model: str, asked: list[dict[str, Any]], settings: CaptionSettings, attempt: int) -> dict[str, Any]:
    sampling = {"temperature": settings.temperature} if settings.temperature is not None else {}
    return {"model": model, "messages": asked, "max_tokens": settings.max_tokens, "seed": attempt, **sampling}


def read_answers(stage: Caption, files: Iterable[Path]) -> Arrivals:
    """Put answers into the journals. The same file twice changes nothing. Raises FileError for a file that is none."""
    filing = _Filing(stage)
    for path in files:
        try:
            with path.open("rb") as file:
                for line in file:
                    if line.strip():
                        filing.arrive(line)
        except OSError as error:
            raise read_error(path, error) from error
    filing.search()
    return filing.arrived


class _Filing:
    """Puts lines of answer files where they belong."""

    def __init__(self, stage: Caption) -> None:
        self.arrived = Arrivals()
        self._stage = stage
        self._planned = set(planned(stage.work))
        self._identities = {kind: identity_of(stage.model, prompt_of(stage.settings, kind)) for kind in KINDS}
        self._open: dict[int, tuple[Journal, dict[str, str]]] = {}  # shard -> journal, start of a hash -> the hash
        self._missed: list[tuple[re.Match[str], ChatReply]] = []  # about pictures that are not in the shard of the name

    def arrive(self, line: bytes) -> None:
        try:
            told = json.loads(line)
            name = _ID.fullmatch(str(told["custom_id"]))
            reply = _reply(told) if name is not None else None
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            self.arrived.broken += 1
            return
        if name is None or self._identities[name[3]] != name[5]:
            self.arrived.foreign += 1
        elif reply is None:
            self.arrived.failed += 1
        elif not self._file(int(name[1]), name, reply):
            self._missed.append((name, reply))
            if len(self._missed) >= _MISSED_HELD:
                self.search()

    def search(self) -> None:
        """File what was missed, wherever its pictures lie now."""
        starts = {name[2] for name, _ in self._missed}
        home: dict[str, int] = {}
        for shard in sorted(self._planned) if starts else ():
            home |= {sha[:_START]: shard for sha in pictures_of(self._stage.work, shard) if sha[:_START] in starts}
        for name, reply in sorted(self._missed, key=lambda one: home.get(one[0][2], -1)):
            if name[2] not in home or not self._file(home[name[2]], name, reply):
                self.arrived.foreign += 1
        self._missed.clear()

    def _file(self, shard: int, name: re.Match[str], reply: ChatReply) -> bool:
        """Whether the shard has the picture."""
        if shard not in self._planned:
            return False
        if shard not in self._open:
            if len(self._open) >= _SHARDS_HELD:
                self._open.clear()
            pictures = {sha[:_START]: sha for sha in pictures_of(self._stage.work, shard)}
            self._open[shard] = self._stage.journal(shard), pictures
        journal, pictures = self._open[shard]
        if (picture := pictures.get(name[2])) is None:
            return False
        if len(journal.of(picture, name[3], name[5])) > int(name[4]):  # the journal is in the order of attempts
            self.arrived.known += 1
        else:
            journal.add(answer_of(reply, picture, name[3], name[5]))
            self.arrived.taken += 1
        return True


def _reply(told: Mapping[str, Any]) -> ChatReply | None:
    """The answer of a line; None where the line tells of an error."""
    response = told.get("response")
    if told.get("error") is not None or response is None or int(response.get("status_code") or 200) != 200:
        return None
    return read_completion(response["body"])
