"""A journal beside the pictures of a batch: which line has which pictures, so that a broken-off batch goes on.

JSON Lines, one a picture, written after the picture; a last line that was cut off says nothing.

Light ring: standard library only.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from backend.cache.lines import JsonLines
from backend.disk import write_error
from backend.picture.outputs import OutputPlan


def journal_file(plan: OutputPlan, name: str) -> Path:
    """Where the journal of the file `name` of prompts lies: in the last folder that all pictures share."""
    assert plan.template is not None, "bytes on stdout have no folder"
    shared = Path(plan.template.split("{")[0] + "x").parent
    return shared / f".lens-{Path(name).stem or 'stdin'}.jsonl"


class Journal:
    """The pictures of a batch that are finished."""

    def __init__(self, path: Path, *, proceed: bool) -> None:
        """`proceed`: with what an earlier run has finished; else anew. Raises FileError."""
        self._lines = JsonLines(path)
        self._done = _read(self._lines) if proceed else {}
        self._begun = proceed

    def seeds(self, key: str) -> list[int]:
        """The seeds of a line's pictures that are finished, and whose files are still there."""
        return [seed for seed, picture in self._done.get(key, ()) if Path(picture).is_file()]

    def add(self, key: str, seed: int, picture: Path) -> None:
        """Enter a picture that is on the disk. Raises FileError."""
        if not self._begun:  # what an earlier run wrote goes with the first picture of this one
            try:
                self._lines.path.unlink(missing_ok=True)
            except OSError as error:
                raise write_error(self._lines.path, error) from error
            self._begun = True
        self._lines.append({"key": key, "seed": seed, "path": str(picture.absolute())})


def remaining(seeds: Sequence[int], done: Sequence[int], *, drawn: bool) -> list[int]:
    """The places in `seeds` of the pictures that are still to be made; of `drawn` seeds only their number counts."""
    if drawn:
        return list(range(min(len(done), len(seeds)), len(seeds)))
    left = list(done)
    places = list[int]()
    for place, seed in enumerate(seeds):
        if seed in left:
            left.remove(seed)
        else:
            places.append(place)
    return places


def _read(lines: JsonLines) -> dict[str, list[tuple[int, str]]]:
    done = dict[str, list[tuple[int, str]]]()
    for row in lines.read():
        if isinstance(row.get("key"), str) and type(row.get("seed")) is int and isinstance(row.get("path"), str):
            done.setdefault(row["key"], []).append((row["seed"], row["path"]))
    return done
