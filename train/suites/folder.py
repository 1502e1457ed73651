"""A run's folder: pictures are stored once, whatever reads them later.

    protocol.json                  what decides the pictures; a run goes on only where it is the same
    samples.jsonl                  a line a picture, appended; of shard 2 of 4 samples-2-of-4.jsonl
    images/KIND/ID/INDEX.png       each with its prompts, seed, model and reasoner inside
    scores/SCORER.jsonl            what scorers said (`train.suites.scores`)

Folders of shards that were drawn elsewhere may be copied into one another: their files have different names.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, cast

from backend.cache.lines import JsonLines
from backend.disk import make_folder, path_below, read_error, write_atomic
from backend.errors import FileError, UsageError
from backend.foreign import documents
from train.suites.prompts import SuitePrompt

PROTOCOL, IMAGES, SCORES = "protocol.json", "images", "scores"
FORMAT = 1
MADE, REFUSED, NO_REWRITE, FAILED, MISSING = "made", "refused", "no rewrite", "failed", "missing"
Key = tuple[str, int]  # (prompt's id, which picture of it from 0)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What became of one picture."""

    id: str  # of the prompt
    kind: str  # of the prompt
    index: int  # which picture of the prompt, from 0
    asked: str  # the suite's prompt
    prompt: str  # what was drawn: `asked`, or its rewriting
    seed: int
    state: str  # MADE, REFUSED, NO_REWRITE or FAILED
    rewrite: str  # none, rewritten; or REFUSED, NO_REWRITE where `asked` was drawn in its place
    reason: str = ""  # of what is not MADE, and of a rewrite that was not to be had
    seconds: float = 0.0  # to draw
    rewrite_seconds: float = 0.0  # 0: by an earlier picture of the prompt
    pixels: str = ""  # SHA-256 of the picture's pixels

    @property
    def key(self) -> Key:
        return self.id, self.index


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One of `count` disjoint parts of a suite, told by a hash of the prompt's id."""

    number: int = 1  # from 1
    count: int = 1

    @property
    def name(self) -> str:
        return "" if self.count == 1 else f"-{self.number}-of-{self.count}"

    def holds(self, prompt: SuitePrompt) -> bool:
        return stable_number(prompt.id) % self.count == self.number - 1


def stable_number(text: str) -> int:
    """A number below 2^40 that a text alone decides."""
    import hashlib

    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:5], "big")


@dataclass(frozen=True)
class RunFolder:
    """Pictures of one suite by one model under one protocol."""

    path: Path

    @contextmanager
    def writing(self, protocol: Mapping[str, Any], shard: Shard) -> Generator[JsonLines]:
        """Make the folder, or go on with it; the shard's samples to append to, locked against a second process.

        Raises UsageError where it holds another protocol's pictures or is being written, FileError.
        """
        from filelock import FileLock, Timeout

        make_folder(self.path)
        lock = FileLock(self.path / f".lock{shard.name}")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise UsageError(f"another process draws into {self.path} at the moment") from None
        try:
            wanted = json.loads(json.dumps({"format": FORMAT, **protocol}))
            if (self.path / PROTOCOL).exists():
                before = self.protocol()
                changed = sorted(key for key in {*before, *wanted} if before.get(key) != wanted.get(key))
                if changed:
                    raise UsageError(
                        f"{self.path} holds pictures of another protocol ({', '.join(changed)})",
                        hint="give another --out; pictures of two protocols make no one score",
                    )
            elif any(entry.name != lock_name(lock.lock_file) for entry in self.path.iterdir()):
                raise UsageError(f"{self.path} is not empty and holds no run", hint="give a folder of its own: --out")
            else:
                write_atomic(self.path / PROTOCOL, json.dumps(wanted, indent=1, ensure_ascii=False).encode())
            yield JsonLines(self.path / f"samples{shard.name}.jsonl")
        finally:
            lock.release()

    def protocol(self) -> dict[str, Any]:
        """What decided the pictures. Raises UsageError where this is no run, FileError where it is damaged."""
        path = self.path / PROTOCOL
        if not path.is_file():
            raise UsageError(
                f"{self.path} is no run of lens eval: it has no {PROTOCOL}",
                hint="make one: lens eval generate SUITE --out DIR",
            )
        try:
            found = documents.parse_json(documents.read_bytes(path, 1 << 20))
        except OSError as error:
            raise read_error(path, error) from error
        except documents.Unreadable:
            raise FileError(f"{path} is damaged: it is no JSON", hint="draw into another --out") from None
        if not isinstance(found, dict) or not isinstance(cast("dict[str, Any]", found).get("suite"), str):
            raise FileError(f"{path} is damaged: it names no suite", hint="draw into another --out")
        protocol = cast("dict[str, Any]", found)
        if protocol.get("format") != FORMAT:
            raise FileError(f"{path} has format {protocol.get('format')!r}; this version of lens reads {FORMAT}")
        return protocol

    def samples(self) -> dict[Key, Sample]:
        """What is there, of all shards; a picture's last line counts. Raises FileError for a line of another form."""
        known = {field.name for field in fields(Sample)}
        found: dict[Key, Sample] = {}
        for path in sorted(self.path.glob("samples*.jsonl")):
            for row in JsonLines(path).read():
                try:
                    sample = Sample(**row)
                    if not isinstance(sample.id, str) or type(sample.index) is not int:
                        raise TypeError("id or index")
                except TypeError:
                    strange = sorted(known ^ set(row))
                    raise FileError(f"{path} holds a line of another form ({', '.join(strange)[:80]})") from None
                found[sample.key] = sample
        return found

    def picture(self, prompt: SuitePrompt, index: int) -> Path:
        """Where a picture lies. Raises UntrustedError for an id that leads elsewhere."""
        name = f"{prompt.kind}/{prompt.id}/{index}.png"
        return path_below(self.path / IMAGES, name, source="the suite")

    def add(self, lines: JsonLines, prompt: SuitePrompt, sample: Sample, picture: bytes | None) -> None:
        """Keep a picture, where there is one, and then its line. Raises FileError."""
        if picture is not None:
            path = self.picture(prompt, sample.index)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, picture)
        lines.append(asdict(sample), flush=True)

    def states(self, prompts: Sequence[SuitePrompt], images: int) -> dict[Key, str]:
        """Every picture of the suite and what became of it; MISSING: it was never drawn, or its file is gone."""
        samples = self.samples()
        states: dict[Key, str] = {}
        for prompt in prompts:
            for index in range(images):
                sample = samples.get((prompt.id, index))
                state = MISSING if sample is None else sample.state
                if state == MADE and not self.picture(prompt, index).is_file():
                    state = MISSING
                states[prompt.id, index] = state
        return states


def lock_name(path: str) -> str:
    return Path(path).name
