"""Training state on disk: safetensors for every tensor, JSON for the rest, written atomically. No pickles.

A checkpoint is a folder `step-00001234/` with one `<part>.safetensors` per part and `state.json`. It is written under
a temporary name and renamed when complete, so a reader never sees half of one. `train.run.checkpoints` writes those of
many ranks and puts them in place by the same functions.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors.torch import load_file, save_file
from torch import Tensor

from backend.disk import make_folder, sync_folder, write_error
from backend.errors import UsageError


@contextlib.contextmanager
def alone(run_dir: Path) -> Generator[None]:
    """Keep a run's folder to this process, for two would delete each other's checkpoints. Makes the folder.

    The lock goes with the process, however that ends. Raises UsageError where another process has it, FileError.
    """
    make_folder(run_dir)
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


def save(
    run_dir: Path, step: int, parts: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any], keep: int = 2
) -> Path:
    """Write checkpoint `step` of a run and delete all but the newest `keep`."""
    folder = run_dir / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    final, temporary = folder / f"step-{step:08d}", folder / f".step-{step:08d}.tmp"
    sweep(folder)
    temporary.mkdir()
    for name, tensors in parts.items():
        # .contiguous(): safetensors refuses other strides, and a training tensor may be a transposed view.
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, temporary / f"{name}.safetensors")
    (temporary / "state.json").write_text(json.dumps({**state, "step": step}, indent=1))
    for file in temporary.iterdir():
        with open(file, "rb") as handle:
            os.fsync(handle.fileno())
    put_in_place(temporary, final, keep)
    return final


def put_in_place(temporary: Path, final: Path, keep: int) -> None:
    """Give a complete checkpoint its name, then delete all but the newest `keep` of its run. Raises OSError.

    What has a checkpoint's name is whole at every moment, a power cut included: a folder loses its name before it is
    deleted, and nothing old goes before the new name is on the disk.
    """
    sync_folder(temporary)
    if final.exists():
        _hide(final)
    temporary.rename(final)
    sync_folder(final.parent)
    for old in sorted(final.parent.glob("step-*"))[:-keep]:
        _hide(old)
    sweep(final.parent)


def sweep(folder: Path) -> None:
    """Delete what has no checkpoint's name: half-written ones and those on their way out, of killed processes too."""
    for left in folder.glob(".step-*"):
        shutil.rmtree(left, ignore_errors=True)


def _hide(checkpoint: Path) -> None:
    aside = checkpoint.with_name(f".{checkpoint.name}.old")
    shutil.rmtree(aside, ignore_errors=True)
    checkpoint.rename(aside)


def latest(run_dir: Path) -> Path | None:
    """The newest complete checkpoint of a run, None where there is none."""
    found = sorted((run_dir / "checkpoints").glob("step-*"))
    return found[-1] if found else None


def load(folder: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Parts and state of one checkpoint, on the CPU."""
    parts = {file.stem: load_file(file) for file in folder.glob("*.safetensors")}
    return parts, json.loads((folder / "state.json").read_text())


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: list[str]) -> dict[str, Tensor]:
    """Moments and step counts under `<moment>.<parameter name>`; `names` in the order of the parameters."""
    out: dict[str, Tensor] = {}
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for name, parameter in zip(names, parameters, strict=True):
        for key, value in optimizer.state.get(parameter, {}).items():
            out[f"{key}.{name}"] = value
    return out


def restore_optimizer(
    optimizer: torch.optim.Optimizer,
    names: list[str],
    tensors: Mapping[str, Tensor],
    keys: tuple[str, ...] = ("exp_avg", "exp_avg_sq"),
) -> None:
    """Put back what `optimizer_tensors` gave. What never had a gradient, or had another optimiser, starts anew."""
    parameters = [(p, group) for group in optimizer.param_groups for p in group["params"]]
    for name, (parameter, group) in zip(names, parameters, strict=True):
        if any(f"{key}.{name}" not in tensors for key in (*keys, "step")):
            continue
        state = optimizer.state[parameter]
        # A fused or capturable optimizer counts its steps on the parameter's device, any other on the CPU.
        counter = parameter.device if group.get("fused") or group.get("capturable") else torch.device("cpu")
        state["step"] = tensors[f"step.{name}"].to(counter).clone()
        for key in keys:
            state[key] = tensors[f"{key}.{name}"].to(parameter.device, parameter.dtype).clone()


def save_part(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """One finished network as a single file, written atomically."""
    temporary = path.with_name(f".{path.name}.tmp")
    save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, temporary)
    with open(temporary, "rb") as handle:
        os.fsync(handle.fileno())
    os.replace(temporary, path)


def load_part(path: Path) -> dict[str, Tensor]:
    """What `save_part` wrote. Raises FileNotFoundError naming the missing part."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: not there yet; train this part of the run first")
    return load_file(path)
