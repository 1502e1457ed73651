"""The journals of the stage `caption`: every answer as it came, a line each, a file a shard (`caption/00003.jsonl`).

Pictures go by the SHA-256 of their file: a file that was replaced under its old name is asked about anew, one that was
renamed is not. A shard's pictures change where its source did: those that are added to a folder push others into the
next shard. What was paid for goes with them (`follow`).

Heavy ring: pyarrow.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from backend.chat.replies import ChatReply
from backend.disk import write_error
from backend.errors import FileError
from backend.fields import object_from
from backend.foreign import documents
from train.data.work import Work

_LARGEST = 4_000_000_000  # bytes of a shard's journal


@dataclass(frozen=True)
class Answer:
    """One answer as it came, with what was asked. The journal's line."""

    picture: str  # SHA-256 of its file
    kind: str  # "dense" or "brief"
    identity: str  # of model and prompt: `identity_of`
    text: str
    cut: bool = False
    refused: bool = False
    tokens_in: int = 0
    tokens_out: int = 0


def answer_of(reply: ChatReply, picture: str, kind: str, identity: str) -> Answer:
    """The journal's line for what an endpoint or a batch file answered."""
    return Answer(picture, kind, identity, reply.text, reply.cut, reply.refused, reply.tokens_in, reply.tokens_out)


class Journal:
    """Answers of one shard, in memory and on disk. Adding is safe from several threads; a torn last line is ignored."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._answers: dict[tuple[str, str, str], list[Answer]] = {}
        try:
            lines = documents.read_bytes(path, _LARGEST).split(b"\n")
        except FileNotFoundError:
            return
        except (OSError, documents.Unreadable) as error:
            raise FileError(f"{path} {documents.reason(error)}") from error
        for line in lines:
            try:
                self._remember(object_from(documents.parse_json(line), Answer))
            except (ValueError, TypeError):  # torn by a crash, or edited by hand: that answer is asked for again
                continue

    def _remember(self, answer: Answer) -> None:
        self._answers.setdefault((answer.picture, answer.kind, answer.identity), []).append(answer)

    def all(self) -> list[list[Answer]]:
        """A list for every picture, kind and identity, in the order of attempts."""
        with self._lock:
            return [list(answers) for answers in self._answers.values()]

    def of(self, picture: str, kind: str, identity: str) -> list[Answer]:
        with self._lock:
            return list(self._answers.get((picture, kind, identity), ()))

    def add(self, answer: Answer) -> None:
        """Raises FileError, a full disk among them."""
        line = json.dumps(vars(answer), ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        with self._lock:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with self.path.open("ab+") as file:
                    if file.tell() and os.pread(file.fileno(), 1, file.tell() - 1) != b"\n":
                        file.write(b"\n")  # a torn line shall not take this one with it
                    file.write(line)
            except OSError as error:
                raise write_error(self.path, error) from error
            self._remember(answer)

    def tokens(self) -> tuple[int, int, int]:
        """(answers that the server counted, tokens in, tokens out)."""
        counted = [a for answers in self._answers.values() for a in answers if a.tokens_in]
        return len(counted), sum(a.tokens_in for a in counted), sum(a.tokens_out for a in counted)


def journal_path(work: Work, shard: int) -> Path:
    return work.path("caption", shard).with_suffix(".jsonl")


def follow(work: Work, shards: Sequence[int]) -> int:
    """Copy answers about pictures that lie in another shard now to that shard's journal; returns how many.

    Only journals are read whose table is missing or of another scan, so a folder at rest costs a look at its marks.
    What arrived is not copied again, so it may be interrupted. In memory: the hashes of pictures that moved.
    """
    planned = set(shards)
    lost: dict[Path, set[str]] = {}  # journal -> pictures that are not in its shard
    for path in sorted((work.folder / "caption").glob("*.jsonl")):
        if not path.stem.isdecimal():
            continue
        shard = int(path.stem)
        table, scan = work.mark("caption", shard), work.mark("scan", shard) if shard in planned else None
        if table is None or scan is None or table.reads.get("scan") != scan.sha256:
            here = set(pictures_of(work, shard)) if scan is not None else set[str]()
            lost[path] = {answers[0].picture for answers in Journal(path).all()} - here
    home = find(work, shards, set[str]().union(*lost.values()))
    copied = 0
    for path in (path for path, pictures in lost.items() if not pictures.isdisjoint(home)):
        pictures = lost[path] & home.keys()
        moved = [answers for answers in Journal(path).all() if answers[0].picture in pictures]
        targets = {home[a[0].picture]: Journal(journal_path(work, home[a[0].picture])) for a in moved}
        for answers in moved:
            one = answers[0]
            target = targets[home[one.picture]]
            for answer in answers[len(target.of(one.picture, one.kind, one.identity)) :]:
                target.add(answer)
                copied += 1
    return copied


def find(work: Work, shards: Sequence[int], wanted: Set[str]) -> dict[str, int]:
    """Picture -> the shard that it lies in, for those of `wanted` that lie in any."""
    if not wanted:
        return {}
    return {picture: shard for shard in shards for picture in pictures_of(work, shard) if picture in wanted}


def pictures_of(work: Work, shard: int) -> list[str]:
    """SHA-256 of a shard's files, those that could not be read left out."""
    return [sha for sha in work.read("scan", shard, columns=["sha256"])["sha256"].to_pylist() if sha is not None]
