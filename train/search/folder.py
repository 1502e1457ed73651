"""The folder of a search: plain files that a person can read, and that a crash leaves whole.

    config.json       what the search depends on, with a hash of itself and of every other frozen file
    requests.jsonl    the requests with their split
    candidates/c0003/ system.md, meta.json
    analyses/         i0003.md: what the writer saw; i0003.reply.json: what it answered
    events.jsonl      what was decided, in order; the search is replayed from it
    samples.jsonl     a line a picture: candidate, request, seed, rewrite, verdict, score
    rewrites.jsonl, verdicts.jsonl, pictures/    what was made once and is not made again
    spent.jsonl       pictures, seconds and dollars
    STOP              (a person's) finish the picture at hand and stop

Every line of `events.jsonl` and `samples.jsonl` has a check over itself and all before it: a line that a crash tore is
cut off, a byte that somebody changed is an error. The number of validated candidates is in the events and once more in
`validated.json`, and a search whose events know less than that file does not go on.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

from backend.cache.lines import JsonLines
from backend.disk import file_sha256, make_folder, path_below, read_error, write_atomic
from backend.errors import FileError, UsageError, os_reason
from backend.foreign import documents
from train.overrides import as_json, from_json
from train.search.config import VERSION, SearchConfig
from train.search.requests import Request, parse_request

CONFIG, REQUESTS, EVENTS, SAMPLES, VALIDATED = (
    "config.json", "requests.jsonl", "events.jsonl", "samples.jsonl", "validated.json",
)  # fmt: skip
_START = "0" * 16


def text_sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def canonical(value: Any) -> str:
    """JSON with one form for one value, to be hashed."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


class CheckedLines:
    """A file of JSON Lines that only grows, each with a check over itself and the one before it."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        """Reads what is there; a last line without its end is cut off. Raises FileError where a line is damaged."""
        self.path, self.rows, self._check = path, list[dict[str, Any]](), _START
        try:
            data = path.read_bytes() if path.exists() else b""
            whole = data[: data.rfind(b"\n") + 1]
            if len(whole) < len(data) and not read_only:
                os.truncate(path, len(whole))
        except OSError as error:
            raise read_error(path, error) from error
        for number, line in enumerate(whole.split(b"\n")[:-1], start=1):
            self.rows.append(self._checked(line, number))
        self._lines = JsonLines(path)

    def _checked(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            row: Any = documents.parse_json(line)
            said = row.pop("check")
        except (ValueError, AttributeError, KeyError, TypeError):
            said, row = None, {}
        self._check = self._next(row)
        if said != self._check:
            raise FileError(
                f"{self.path}, line {number} is damaged: its check does not fit",
                hint="restore the file; or begin anew in another folder: lens prompt-search init … --fork FOLDER",
            )
        return row

    def _next(self, row: Mapping[str, Any]) -> str:
        return text_sha256(self._check + canonical(row))[:16]

    def append(self, row: dict[str, Any], *, flush: bool = True) -> None:
        """Write one row. Raises FileError, a full disk among them."""
        check = self._next(row)
        self._lines.append({**row, "check": check}, flush=flush)
        self._check = check
        self.rows.append(row)


class SearchFolder:
    """An opened search. One process at a time; `close` lets the next one in."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        """Raises UsageError where there is no search, one of another version, or one that runs already; FileError where
        a file is damaged. `read_only`: to look at it, also while another process searches."""
        self.path = path
        if not (path / CONFIG).is_file():
            raise UsageError(f"{path} holds no search", hint=f"lens prompt-search init {path}")
        self._lock = FileLock(path / "LOCK")
        try:
            if not read_only:
                self._lock.acquire(timeout=0)
        except Timeout:
            raise UsageError(f"another process searches in {path}", hint="wait for it, or end it") from None
        except OSError as error:
            raise FileError(f"cannot write {path / 'LOCK'}: {os_reason(error)}") from error
        try:
            self.config, self.frozen = _read_config(path)
            self.requests = _read_requests(path, self.frozen)
            self.events, self.samples = (
                CheckedLines(path / name, read_only=read_only) for name in (EVENTS, SAMPLES)
            )  # fmt: skip
            self._check_validated()
        except BaseException:
            self._lock.release()
            raise

    # -------------------------------------------------------------------------------------------------------- the files

    def split(self, name: str) -> tuple[Request, ...]:
        return tuple(request for request in self.requests if request.split == name)

    def picture(self, key: str) -> Path:
        """Where the picture of a key (hexadecimal) lies."""
        return path_below(self.path / "pictures", f"{key[:2]}/{key}.png", source=str(self.path / SAMPLES))

    def candidate(self, name: str) -> Path:
        return path_below(self.path / "candidates", f"{name}/system.md", source=str(self.path / EVENTS)).parent

    def keep_candidate(self, name: str, text: str, meta: Mapping[str, Any]) -> None:
        """Write a candidate's text and what is known about it. Raises FileError."""
        folder = self.candidate(name)
        make_folder(folder)
        write_atomic(folder / "meta.json", json.dumps({**meta, "sha256": text_sha256(text)}, indent=1).encode())
        write_atomic(folder / "system.md", text.encode())

    def text_of(self, name: str) -> str:
        """A candidate's text. Raises FileError where it is gone or not what it was."""
        folder = self.candidate(name)
        try:
            text = (folder / "system.md").read_bytes().decode()
            said = documents.parse_json(documents.read_bytes(folder / "meta.json"))["sha256"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise FileError(f"{folder} cannot be read: {error}") from error
        if text_sha256(text) != said:
            raise FileError(f"{folder / 'system.md'} was changed", hint="restore it; a changed prompt is a candidate")
        return text

    def analysis(self, iteration: int, kind: str) -> Path:
        """i0003.md (what the writer saw) or i0003.reply.json."""
        return self.path / "analyses" / f"i{iteration:04d}.{kind}"

    def stopping(self) -> bool:
        """Whether a person has put a file STOP there."""
        return (self.path / "STOP").exists()

    # ------------------------------------------------------------------------------------------- validated candidates

    @property
    def validated(self) -> int:
        """How many candidates have been looked at on the validation split, those of the search it was forked from
        among them."""
        return int(self.frozen["validated_before"]) + sum(row["event"] == "validating" for row in self.events.rows)

    def begin_validation(self, row: dict[str, Any]) -> None:
        """Count a candidate, on the disk, before anything of it is looked at."""
        write_atomic(self.path / VALIDATED, json.dumps({"validated": self.validated + 1}).encode())
        self.events.append(row)

    def _check_validated(self) -> None:
        try:
            said = documents.parse_json(documents.read_bytes(self.path / VALIDATED))["validated"]
        except (OSError, ValueError, KeyError, TypeError):
            raise FileError(f"{self.path / VALIDATED} is gone or damaged", hint="restore it") from None
        # One more where a crash came between the two files: that candidate's number is then used twice, by itself.
        if not isinstance(said, int) or said not in (self.validated, self.validated + 1):
            raise FileError(
                f"{self.path / EVENTS} knows {self.validated} validated candidates, {VALIDATED} {said}",
                hint="restore both files: setting the count back would make every later promotion too easy",
            )

    def close(self) -> None:
        self._lock.release()

    def __enter__(self) -> SearchFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


# ------------------------------------------------------------------------------------------------------------- making


def create(
    path: Path, config: SearchConfig, requests: tuple[Request, ...], frozen: Mapping[str, Any], seed_prompt: str
) -> None:
    """Make the folder of a new search. `frozen`: what else must not change: identities, hashes, what is locked.

    Raises UsageError where there is something already, FileError.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UsageError(
            f"{path} is there already, and not empty", hint="another folder; --fork takes its results over"
        )
    make_folder(path)
    make_folder(path / "pictures")
    lines = "".join(f"{json.dumps(request.row(), ensure_ascii=False)}\n" for request in requests)
    write_atomic(path / REQUESTS, lines.encode())
    folder = path / "candidates" / "c0000"
    make_folder(folder)
    meta = {"parent": None, "iteration": None, "changes": "the first prompt", "sha256": text_sha256(seed_prompt)}
    write_atomic(folder / "meta.json", json.dumps(meta, indent=1).encode())
    write_atomic(folder / "system.md", seed_prompt.encode())
    write_atomic(path / VALIDATED, json.dumps({"validated": int(frozen.get("validated_before", 0))}).encode())
    said: dict[str, Any] = {
        "version": VERSION,
        "config": as_json(config),
        "frozen": {
            "validated_before": 0, **frozen, "requests": text_sha256(lines), "first_prompt": text_sha256(seed_prompt),
        },
    }  # fmt: skip
    # Last: a folder without it is none.
    write_atomic(path / CONFIG, json.dumps({**said, "sha256": text_sha256(canonical(said))}, indent=1).encode())


def _read_config(path: Path) -> tuple[SearchConfig, dict[str, Any]]:
    at = path / CONFIG
    try:
        said: Any = documents.parse_json(documents.read_bytes(at))
        version, whole = said["version"], said.pop("sha256")
    except OSError as error:
        raise read_error(at, error) from error
    except (ValueError, KeyError, TypeError, AttributeError):
        raise FileError(f"{at} is damaged", hint="restore it") from None
    if version != VERSION:
        raise UsageError(f"{path} is a search of version {str(version)[:20]}, and this is {VERSION}", hint="begin anew")
    if text_sha256(canonical(said)) != whole:
        raise FileError(
            f"{at} was changed after the search began", hint="a search with other settings: init another folder --fork"
        )
    return from_json(SearchConfig, said["config"]), said["frozen"]


def _read_requests(path: Path, frozen: Mapping[str, Any]) -> tuple[Request, ...]:
    at = path / REQUESTS
    try:
        if file_sha256(at) != frozen["requests"]:
            raise FileError(f"{at} was changed after the search began", hint="restore it")
        lines = at.read_text("utf-8").splitlines()
    except OSError as error:
        raise read_error(at, error) from error
    try:
        return tuple(parse_request(line) for line in lines)
    except ValueError as error:  # the bytes are what was written, so another version wrote them
        raise FileError(f"{at}: {error}", hint="begin anew: another version of lens made this search") from None


def candidates(folder: Path) -> Iterator[str]:
    """The names of all candidates, in order."""
    yield from sorted(entry.name for entry in (folder / "candidates").iterdir() if (entry / "system.md").is_file())
