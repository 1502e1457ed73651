"""The prompts of a suite, read from its published files, which anybody may have edited: each has to be as its authors
describe it, every read has a bound, and an identifier that could not be a file's name is refused.

What an evaluator needs of a row stays beside its prompt; a rewrite changes what is drawn, never this.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

from backend.disk import read_error
from backend.errors import FileError, UsageError, shown
from backend.foreign import documents
from backend.requests import PROMPT_LIMIT
from train.suites.table import SHIPPED, Suite

MOST_BYTES = 32 * 2**20  # of one file; the largest published one has 1.5 MB
MOST_PROMPTS = 20_000
ONEIG_CLASSES = {
    "Anime_Stylization": "anime", "Portrait": "human", "General_Object": "object", "Text_Rendering": "text",
    "Knowledge_Reasoning": "reasoning", "Multilingualism": "multilingualism",
}  # fmt: skip
_ID = re.compile(r"[0-9A-Za-z][0-9A-Za-z_-]{0,63}")
_KIND = re.compile(r"[0-9A-Za-z][0-9A-Za-z ._&+-]{0,63}")


@dataclass(frozen=True, kw_only=True)
class SuitePrompt:
    """One prompt and what its picture is judged by."""

    id: str  # within its suite, fit for a file's name: "00017", "anime-003", "0142"
    kind: str  # the tag, class or number of regions by which scores are grouped
    number: int  # place in the published order, from 0
    prompt: str
    texts: tuple[str, ...] = ()  # what has to be written in the picture
    line: str = ""  # the published line, unchanged, where an evaluator wants it back
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])  # what else scorers read


Rows = Iterator[SuitePrompt]


def read_prompts(suite: Suite, data: Path | None, fetched: Path | None = None) -> tuple[SuitePrompt, ...]:
    """All prompts of a suite. `data`: its file, or the folder that holds it; None: `fetched`, or the package.

    Raises UsageError where there are none here, FileError for files that are not as published.
    """
    place = data or (SHIPPED / suite.shipped if suite.shipped else fetched)
    if place is None or not place.exists():
        where = f"{place} does not exist" if data is not None else "its prompts are not part of lens"
        how = f"--fetch gets them (licence: {suite.licence})" if suite.urls else "they are read from a path only"
        raise UsageError(
            f"{suite.name}: {where}", hint=f"--data DIR, with {suite.files[0]} of {suite.source} in it; {how}"
        )
    found = tuple(READERS[suite.reader](suite, place))
    if not found:
        raise FileError(f"{place} holds no prompt of {suite.name}")
    seen: dict[str, int] = {}
    for prompt in found:
        if not _ID.fullmatch(prompt.id) or not _KIND.fullmatch(prompt.kind):
            raise FileError(f"{place}: {shown(prompt.id)} ({shown(prompt.kind)}) cannot name a prompt")
        if prompt.id in seen:
            raise FileError(f"{place}: two prompts are called {prompt.id}")
        if not prompt.prompt.strip() or len(prompt.prompt) > PROMPT_LIMIT:
            raise FileError(f"{place}: {prompt.id} has {len(prompt.prompt):,} characters, of 1..{PROMPT_LIMIT:,}")
        seen[prompt.id] = prompt.number
    return found


def choose(
    prompts: Sequence[SuitePrompt], limit: int | None = None, per_kind: int | None = None, kinds: Sequence[str] = ()
) -> tuple[SuitePrompt, ...]:
    """Some of them, in the published order: the first of every kind in turn. Raises UsageError for an unknown kind."""
    known = list(dict.fromkeys(prompt.kind for prompt in prompts))
    if unknown := [kind for kind in kinds if kind not in known]:
        raise UsageError(f"no kind of prompt is called {', '.join(unknown)}", hint=f"there are {', '.join(known)}")
    rank: dict[str, int] = {}
    ranked: list[tuple[int, SuitePrompt]] = []
    for prompt in prompts:
        if not kinds or prompt.kind in kinds:
            place = rank[prompt.kind] = rank.get(prompt.kind, -1) + 1
            if per_kind is None or place < per_kind:
                ranked.append((place, prompt))
    ranked.sort(key=lambda pair: (pair[0], pair[1].number))
    return tuple(sorted((prompt for _, prompt in ranked[:limit]), key=lambda prompt: prompt.number))


def fingerprint(prompts: Sequence[SuitePrompt]) -> str:
    """SHA-256 of prompts and what they are judged by: scores compare only where this agrees."""
    text = json.dumps([asdict(prompt) for prompt in prompts], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


# -------------------------------------------------------------------------------------------------------------- readers


def data_file(place: Path, name: str) -> Path | None:
    """Find a suite's file `name`: in the folder `place`, in one of the suite's own below it, or `place` itself."""
    if place.is_file():
        return place if place.name == Path(name).name else None
    for folder in (place, place / "scripts/alignment", place / "scripts/text", place / "textbench", place / "CVTG-2K"):
        # The data's README writes CVTG-style, its evaluator CVTG-Style.
        for spelt in (name, name.replace("CVTG-Style", "CVTG-style")):
            if (folder / spelt).is_file():
                return folder / spelt
    return None


def read_text(path: Path) -> str:
    """A file of data. Raises FileError: unreadable, larger than MOST_BYTES, not UTF-8."""
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise FileError(f"{path} has more than {MOST_BYTES:,} bytes: it is no file of prompts")
        return data.decode("utf-8-sig")
    except OSError as error:
        raise read_error(path, error) from error
    except UnicodeDecodeError:
        raise FileError(f"{path} is not UTF-8 text") from None


def read_csv(path: Path) -> list[dict[str, str]]:
    """A table with a head. Raises FileError."""
    csv.field_size_limit(2**20)
    try:
        rows = list(csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True))
    except csv.Error as error:
        raise FileError(f"{path} is no CSV: {error}") from error
    if len(rows) > MOST_PROMPTS:
        raise FileError(f"{path} has more than {MOST_PROMPTS:,} rows")
    return [{str(key): value or "" for key, value in row.items() if isinstance(value, str | None)} for row in rows]


def read_json(path: Path) -> Any:
    """Raises FileError."""
    try:
        return documents.parse_json(read_text(path))
    except documents.Unreadable as error:
        raise FileError(f"{path} {str(error)[:80]}") from error


def _lines(path: Path) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """(number from 0, line, object) of a file of JSON lines."""
    for number, line in enumerate(text for text in read_text(path).splitlines() if text.strip()):
        try:
            row = documents.parse_json(line)
        except documents.Unreadable:
            row = None
        if not isinstance(row, dict) or number >= MOST_PROMPTS:
            raise FileError(f"{path}: line {number + 1} is no object of JSON, or one too many")
        yield number, line, cast("dict[str, Any]", row)


def _needed(suite: Suite, place: Path, name: str = "") -> Path:
    wanted = (name,) if name else suite.files
    for file in wanted:
        if (path := data_file(place, file)) is not None:
            return path
    if place.is_file() and len(suite.files) == 1:  # whatever it is called
        return place
    raise FileError(f"{place} holds no {' or '.join(wanted)}", hint=f"the files of {suite.source} are meant")


def _text(row: Mapping[str, Any], key: str, path: Path, number: int) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not value:
        raise FileError(f"{path}: row {number + 1} has no text {key!r}")
    return value


def _geneval(suite: Suite, place: Path) -> Rows:
    path = _needed(suite, place)
    for number, line, row in _lines(path):
        _check_clauses(row, path, number)
        yield SuitePrompt(
            id=f"{number:05d}", kind=_text(row, "tag", path, number), number=number,
            prompt=_text(row, "prompt", path, number), line=line,
            facts={"include": row["include"], "exclude": row.get("exclude", [])},
        )  # fmt: skip


def _check_clauses(row: Mapping[str, Any], path: Path, number: int) -> None:
    """Raises FileError unless `include` and `exclude` are what GenEval's rules can read."""
    try:
        for name in ("include", "exclude"):
            for place, clause in enumerate(row["include"] if name == "include" else row.get("exclude", [])):
                position = clause.get("position")
                good = isinstance(clause["class"], str) and type(clause["count"]) is int
                good = good and isinstance(clause.get("color", ""), str)
                if not good or (position is not None and not 0 <= position[1] < place):
                    raise ValueError(name)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError):
        raise FileError(f"{path}: row {number + 1} is no metadata of GenEval") from None


def _oneig(suite: Suite, place: Path) -> Rows:
    path = _needed(suite, place)
    text_file = data_file(place, suite.more[0])
    texts = {row.get("id", ""): row.get("text_content", "") for row in read_csv(text_file)} if text_file else {}
    key = "prompt_cn" if suite.language == "zh" else "prompt_en"
    for number, row in enumerate(read_csv(path)):
        category = _text(row, "category", path, number)
        kind, own = ONEIG_CLASSES.get(category), _text(row, "id", path, number)
        if kind is None or not re.fullmatch(r"\d{3}", own):
            raise FileError(f"{path}: row {number + 1} is of no known category, or its id has not three digits")
        wanted = (texts[own],) if kind == "text" and own in texts else ()
        yield SuitePrompt(
            id=f"{kind}-{own}", kind=kind, number=number, prompt=_text(row, key, path, number), texts=wanted,
            facts={"id": own},
        )  # fmt: skip


def _longtext(suite: Suite, place: Path) -> Rows:
    path = _needed(suite, place)
    for number, _, row in _lines(path):
        own, texts = row.get("prompt_id"), row.get("text")
        texts = [texts] if isinstance(texts, str) else texts
        if type(own) is not int or not 0 <= own < 10_000 or not isinstance(texts, list):
            raise FileError(f"{path}: row {number + 1} has no prompt_id, or no text")
        yield SuitePrompt(
            id=f"{own:04d}", kind=_text(row, "category", path, number), number=number,
            prompt=_text(row, "prompt", path, number), texts=tuple(map(str, cast("list[Any]", texts))),
            facts={"length": str(row.get("length", ""))},
        )  # fmt: skip


def _cvtg(suite: Suite, place: Path) -> Rows:
    number = 0
    for file in suite.files:
        part, regions = file.split("/")[0], Path(file).stem
        path = _needed(suite, place, file)
        rows = read_json(path)
        rows = rows.get("data_list") if isinstance(rows, dict) else None
        if not isinstance(rows, list):
            raise FileError(f"{path} has no data_list")
        for row in cast("list[Any]", rows):
            own = row.get("index") if isinstance(row, dict) else None
            if not isinstance(own, int | str) or not re.fullmatch(r"\d{1,6}", str(own)):
                raise FileError(f"{path}: an index is no number")
            said = cast("dict[str, Any]", row)
            sentences = said.get("sentence_list")
            yield SuitePrompt(
                id=f"{part}-{regions}-{own}", kind=regions, number=number, prompt=_text(said, "prompt", path, number),
                texts=tuple(map(str, cast("list[Any]", sentences))) if isinstance(sentences, list) else (),
                facts={"part": part, "index": str(own)},
            )  # fmt: skip
            number += 1


def _geneval2(suite: Suite, place: Path) -> Rows:
    path = _needed(suite, place)
    for number, _, row in _lines(path):
        questions = row.get("vqa_list")
        try:
            pairs = [[str(question), str(answer)] for question, answer in cast("list[Any]", questions)]
        except (TypeError, ValueError):
            raise FileError(f"{path}: row {number + 1} has no vqa_list of questions and answers") from None
        atoms = row.get("atom_count")
        kind = f"{atoms} atoms" if type(atoms) is int else "all"
        yield SuitePrompt(
            id=f"{number:04d}", kind=kind, number=number, prompt=_text(row, "prompt", path, number),
            facts={"questions": pairs, "skills": row.get("skills", [])},
        )  # fmt: skip


def _unigenbench(suite: Suite, place: Path) -> Rows:
    path = _needed(suite, place)
    for number, row in enumerate(read_csv(path)):
        key = "prompt" if "prompt" in row else next((name for name in row if name.startswith("prompt")), "prompt")
        own = row.get("index") or str(number)
        if not re.fullmatch(r"\d{1,6}", own):
            raise FileError(f"{path}: row {number + 1} has an index that is no number")
        points = _test_points(row.get("sub_dims", ""), path, number)
        yield SuitePrompt(
            id=own, kind="all", number=number, prompt=_text(row, key, path, number), facts={"points": points}
        )


def _test_points(text: str, path: Path, number: int) -> list[list[str]]:
    """(dimension, what has to be seen) of `{"Testpoints": […], "Testpoint Description": […]}`; none of nothing."""
    if not text.strip():
        return []
    try:
        said = documents.parse_json(text)
        return [[str(a), str(b)] for a, b in zip(said["Testpoints"], said["Testpoint Description"], strict=True)]
    except (ValueError, TypeError, KeyError):
        raise FileError(f"{path}: row {number + 1} has no test points that can be read in sub_dims") from None


def _nano(suite: Suite, place: Path) -> Rows:
    from train.evals.nano_prompts import prompts

    for prompt in prompts():
        yield SuitePrompt(
            id=prompt.id, kind=prompt.kind, number=prompt.number, prompt=prompt.brief,
            facts={"expectation": asdict(prompt.expectation)},
        )  # fmt: skip


READERS: Mapping[str, Callable[[Suite, Path], Rows]] = {
    "geneval": _geneval, "oneig": _oneig, "longtext": _longtext, "cvtg": _cvtg, "geneval2": _geneval2,
    "unigenbench": _unigenbench, "nano": _nano,
}  # fmt: skip
