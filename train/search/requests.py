"""The requests of a search: where they come from, how they are split, and which stand in a benchmark.

A split goes by item (both of "a doctor with two dogs" and "a doctor at night" are on one side), each category in
proportion. A request that a benchmark asks too is left out of drawn sets and refused in a file: a search that was run
on a test set says nothing by that test.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from backend.disk import read_error
from backend.errors import FileError, UsageError, os_reason, shown
from backend.foreign import documents
from train.evals.verifier.templates import SEEN
from train.evals.verifier.verify import Expectation, Wanted
from train.rl.chance import shuffled
from train.rl.prompts.near import normal_form
from train.rl.prompts.prompt_set import Rubric, parse
from train.search.config import Sizes
from train.world.scene_text import NUMBERS
from train.world.scenes import COLOURS

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
LEAK_WORDS = 8  # in a row that a request and a benchmark's prompt may not share
_FILE_LIMIT = 256_000_000  # bytes
_WORD = re.compile("[A-Z]{1,16}")  # on a sign; training draws up to five letters


@dataclass(frozen=True, kw_only=True)
class Request:
    """One request with the questions that its pictures are judged by."""

    id: str
    prompt: str
    category: str
    item: str
    rubrics: tuple[Rubric, ...]
    expectation: Expectation | None = None  # what the rules compare with; None: only a model can judge
    split: str = ""  # a name in SPLITS; empty: in none

    def row(self) -> dict[str, Any]:
        """The request for JSON; None and empty parts are left out."""
        said = dataclasses.asdict(self)
        return {key: value for key, value in said.items() if value not in (None, "")}


def parse_request(line: str) -> Request:
    """One line of a file: a prompt of reinforcement learning, `expectation` and `split` beside it. Raises ValueError
    with what is wrong."""
    try:
        said: Any = documents.parse_json(line)
    except documents.Unreadable as error:
        raise ValueError(str(error).removeprefix("is ")) from None
    if not isinstance(said, dict):
        raise ValueError("a request is a JSON object")
    expectation, split = said.pop("expectation", None), said.pop("split", "")
    prompt = parse(json.dumps(said))
    if split not in ("", *SPLITS):
        raise ValueError(f"the split {shown(split)} is none of {', '.join(SPLITS)}")
    if not prompt.prompt.strip():
        raise ValueError("the prompt is empty")
    if not prompt.rubrics and expectation is None:
        raise ValueError("there is nothing to judge its pictures by: no rubrics and no expectation")
    return Request(
        id=prompt.id, prompt=prompt.prompt, category=prompt.category, item=prompt.item, rubrics=prompt.rubrics,
        expectation=None if expectation is None else _expectation(expectation), split=split,
    )  # fmt: skip


def _expectation(said: Any) -> Expectation:
    """Raises ValueError for what is none."""
    try:
        things = tuple(Wanted(**thing) for thing in said["things"])
        made = Expectation(things=things, relation=said.get("relation"))
        for thing in things:
            known = thing.kind in SEEN and (thing.colour is None or thing.colour in COLOURS) and _fits(thing)
            if not known or type(thing.count) is not int or not 1 <= thing.count < len(NUMBERS):
                raise ValueError(f"the verifier knows no {shown(str(vars(thing)))}")
        return made
    except ValueError as error:
        raise ValueError(f"the expectation cannot be read: {error}") from None
    except (KeyError, TypeError, AttributeError):
        raise ValueError(
            'the expectation cannot be read: it is {"things": [{"kind": "cat", "count": 2}], "relation": null}'
        ) from None


def _fits(thing: Wanted) -> bool:
    """Whether the word, where one is asked for, is one that a sign can say."""
    word: Any = thing.word
    return word is None or (thing.kind == "sign" and isinstance(word, str) and bool(_WORD.fullmatch(word)))


def read_requests(path: Path) -> tuple[Request, ...]:
    """Every request of a JSON Lines file. Raises FileError, which names the line."""
    try:
        if path.stat().st_size > _FILE_LIMIT:
            raise FileError(f"{path} is larger than {_FILE_LIMIT:,} bytes", hint="a search takes some hundred requests")
        text = path.read_text("utf-8-sig")
    except OSError as error:
        raise read_error(path, error) from error
    except UnicodeDecodeError:
        raise FileError(f"{path} is not UTF-8 text", hint="save it as UTF-8") from None
    found: dict[str, Request] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            request = parse_request(line)
        except ValueError as error:
            raise FileError(f"{path}, line {number}: {error}") from None
        if request.id in found:
            raise FileError(f"{path}, line {number}: the id {shown(request.id)} is there twice", hint="ids are unique")
        found[request.id] = request
    if not found:
        raise FileError(f"{path} holds no request", hint="one JSON object a line: id, prompt, category, item, rubrics")
    return tuple(found.values())


# -------------------------------------------------------------------------------------------------------------- splits


def split_requests(requests: Sequence[Request], sizes: Sizes, seed: int) -> tuple[Request, ...]:
    """Every request that is used, with its split; a function of the arguments.

    Requests that name their split themselves keep it. Raises UsageError where they are too few.
    """
    given = [request for request in requests if request.split]
    if given and len(given) != len(requests):
        raise UsageError("some requests name their split and others do not", hint="all or none")
    sides: dict[str, list[Request]] = {name: [] for name in SPLITS}
    if given:
        for request in requests:
            sides[request.split].append(request)
    else:
        for category in sorted({request.category for request in requests}):
            _share_items([r for r in requests if r.category == category], sizes, seed, sides)
        _level(sides, sizes)
    chosen: list[Request] = []
    for name in SPLITS:
        wanted = getattr(sizes, name)
        picked = _proportional(sides[name], wanted, seed)
        if len(picked) < wanted:
            raise UsageError(
                f"the requests give {len(picked)} for the {name} split, not {wanted}: there are {len(requests)} of "
                f"{len({(r.category, normal_form(r.item)) for r in requests})} items",
                hint=f"more requests, or --{name} {max(1, len(picked))}",
            )
        chosen += [replace(request, split=name) for request in picked]
    _refuse_across(chosen)
    return tuple(chosen)


def _share_items(mine: Sequence[Request], sizes: Sizes, seed: int, sides: dict[str, list[Request]]) -> None:
    """Give each item of a category to the split that is furthest behind its share."""
    items: dict[str, list[Request]] = {}
    for request in mine:
        items.setdefault(normal_form(request.item), []).append(request)
    whole = sum(getattr(sizes, name) for name in SPLITS)
    had = dict.fromkeys(SPLITS, 0)
    for item in shuffled(items, "search split", seed, mine[0].category):
        behind = {name: len(mine) * getattr(sizes, name) / whole - had[name] for name in SPLITS}
        name = max(SPLITS, key=lambda side: behind[side])
        had[name] += len(items[item])
        sides[name] += items[item]


def _level(sides: dict[str, list[Request]], sizes: Sizes) -> None:
    """Move whole items from splits that have too many requests to those that lack some, as rounding left them."""
    for short in SPLITS:
        for rich in SPLITS:
            items: dict[tuple[str, str], list[Request]] = {}
            for request in sides[rich]:
                items.setdefault((request.category, normal_form(request.item)), []).append(request)
            for item in items.values():
                lacking = len(sides[short]) < getattr(sizes, short)
                if lacking and len(sides[rich]) - len(item) >= getattr(sizes, rich):
                    sides[rich] = [request for request in sides[rich] if request not in item]
                    sides[short] += item


def _proportional(requests: Sequence[Request], wanted: int, seed: int) -> list[Request]:
    """As many as are wanted, every category with its share; in an order where each stretch has about these shares."""
    strata: dict[str, list[Request]] = {}
    by_id = {request.id: request for request in requests}
    for name in shuffled(by_id, "search order", seed):
        strata.setdefault(by_id[name].category, []).append(by_id[name])
    keyed = [
        ((place + 0.5) / len(stratum), request.id, request)
        for stratum in strata.values()
        for place, request in enumerate(stratum)
    ]
    ordered = [request for _, _, request in sorted(keyed, key=lambda entry: entry[:2])]
    if len(ordered) <= wanted:
        return ordered
    # Evenly over the merged order, so that each category gives its share.
    return [ordered[int(place * len(ordered) / wanted)] for place in range(wanted)]


def _refuse_across(chosen: Sequence[Request]) -> None:
    """Raises UsageError where one wording stands in two splits."""
    seen: dict[str, Request] = {}
    for request in chosen:
        other = seen.setdefault(normal_form(request.prompt), request)
        if other.split != request.split:
            raise UsageError(
                f"{shown(request.prompt)} is in the {other.split} and in the {request.split} split",
                hint="give both one item, or leave one out",
            )


def batch_of(train: Sequence[Request], size: int, iteration: int) -> tuple[Request, ...]:
    """The batch of an iteration, from 0: the train split in its order, round and round."""
    return tuple(train[(iteration * size + place) % len(train)] for place in range(size))


# --------------------------------------------------------------------------------------------------------------- leaks


@functools.cache
def _shipped_benchmarks() -> dict[str, list[str]]:
    from train.evals import nano_prompts, nano_requests
    from train.suites.prompts import read_prompts
    from train.suites.table import SUITES

    kept = (*nano_prompts.prompts(), *nano_requests.requests())
    found = {"lens eval nano": [text for p in kept for text in (p.brief, p.dense)]}
    for name, suite in SUITES.items():
        if suite.shipped and name != "nano":
            found[name] = [prompt.prompt for prompt in read_prompts(suite, None)]
    return found


@functools.cache
def benchmark_runs() -> frozenset[str]:
    """Every eight words in a row of every benchmark that is here."""
    return frozenset(run for texts in _shipped_benchmarks().values() for text in texts for run in word_runs(text))


def known_benchmarks(files: Iterable[Path] = ()) -> dict[str, list[str]]:
    """The prompts of the benchmarks that are here, by name, and of `files`: JSON Lines with a `prompt`, or one a line.

    Raises FileError.
    """
    found = dict(_shipped_benchmarks())
    for path in files:
        try:
            lines = path.read_text("utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = os_reason(error) if isinstance(error, OSError) else "not UTF-8 text"
            raise FileError(f"cannot read {path}: {reason}") from error
        found[path.name] = [text for line in lines if (text := _prompt_in(line))]
    return found


def _prompt_in(line: str) -> str:
    """The prompt of a line: the key `prompt` of a JSON object, else the line."""
    try:
        said = documents.parse_json(line)
    except documents.Unreadable:
        return line.strip()
    prompt = said.get("prompt") if isinstance(said, dict) else None
    return prompt.strip() if isinstance(prompt, str) else ""


def word_runs(text: str, words: int = LEAK_WORDS) -> frozenset[str]:
    """Every run of so many words, without marks and capitals; of a shorter text none."""
    parts = normal_form(text).split()
    return frozenset(" ".join(parts[i : i + words]) for i in range(len(parts) - words + 1))


def leaks(
    requests: Iterable[Request], benchmarks: Mapping[str, Sequence[str]]
) -> Iterator[tuple[Request, str]]:  # fmt: skip
    """Every request that a benchmark has word for word, or shares eight words in a row with, and that benchmark."""
    whole = {normal_form(_without_opening(text)): name for name, texts in benchmarks.items() for text in texts}
    runs = {run: name for name, texts in benchmarks.items() for text in texts for run in word_runs(text)}
    for request in requests:
        name = whole.get(normal_form(_without_opening(request.prompt)))
        name = name or next((runs[run] for run in word_runs(request.prompt) if run in runs), None)
        if name is not None:
            yield request, name


def _without_opening(text: str) -> str:
    """Without "a picture with", "a photo of" and the like: the same request is the same request."""
    words = normal_form(text).split()
    if len(words) > 3 and words[0] in ("a", "an") and words[1] in ("picture", "photo", "image", "drawing"):
        return " ".join(words[3:])
    return text
