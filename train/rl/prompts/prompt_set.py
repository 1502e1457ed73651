"""Prompts with their rubrics for reinforcement learning: a JSONL file, what is wrong with it, its split and its order.

    {"id": "animal.predators.red-fox-in-snow.17", "prompt": "…", "category": "animal", "subcategory": "predators",
     "item": "red fox in snow", "dimensions": ["count"], "rubrics": [{"kind": "count", "text": "Are there …?"}],
     "sensitive": false, "writer": "grammar 1"}

`id`, `prompt`, `category`, `item` and `rubrics` have to be there. Everything random here is a function of a seed and
of what each prompt is, so a run that goes on sees what an uninterrupted one would have seen.

Light ring: standard library only.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from backend.disk import read_error, write_atomic
from backend.errors import FileError, UsageError
from backend.foreign import documents
from train.rl.chance import shuffled, unit
from train.rl.prompts.near import normal_form

RUBRIC_KINDS = ("item", "attribute", "spatial", "count", "interaction", "color", "text", "global")


@dataclass(frozen=True, kw_only=True)
class Rubric:
    """One question about a picture; yes is the good answer."""

    kind: str  # a name in RUBRIC_KINDS
    text: str


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One request for a picture, where it comes from, and the questions by which its pictures are judged."""

    id: str
    prompt: str
    category: str
    item: str  # prompts of one item are on one side of a split
    rubrics: tuple[Rubric, ...]
    subcategory: str = ""
    dimensions: tuple[str, ...] = ()
    sensitive: bool = False
    writer: str = ""  # who wrote it: a model, or the grammar; empty: not said


@dataclass(frozen=True)
class PromptSet:
    """Prompts in the order of their file, no two with the same id."""

    prompts: tuple[Prompt, ...]
    lines: tuple[int, ...] = field(default=(), compare=False)  # of the file, for messages; empty: none was read

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for number, prompt in enumerate(self.prompts):
            if prompt.id in seen:
                raise UsageError(f"{self.where(number)}: there are two prompts {prompt.id!r}")
            seen.add(prompt.id)

    def where(self, number: int) -> str:
        """How a message names a prompt: by its line where there is a file."""
        return f"line {self.lines[number]}" if self.lines else f"prompt {number + 1}"

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that the prompts say, whatever their order."""
        lines = sorted(_line(prompt) for prompt in self.prompts)
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def split(self, held_out: float, seed: int) -> tuple[PromptSet, PromptSet]:
        """(to train on, held out): in each category that share of its items, with all their prompts.

        An item that is added later moves at most one other from one side to the other. Raises UsageError for a share
        outside [0, 1).
        """
        if not 0 <= held_out < 1:
            raise UsageError(f"a share of {held_out} cannot be held out", hint="at least 0, below 1")
        items: dict[str, set[str]] = {}
        for prompt in self.prompts:
            items.setdefault(prompt.category, set()).add(normal_form(prompt.item))
        out = {
            (category, item)
            for category, names in items.items()
            for item in shuffled(names, "held out", seed, category)[: int(held_out * len(names) + 0.5)]
        }
        sides: tuple[list[Prompt], list[Prompt]] = ([], [])
        for prompt in self.prompts:
            sides[(prompt.category, normal_form(prompt.item)) in out].append(prompt)
        return PromptSet(tuple(sides[0])), PromptSet(tuple(sides[1]))

    def part(self, share: float, without: Sequence[str], seed: int) -> PromptSet:
        """That share of each category's prompts, one at least, but for the categories in `without`.

        A smaller share is part of a larger one. Raises UsageError for an unknown category, and where nothing is left.
        """
        strata: dict[str, dict[str, Prompt]] = {}
        for prompt in self.prompts:
            strata.setdefault(prompt.category, {})[prompt.id] = prompt
        for name in without:
            if strata.pop(name, None) is None:
                raise UsageError(f"no prompt is of the category {name!r}", hint=f"there are {', '.join(strata)}")
        kept = {
            name
            for category, stratum in strata.items()
            for name in shuffled(stratum, "share", seed, category)[: max(1, round(share * len(stratum)))]
        }
        if not kept:
            raise UsageError("no prompt is left to train on", hint="a smaller held_out, or fewer in without")
        return PromptSet(tuple(prompt for prompt in self.prompts if prompt.id in kept))

    def epoch(self, seed: int, epoch: int, groups: int) -> list[Prompt]:
        """The prompts of epoch `epoch` (from 0), one for each of `groups` groups; a function of the arguments.

        Every prompt comes once before any comes twice. Sensitive ones are spread evenly, and so is each category: an
        epoch has their shares of the set, give or take one or two. Raises UsageError without a prompt or a group.
        """
        if not self.prompts or groups < 1 or epoch < 0:
            raise UsageError(f"no epoch {epoch} of {groups} groups can be made of {len(self.prompts)} prompts")
        size = len(self.prompts)
        first, last = epoch * groups, (epoch + 1) * groups
        rounds = {number: self._round(seed, number) for number in range(first // size, (last - 1) // size + 1)}
        return [rounds[place // size][place % size] for place in range(first, last)]

    def _round(self, seed: int, number: int) -> list[Prompt]:
        """All prompts once, in the order of that round."""
        sides: list[list[Prompt]] = []
        for sensitive in (False, True):
            strata: dict[str, list[Prompt]] = {}
            for prompt in sorted(self.prompts, key=lambda prompt: prompt.id):
                if prompt.sensitive is sensitive:
                    strata.setdefault(prompt.category, []).append(prompt)
            sides.append(_spread([_shuffle(stratum, seed, number) for stratum in strata.values()], seed, number))
        return _spread(sides, seed, number)


def _shuffle(prompts: Sequence[Prompt], seed: int, number: int) -> list[Prompt]:
    by_id = {prompt.id: prompt for prompt in prompts}
    return [by_id[name] for name in shuffled(by_id, "order", seed, number)]


def _spread(rows: Iterable[Sequence[Prompt]], seed: int, number: int) -> list[Prompt]:
    """The rows merged so that every stretch of the result has about the same share of each."""
    keyed: list[tuple[float, str, Prompt]] = []
    for row in rows:
        start = unit("start", seed, number, *(prompt.id for prompt in row[:1]))
        keyed += [((place + start) / len(row), prompt.id, prompt) for place, prompt in enumerate(row)]
    return [prompt for _, _, prompt in sorted(keyed, key=lambda entry: entry[:2])]


# ------------------------------------------------------------------------------------------------------------- the file


def read(path: Path) -> PromptSet:
    """Read a JSONL file of prompts; empty lines are left out. Raises FileError, which names the line."""
    try:
        text = path.read_text("utf-8-sig")
    except OSError as error:
        raise read_error(path, error, "lens train rl prompts write FILE makes one") from error
    except UnicodeDecodeError:
        raise FileError(f"{path} is not UTF-8 text", hint="save it as UTF-8") from None
    prompts: list[Prompt] = []
    lines: dict[str, int] = {}  # id -> its line
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            prompt = parse(line)
        except ValueError as error:
            raise FileError(f"{path}, line {number}: {error}") from None
        if (before := lines.setdefault(prompt.id, number)) != number:
            raise FileError(f"{path}, line {number}: line {before} has the id {prompt.id!r} too", hint="ids are unique")
        prompts.append(prompt)
    if not prompts:
        raise FileError(f"{path} holds no prompt", hint="one JSON object a line")
    return PromptSet(tuple(prompts), tuple(lines.values()))


def write(path: Path, prompts: PromptSet) -> None:
    """Write them as `read` reads them, whole or not at all. Raises FileError."""
    write_atomic(path, "".join(f"{_line(prompt)}\n" for prompt in prompts.prompts).encode())


def _line(prompt: Prompt) -> str:
    return json.dumps(dataclasses.asdict(prompt), ensure_ascii=False)


_TEXTS = ("id", "prompt", "category", "item", "subcategory", "writer")
_NEEDED = ("id", "prompt", "category", "item", "rubrics")


def parse(line: str) -> Prompt:
    """Raises ValueError with what is wrong."""
    try:
        said: Any = documents.parse_json(line)
    except documents.Unreadable as error:
        raise ValueError(str(error).removeprefix("is ")) from None
    if not isinstance(said, dict):
        raise ValueError("a prompt is a JSON object")
    known = [entry.name for entry in dataclasses.fields(Prompt)]
    if unknown := sorted(set(said) - set(known)):
        raise ValueError(f"unknown key {unknown[0]!r}; known: {', '.join(known)}")
    if missing := [key for key in _NEEDED if key not in said]:
        raise ValueError(f"{missing[0]} is missing")
    if bad := [key for key in _TEXTS if not isinstance(said.get(key, ""), str)]:
        raise ValueError(f"{bad[0]} is {said[bad[0]]!r}, not a text")
    if not said["id"].strip():
        raise ValueError("the id is empty")
    if not isinstance(said.get("sensitive", False), bool):
        raise ValueError(f"sensitive is {said['sensitive']!r}, not true or false")
    dimensions = said.get("dimensions", [])
    if not isinstance(dimensions, list) or not all(isinstance(name, str) for name in dimensions):
        raise ValueError(f"dimensions is {dimensions!r}, not a list of texts")
    if not isinstance(said["rubrics"], list):
        raise ValueError(f"rubrics is {said['rubrics']!r}, not a list")
    rubrics = tuple(_rubric(entry) for entry in said["rubrics"])
    return Prompt(**{**said, "dimensions": tuple(dimensions), "rubrics": rubrics})


def _rubric(entry: Any) -> Rubric:
    if not isinstance(entry, dict) or set(entry) != {"kind", "text"} or not isinstance(entry["text"], str):
        raise ValueError(f"the rubric {entry!r} is not of the form {{'kind': …, 'text': …}}")
    if entry["kind"] not in RUBRIC_KINDS:
        raise ValueError(f"unknown kind of rubric {entry['kind']!r}; known: {', '.join(RUBRIC_KINDS)}")
    return Rubric(kind=entry["kind"], text=entry["text"])
