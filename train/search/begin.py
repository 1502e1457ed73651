"""How a search begins: its requests, its first prompt, what it can find; then its folder, and a pilot.

A fork is a new search that takes over what another one has made and learnt: requests, splits, pictures, rewrites,
verdicts, the winner so far as its first prompt, and the number of candidates that were validated. That number goes on:
the validation requests have been looked at so often.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import prompts
from backend.disk import write_error
from backend.errors import UsageError, shown
from backend.paths import expanded
from backend.settings import load
from train.judge.choose import open_judge
from train.judge.config import EndpointJudge, RulesJudge
from train.search import folder as folders
from train.search.checks import HARD_LIMIT, locked_parts
from train.search.config import SearchConfig
from train.search.drawn import SOURCES, draw_requests
from train.search.evaluator import Evaluator, Parts, question_of, read_picture
from train.search.folder import SearchFolder
from train.search.parts import first_prompt
from train.search.plan import Noise, check_size, pilot
from train.search.requests import SPLITS, Request, known_benchmarks, leaks, read_requests, split_requests
from train.search.run import FIRST
from train.search.spending import Spending

_PARTS = ("rewriter", "generator", "judge")
AGAIN = 16  # pilot pictures that an endpoint's judge sees twice


@dataclass(frozen=True, kw_only=True)
class Start:
    """What a new search is to begin with."""

    config: SearchConfig
    requests: tuple[Request, ...]  # with their split
    prompt: str
    contract: str
    locked: tuple[str, ...]
    leaked: int  # requests that a benchmark has too, and that were kept because the person knows
    warnings: tuple[str, ...]
    fork: Path | None = None  # the folder of the search that is gone on from
    validated_before: int = 0
    test_seen: bool = False  # the test split was looked at by that search
    then: tuple[Any, ...] = ()  # that search's parts, seed and rule of reward


def prepare(
    config: SearchConfig, *, prompt: str | None, source: str, against: Sequence[Path] = (), knows: bool = False
) -> Start:
    """Look at everything that a search would begin with; makes and spends nothing.

    `prompt`: a name or a file; None: the reasoner's own. `source`: a name in SOURCES or a file of requests. `knows`:
    the person says that these requests are a test set. Raises UsageError, FileError.
    """
    system, contract = first_prompt(config, prompt, load())
    text, locked = locked_parts(system.body, contract)
    if len(text) > HARD_LIMIT:
        raise UsageError(f"the first prompt has {len(text):,} characters; {HARD_LIMIT:,} are allowed")
    benchmarks = known_benchmarks(against)
    sizes = config.sizes
    warnings = check_size(config)
    if source in SOURCES:
        found = draw_requests(sizes.train + sizes.validation + sizes.test, config.seed, benchmarks, source)
    else:
        found = read_requests(expanded(source))
    leaked = list(leaks(found, benchmarks))
    if leaked and not knows:
        request, name = leaked[0]
        raise UsageError(
            f"{len(leaked)} of these requests are prompts of {name}, {shown(request.prompt)} the first: a prompt that "
            "is searched on a test set says nothing by it",
            hint="take them out; --i-know-this-is-the-test-set searches all the same, and the report says so",
        )
    if isinstance(config.judge, RulesJudge) and (bare := [r for r in found if r.expectation is None]):
        raise UsageError(
            f"the rules cannot judge {shown(bare[0].prompt)}: it has no expectation",
            hint="--judge endpoint; or requests of Lens-Nano's world: --requests nano",
        )
    return Start(
        config=config, requests=split_requests(found, sizes, config.seed), prompt=text, contract=contract,
        locked=locked, leaked=len(leaked), warnings=tuple(warnings),
    )  # fmt: skip


def prepare_fork(other: Path, change: Callable[[SearchConfig], SearchConfig]) -> Start:
    """A search that goes on from another one's folder. `change` may alter all but the splits' sizes.

    Raises UsageError, FileError.
    """
    with SearchFolder(other) as old:
        config = change(old.config)
        if config.sizes != replace(old.config.sizes, batch=config.sizes.batch):
            raise UsageError("a fork keeps the splits of its search", hint="other sizes are a new search")
        winner = FIRST
        for row in old.events.rows:
            if row["event"] == "ruling" and row["outcome"] == "promoted":
                winner = row["name"]
        frozen, before = old.frozen, old.validated
        seen = frozen.get("test_seen", False) or any(r["event"] == "confirming" for r in old.events.rows)
        warnings = check_size(config, before)
        if seen:
            warnings.append("the test split was looked at by the search before: its confirmation is not the first look")
        return Start(
            config=config, requests=old.requests, prompt=old.text_of(winner), contract=frozen["contract"],
            locked=tuple(frozen["locked"]), leaked=frozen.get("leaked", 0), warnings=tuple(warnings), fork=other,
            validated_before=before, test_seen=seen, then=_scored_by(old.config, frozen),
        )  # fmt: skip


def create(path: Path, start: Start, parts: Parts) -> None:
    """Make the folder. Raises UsageError where there is something already, FileError."""
    frozen: dict[str, Any] = {
        "contract": start.contract,
        "locked": list(start.locked),
        "policy": prompts.policy().sha256,
        "leaked": start.leaked,
        "validated_before": start.validated_before,
        "test_seen": start.test_seen,
        "forked_from": None if start.fork is None else start.fork.name,
        **{name: getattr(parts, name).identity for name in _PARTS},
    }
    folders.create(path, start.config, start.requests, frozen, start.prompt)
    if start.fork is not None:
        # Rewrites, pictures and verdicts are kept by who made them; scores are only those of the same three.
        same = _scored_by(start.config, frozen) == start.then
        _take_over(start.fork, path, ("rewrites.jsonl", "verdicts.jsonl", *((folders.SAMPLES,) if same else ())))


def _scored_by(config: SearchConfig, frozen: Mapping[str, Any]) -> tuple[Any, ...]:
    """All that decides a score, beside system prompt and request."""
    return (*(frozen.get(name) for name in _PARTS), config.seed, config.all_hold)


def _take_over(old: Path, new: Path, files: Sequence[str]) -> None:
    """Everything that was made, pictures as links to the same files where the disk can. Raises FileError."""
    try:
        for name in files:
            if (old / name).exists():
                shutil.copyfile(old / name, new / name)
        for folder in sorted((old / "pictures").iterdir()):
            if not folder.is_dir() or folder.is_symlink():
                continue
            (new / "pictures" / folder.name).mkdir(exist_ok=True)
            for path in folder.glob("*.png"):
                target = new / "pictures" / folder.name / path.name
                with suppress(FileExistsError):
                    try:
                        os.link(path, target)
                    except OSError:  # no hard links here
                        shutil.copyfile(path, target)
    except OSError as error:
        raise write_error(new, error) from error


def measure(folder: SearchFolder, evaluator: Evaluator, spending: Spending) -> Noise | None:
    """Draw the pilot: the first validation requests under the first prompt, which the search needs anyway. None where
    none is wanted. Raises what the evaluator does."""
    config = folder.config
    requests = folder.split("validation")[: config.pilot]
    if not requests:
        return None
    text = folder.text_of(FIRST)
    system = prompts.SystemPrompt(
        name=f"search-{FIRST}", purpose="", contract=folder.frozen["contract"], version=0, body=text
    )
    before, began = spending.pictures, time.monotonic()
    rows = evaluator.scores(system, FIRST, requests)
    return pilot(evaluator, rows, time.monotonic() - began, spending.pictures - before)


def contradictions(evaluator: Evaluator, again: EndpointJudge, say: Callable[[str], None]) -> tuple[int, int]:
    """(answers that a judge gives otherwise when it is asked again with its rubrics in another order, answers that were
    compared), on some pictures of the pilot. Raises what the judge raises."""
    folder = evaluator.folder
    by_id = {request.id: request for request in folder.requests}
    judge = open_judge(replace(again, seed=again.seed + 1), say)
    try:
        changed = compared = 0
        drawn = [row for row in folder.samples.rows if row["picture"] and row["score"] is not None]
        for row in drawn[:AGAIN]:
            picture = read_picture(folder.picture(row["picture"]))
            other = judge.submit(picture, question_of(by_id[row["request"]])).result().answers
            pairs = [(a, b) for a, b in zip(row["answers"], other, strict=False) if a is not None and b is not None]
            compared, changed = compared + len(pairs), changed + sum((a >= 0.5) != (b >= 0.5) for a, b in pairs)
    finally:
        judge.close()
    return changed, compared


def counts(requests: Sequence[Request]) -> str:
    """`160 train, 256 validation, 256 test`."""
    return ", ".join(f"{sum(r.split == name for r in requests)} {name}" for name in SPLITS)
