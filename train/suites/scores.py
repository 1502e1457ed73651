"""Score a run's pictures, each once: what a scorer said is kept in the run's folder, a line a picture.

A line names the picture's pixels and the scorer's identity; it counts only while both are the same. Where nobody could
say there is no line: that picture is asked about again, and until then it counts as not scored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from backend.cache.lines import JsonLines
from backend.errors import FileError
from backend.inputs.files import load_pixels
from backend.picture.images import pixel_sha256
from train.suites.folder import MADE, SCORES, Key, RunFolder, Sample
from train.suites.metrics import Row
from train.suites.prompts import SuitePrompt
from train.suites.scorers.scorer import Scorer


@dataclass(frozen=True, kw_only=True)
class ScoreFile:
    """What one scorer said of a run."""

    scorer: str  # its name
    identity: str
    rows: dict[Key, Row]
    seen: dict[Key, Any] = field(default_factory=dict[Key, Any])


def score_path(run: RunFolder, scorer: str) -> Path:
    return run.path / SCORES / f"{scorer}.jsonl"


def read_scores(run: RunFolder, scorer: str, identity: str | None, samples: dict[Key, Sample]) -> ScoreFile:
    """What is known. `identity` None: the last line's. Lines about other pixels do not count. Raises FileError."""
    rows = list(JsonLines(score_path(run, scorer)).read())
    identity = identity or next((str(row["scorer"]) for row in reversed(rows) if "scorer" in row), "")
    found, seen = dict[Key, Row](), dict[Key, Any]()
    for row in rows:
        try:
            key = (str(row["id"]), int(row["index"]))
            numbers = {str(name): float(value) for name, value in row["row"].items()}
            fits = row["scorer"] == identity and key in samples and row["pixels"] == samples[key].pixels
        except (KeyError, TypeError, ValueError, AttributeError):
            continue  # edited by hand: it is scored again
        if fits and numbers:
            found[key], seen[key] = numbers, row.get("seen")
    return ScoreFile(scorer=scorer, identity=identity, rows=found, seen=seen)


def score(
    run: RunFolder, prompts: Sequence[SuitePrompt], images: int, scorer: Scorer,
    *, on_score: Callable[[Key, Row, str], None] = lambda key, row, why: None, stop: Callable[[], bool] = lambda: False,
) -> ScoreFile:  # fmt: skip
    """Ask the scorer about every picture that it has said nothing of. `on_score`: key, numbers, why there are none.

    Raises what the scorer raises; what it said before is kept.
    """
    samples = run.samples()
    known = read_scores(run, scorer.name, scorer.identity, samples)
    wanted = [(p, i) for p in prompts if scorer.applies(p) for i in range(images) if (p.id, i) not in known.rows]
    wanted = [(p, i) for p, i in wanted if (p.id, i) in samples and samples[p.id, i].state == MADE]
    if wanted:
        scorer.check()
    lines = JsonLines(score_path(run, scorer.name))
    for prompt, index in wanted:
        if stop():
            break
        key = (prompt.id, index)
        try:
            picture = load_pixels(run.picture(prompt, index))
        except FileError as error:
            on_score(key, {}, str(error))
            continue
        if pixel_sha256(picture) != samples[key].pixels:
            on_score(key, {}, "its pixels are not those that were drawn")
            continue
        said = scorer.score(picture, prompt)
        if said.row:
            row = {"id": prompt.id, "index": index, "pixels": samples[key].pixels, "scorer": scorer.identity}
            lines.append({**row, "row": dict(said.row), "seen": said.seen})
            known.rows[key], known.seen[key] = said.row, said.seen
        on_score(key, said.row, said.why)
    return known
