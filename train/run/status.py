"""What a run's folder says about it, without loading a network. Light ring: standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from backend.errors import CheckpointError, UsageError
from backend.foreign import documents

CONFIG = "config.json"


@dataclass(frozen=True)
class Run:
    """A run as its files have it."""

    folder: Path
    rows: tuple[dict[str, float], ...]  # of metrics.jsonl
    steps: int | None  # planned; None: the run noted no plan
    checkpoints: tuple[int, ...]  # steps

    @property
    def step(self) -> int:
        """The last step that is known of: logged, or saved before the first line of the log."""
        return int(self.rows[-1]["step"]) if self.rows else max(self.checkpoints, default=0)

    @property
    def running(self) -> bool:
        """Whether a process of this machine trains there at this moment: a run holds the lock of its folder, or of the
        one above (the parts of Lens-Nano)."""
        return is_held(self.folder / ".lock") or is_held(self.folder.parent / ".lock")

    def last(self, key: str) -> float | None:
        """The newest value of a number; None: never logged."""
        return next((row[key] for row in reversed(self.rows) if key in row), None)

    def series(self, key: str) -> list[tuple[float, float]]:
        """(step, value) of every line that has the number and whose value is finite."""
        return [(row["step"], row[key]) for row in self.rows if key in row and abs(row[key]) < float("inf")]


def is_held(lock: Path) -> bool:
    """Whether a process holds the lock of a run's folder. A lock that may not be opened is taken for free."""
    if not lock.is_file():
        return False
    from filelock import FileLock, Timeout

    try:
        with FileLock(lock, blocking=False):
            return False
    except Timeout:
        return True
    except OSError:
        return False


def find(folder: Path) -> list[Run]:
    """The run in a folder, or the runs one below it (the parts of Lens-Nano). Raises UsageError: none."""
    return [run_of(place, tuple(read_log(place / "metrics.jsonl"))) for place in folders(folder)]


def folders(folder: Path) -> list[Path]:
    """The folder of the run in a folder, or those of the runs one below it. Raises UsageError: none."""
    if (folder / "metrics.jsonl").is_file() or ((folder / CONFIG).is_file() and (folder / ".lock").is_file()):
        return [folder]  # the second: a run that was stopped, or is seen, before its first line
    found = [path.parent for path in sorted(folder.glob("*/metrics.jsonl"))]
    if not found:
        raise UsageError(f"{folder}: no run here", hint="a folder that --run-dir named: it holds metrics.jsonl")
    return found


def read_log(path: Path) -> list[dict[str, float]]:
    """The lines of a `metrics.jsonl`, none where there is no file; the last may be cut. Raises CheckpointError for
    another that is no such line."""
    rows: list[dict[str, float]] = []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    for number, line in enumerate(lines, 1):
        try:
            row = documents.parse_json(line)
            if not all(type(value) in (int, float) and abs(value) < 1e300 for value in row.values()):
                raise TypeError("a line of a log holds numbers")
            float(row["step"])
        except (ValueError, KeyError, TypeError, AttributeError):
            if number == len(lines):
                break  # being written at this moment, or by a run that was killed
            raise CheckpointError(
                f"{path}: line {number} is no line of a log", hint="it was edited or damaged: mend or delete the line"
            ) from None
        rows.append(row)
    return rows


def run_of(folder: Path, rows: tuple[dict[str, float], ...]) -> Run:
    """The run of a folder whose log has these lines."""
    checkpoints = (path.name.partition("-")[2] for path in (folder / "checkpoints").glob("step-*"))
    return Run(folder, rows, _planned(folder), tuple(sorted(int(n) for n in checkpoints if n.isdecimal())))


def _planned(folder: Path) -> int | None:
    try:
        config = documents.parse_json(documents.read_bytes(folder / CONFIG))
        if "stages" not in config:  # fine-tuning has one; reinforcement learning counts epochs
            warm = int(config["warm"]["steps"]) if config.get("kind") == "distill" else 0  # counted before the others
            return warm + int(config["epochs"] if config.get("kind") == "rl" else config["steps"])
        stages = cast("list[dict[str, Any]]", config["stages"])
        return sum(int(stage["steps"]) for stage in stages)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
