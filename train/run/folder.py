"""The folder of a run: may it be used, what must its checkpoints agree with, where do weights begin."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from backend.disk import make_folder, write_atomic, write_error
from backend.errors import CheckpointError, FileError, LensError, UsageError
from backend.foreign import documents
from train import overrides
from train.run import checkpoints
from train.run.distributed import Ranks

AS_BEGUN = "as it began, or a new run: --set start_from=… --run-dir …"


@dataclass(frozen=True)
class Fact:
    """One thing that a run keeps for ever: its checkpoints note it, and are read only where it is the same."""

    name: str
    now: Any  # as JSON holds it; None: not known, so nothing is compared
    began_with: str | None = None  # what is said where it differs; None: its value then and now
    hint: str = AS_BEGUN


@dataclass(frozen=True)
class RunFolder:
    """A folder of one kind of run."""

    path: Path
    kind: str  # noted in its config.json

    @contextlib.contextmanager
    def open(self, ranks: Ranks) -> Generator[None]:
        """The folder, made, and this run's alone meanwhile. Raises on every rank why it cannot be."""
        with contextlib.ExitStack() as stack:
            found = None
            if ranks.first:
                found = self.problem()
                try:
                    if found is None:
                        stack.enter_context(alone(self.path))
                except LensError as error:
                    found = error
            ranks.together(found)
            yield

    def problem(self) -> LensError | None:
        """Why the run cannot live there; None: nothing speaks against it."""
        try:
            kind = documents.parse_json(documents.read_bytes(self.path / "config.json")).get("kind", "unknown")
        except (OSError, ValueError, AttributeError):  # none yet, or damaged: it is written anew
            return None
        if kind != self.kind:
            return UsageError(f"{self.path} holds another kind of run ({kind})", hint="another --run-dir")
        return None

    def write_config(self, config: Any, ranks: Ranks) -> None:
        """Note the config; only once nothing is refused any more, since it replaces the run's own."""
        if ranks.first:
            text = json.dumps({"kind": self.kind, **overrides.as_json(config)}, indent=1) + "\n"
            write_atomic(self.path / "config.json", text.encode())
        ranks.barrier()

    def state(self, facts: Sequence[Fact]) -> dict[str, Any]:
        """What a checkpoint notes of them."""
        return {"kind": self.kind, **{fact.name: fact.now for fact in facts}}

    def check(self, found: checkpoints.Found, facts: Sequence[Fact]) -> None:
        """Raises CheckpointError where the run began otherwise than it is to go on."""
        for fact in facts:
            before = found.state.get(fact.name)
            if before is None or fact.now is None or before == fact.now:
                continue
            other = fact.began_with or f"{fact.name}={before}, this is {fact.name}={fact.now}"
            raise CheckpointError(f"{found.folder}: the run began with {other}", hint=fact.hint)

    def check_steps(self, found: checkpoints.Found, steps: int) -> None:
        """Raises UsageError where the run is further than its plan."""
        if found.step > steps:
            raise UsageError(f"{self.path} is at step {found.step:,} already, the plan ends at {steps:,}")


@contextlib.contextmanager
def alone(run_dir: Path) -> Generator[None]:
    """Keep a run's folder to this process, for two would delete each other's checkpoints. Makes the folder.

    The lock goes with the process, however that ends. Raises UsageError where another process has it, FileError.
    """
    try:
        make_folder(run_dir)
    except FileError as error:
        raise FileError(str(error), hint="another --run-dir") from error
    lock = FileLock(run_dir / ".lock", blocking=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise UsageError(
            f"another process is training in {run_dir}", hint="wait for it, stop it, or give another --run-dir"
        ) from error
    except OSError as error:
        raise write_error(run_dir, error) from error
    try:
        yield
    finally:
        lock.release()


# Where weights begin -------------------------------------------------------------------------------------------------


def start_problem(where: Path) -> LensError | None:
    """Why nothing can start from there, as far as that is seen at once; None: nothing speaks against it."""
    from backend.checkpoints.resolve import resolve_model

    hint = "--set start_from=RUN or a model; start_from=none trains from nothing"
    if checkpoints.folders(where):
        return None
    if (where / "checkpoints").is_dir():
        return CheckpointError(f"start_from={where}: a run without a checkpoint", hint=hint)
    try:
        resolve_model(str(where))
    except LensError as error:
        return type(error)(f"start_from={where}: {error}", hint=hint)
    return None


def start_weights(where: Path, ranks: Ranks) -> dict[str, Tensor]:
    """Weights to train on: the newest checkpoint of a run (not its average), or a model's transformer."""
    found = checkpoints.latest(where, ranks)  # every rank verifies its share of the files
    if found is not None:
        return checkpoints.read_whole(found, "model")
    from backend.checkpoints.resolve import resolve_model
    from backend.loading import load_transformer

    return dict(load_transformer(resolve_model(str(where)), torch.float32, "cpu").state_dict())
