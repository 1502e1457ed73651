"""Checkpoints of a run on any number of ranks: torch.distributed.checkpoint in safetensors files, and a state.json.

Every rank writes the slices it holds; reading lays them out for however many ranks there are then. A checkpoint is
written under a temporary name and renamed when all of it is on the disk, so one that has its name is whole; state.json
lists every file with its size and SHA-256, and has one of its own, so that what was changed afterwards is refused. On
several machines the run's folder must be one that all of them see. No pickles.

A part that is finished (an autoencoder, a language model) is one safetensors file: `save_network`, `load_network`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import threading
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter

from backend.disk import file_sha256, sync_folder
from backend.errors import CheckpointError, FileError, LensError, first_line, human_bytes, os_reason
from backend.foreign import documents
from train.run.distributed import Ranks

STATE = "state.json"
FORMAT = 2  # of state.json


@dataclass(frozen=True)
class Found:
    """A checkpoint that was verified."""

    folder: Path
    state: dict[str, Any]
    names: frozenset[str]  # of its tensors

    @property
    def step(self) -> int:
        return int(self.state["step"])


def folders(run_dir: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return sorted((run_dir / "checkpoints").glob("step-*"))


# ----------------------------------------------------------------------------------------------------------- reading


def latest(run_dir: Path, ranks: Ranks) -> Found | None:
    """The newest checkpoint of a run; None where there is none. Raises CheckpointError for a damaged one."""
    there = folders(run_dir)
    if not there:
        return None
    problem, state, names = None, dict[str, Any](), frozenset[str]()
    try:
        state = _state(there[-1])
        _verify(there[-1], state, ranks)
        names = _names(there[-1])
    except CheckpointError as error:
        older = f", which leaves {there[-2].name}" if len(there) > 1 else ", and begin again"
        problem = CheckpointError(str(error), hint=f"restore it, or delete {there[-1]}{older}")
    ranks.together(problem)
    return Found(there[-1], state, names)


def _state(folder: Path) -> dict[str, Any]:
    try:
        state = documents.parse_json(documents.read_bytes(folder / STATE))
        if not isinstance(state, dict) or not isinstance(state.get("step"), int):
            raise ValueError("it names no step")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / STATE}: unreadable ({first_line(error)})") from error
    state = cast("dict[str, Any]", state)
    if state.pop("sha256", None) != _state_sha256(state):
        raise CheckpointError(f"{folder / STATE}: its contents were changed after it was written")
    if state.get("format") != FORMAT:
        raise CheckpointError(f"{folder}: written by another version of lens")
    if folder.name != f"step-{state['step']:08d}":
        raise CheckpointError(f"{folder}: it holds step {state['step']:,}, so this is not its name")
    return state


def _state_sha256(state: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _verify(folder: Path, state: Mapping[str, Any], ranks: Ranks) -> None:
    """Sizes of all files; contents of this rank's share of them."""
    files = state["files"]
    present = {path.name for path in folder.iterdir()} - {STATE}
    for name in sorted(present ^ set(files)):
        raise CheckpointError(f"{folder}: {name} is {'missing' if name in files else 'not part of this checkpoint'}")
    for number, (name, noted) in enumerate(sorted(files.items())):
        size = (folder / name).stat().st_size
        if size != noted["bytes"]:
            raise CheckpointError(f"{folder / name}: {size:,} bytes, {noted['bytes']:,} were written")
        if number % ranks.world == ranks.rank and file_sha256(folder / name) != noted["sha256"]:
            raise CheckpointError(f"{folder / name}: its contents were changed after it was written")


def _names(folder: Path) -> frozenset[str]:
    """The tensors of a checkpoint."""
    out: set[str] = set()
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                out |= set(file.keys())
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path}: unreadable ({first_line(error)})") from error
    return frozenset(out)


@torch.no_grad()
def read(found: Found, targets: Mapping[str, Tensor], ranks: Ranks) -> None:
    """Fill `targets`, sharded or not, from a checkpoint. Raises CheckpointError: missing, of another shape."""
    missing = [name for name in targets if name not in found.names]
    if missing:
        raise CheckpointError(f"{found.folder}: no tensor {missing[0]!r}, and {len(missing) - 1} more")
    shapes = _shapes(found)
    for name, target in targets.items():
        if shapes[name] != tuple(target.shape):
            raise CheckpointError(
                f"{found.folder}: {name} is {list(shapes[name])}, this run has {list(target.shape)}",
                hint="the same params as when the run began, or another --run-dir",
            )
    if not targets:
        return
    state = {name: tensor.detach() for name, tensor in targets.items()}  # filled in place
    _alone_is_meant()
    state_dict_loader.load(state, storage_reader=HuggingFaceStorageReader(str(found.folder)), no_dist=ranks.alone)


def _shapes(found: Found) -> dict[str, tuple[int, ...]]:
    stored = HuggingFaceStorageReader(str(found.folder)).read_metadata().state_dict_metadata
    return {name: tuple(cast(Any, entry).size) for name, entry in stored.items()}


def read_whole(found: Found, part: str) -> dict[str, Tensor]:
    """All tensors of one part (`model`, `ema`), whole and without the part's name, on the CPU of one process."""
    shapes = {name: shape for name, shape in _shapes(found).items() if name.startswith(f"{part}.")}
    targets = {name: torch.empty(shape) for name, shape in shapes.items()}
    read(found, targets, Ranks(torch.device("cpu")))
    return {name.partition(".")[2]: tensor for name, tensor in targets.items()}


# ----------------------------------------------------------------------------------------------------------- writing


class Writer:
    """Writes a run's checkpoints, one at a time; in the background where asked."""

    def __init__(self, run_dir: Path, ranks: Ranks, *, keep: int, background: bool) -> None:
        self.folder, self.ranks, self.keep, self.background = run_dir / "checkpoints", ranks, keep, background
        self._pending: Future[None] | None = None
        # Collectives of a thread must not meet those of the training: a group of its own, and on the CPU.
        self._group: dist.ProcessGroup | None = None
        if background and not ranks.alone:
            self._group = cast(dist.ProcessGroup, dist.new_group(backend="gloo"))

    def save(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Write checkpoint `step`. Raises FileError: then the older ones are as they were.

        In the background the tensors are copied before this returns, and an error is raised by the next call.
        """
        self.wait()
        temporary = self.folder / f".step-{step:08d}.tmp"
        self.ranks.together(self._made(temporary, tensors) if self.ranks.first else None)
        writer = HuggingFaceStorageWriter(str(temporary), save_distributed=True)
        # .contiguous(): safetensors refuses other strides, as the convolutions of an autoencoder may have.
        values = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
        alone = self.ranks.alone
        _alone_is_meant()
        whole_state = {**state, "format": FORMAT, "step": step, "world": self.ranks.world}
        if not self.background:
            try:
                state_dict_saver.save(values, storage_writer=writer, no_dist=alone)
            except BaseException as error:  # noqa: BLE001  always raised again
                self._abandon(temporary, error)
            problem = None
            try:
                self._finish(temporary, step, whole_state)
            except FileError as error:
                problem = error
            self.ranks.together(problem)
            return
        staged = state_dict_saver.async_save(values, storage_writer=writer, no_dist=alone, process_group=self._group)
        self._pending = Future()
        arguments = (cast("Future[Any]", staged), self._pending, temporary, step, whole_state)
        threading.Thread(target=self._finish_later, args=arguments, daemon=False).start()

    def wait(self) -> None:
        """Until nothing is being written. Raises what went wrong in the background, on every rank."""
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        error = pending.exception()
        if error is not None and not isinstance(error, LensError):
            raise error
        self.ranks.together(error)

    def _made(self, temporary: Path, tensors: Mapping[str, Tensor]) -> FileError | None:
        """An empty folder to write to, or why there is none."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            _sweep(self.folder)
            _refuse_full_disk(self.folder, tensors)
            temporary.mkdir()
        except OSError as error:
            return _refused(self.folder, error)
        except FileError as error:
            return error
        return None

    def _finish_later(
        self, staged: Future[Any], pending: Future[None], temporary: Path, step: int, state: Mapping[str, Any]
    ) -> None:
        try:
            try:
                staged.result()
            except BaseException as error:  # noqa: BLE001  handed on to wait()
                self._abandon(temporary, error)
            self._finish(temporary, step, state)
            pending.set_result(None)
        except BaseException as error:  # noqa: BLE001  handed on to wait()
            pending.set_exception(error)

    def _finish(self, temporary: Path, step: int, state: Mapping[str, Any]) -> None:
        """List the files, give the folder its name, delete what is too old. On the first rank."""
        if not self.ranks.first:
            return
        try:
            paths = sorted(temporary.iterdir())
            files = {path.name: {"bytes": path.stat().st_size, "sha256": file_sha256(path)} for path in paths}
            whole = {**state, "files": files}
            text = json.dumps({**whole, "sha256": _state_sha256(whole)}, indent=1)
            (temporary / STATE).write_text(text, encoding="utf-8")
            for path in (*paths, temporary / STATE):
                with open(path, "rb") as handle:
                    os.fsync(handle.fileno())
            _put_in_place(temporary, self.folder / f"step-{step:08d}", self.keep)
        except OSError as error:
            self._abandon(temporary, error)

    def _abandon(self, temporary: Path, error: BaseException) -> None:
        """Take back what was written, and say why in one line. Always raises."""
        if self.ranks.first:
            shutil.rmtree(temporary, ignore_errors=True)
        cause = _os_error(error)
        if cause is None:
            raise error
        raise _refused(temporary.parent, cause) from error


def _put_in_place(temporary: Path, final: Path, keep: int) -> None:
    """Give a complete checkpoint its name, then delete all but the newest `keep` of its run. Raises OSError.

    What has a checkpoint's name is whole at every moment, a power cut included: a folder loses its name before it is
    deleted, and nothing old goes before the new name is on the disk.
    """
    sync_folder(temporary)
    if final.exists():
        _hide(final)
    temporary.rename(final)
    sync_folder(final.parent)
    for old in folders(final.parent.parent)[:-keep]:
        _hide(old)
    _sweep(final.parent)


def _sweep(folder: Path) -> None:
    """Delete what has no checkpoint's name: half-written ones and those on their way out, of killed processes too."""
    for left in folder.glob(".step-*"):
        shutil.rmtree(left, ignore_errors=True)


def _hide(checkpoint: Path) -> None:
    aside = checkpoint.with_name(f".{checkpoint.name}.old")
    shutil.rmtree(aside, ignore_errors=True)
    checkpoint.rename(aside)


def _refused(folder: Path, error: OSError) -> FileError:
    return FileError(
        f"cannot write a checkpoint to {folder}: {os_reason(error)}",
        hint="the checkpoint before it is whole: free some space and run the same command again",
    )


def _refuse_full_disk(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raises FileError where the disk has less room than the tensors take."""
    needed = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise FileError(
            f"a checkpoint takes {human_bytes(needed)}, {folder} has {human_bytes(free)} left",
            hint="the checkpoint before it is whole: free some space and run the same command again",
        )


def _os_error(error: BaseException | None) -> OSError | None:
    """The operating system's refusal behind an error of torch's, which gathers those of all ranks."""
    seen: list[BaseException | None] = [error]
    while seen:
        one = seen.pop()
        if isinstance(one, OSError):
            return one
        if one is None:
            continue
        seen += [one.__cause__, one.__context__]
        failures = getattr(one, "failures", None)  # CheckpointException: rank -> (error, traceback)
        if isinstance(failures, dict):
            seen += [value[0] for value in cast("dict[int, Sequence[Any]]", failures).values()]
        # safetensors says it in words only
        if isinstance(one, SafetensorError) and "No space left" in str(one):
            return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return None


def _alone_is_meant() -> None:
    """Without torch's remark that a single process saves for itself; not undone, since it comes from a thread too."""
    warnings.filterwarnings("ignore", message="torch.distributed is disabled")


# One part ------------------------------------------------------------------------------------------------------------


def save_network(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write one finished network as a single file, whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, temporary)
    with open(temporary, "rb") as handle:
        os.fsync(handle.fileno())
    os.replace(temporary, path)


def load_network(path: Path) -> dict[str, Tensor]:
    """What `save_network` wrote. Raises FileNotFoundError naming the missing part."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: not there yet; train this part of the run first")
    return load_file(path)
