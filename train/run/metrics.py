"""The log of a run: `metrics.jsonl` with one JSON object a line, TensorBoard, and Weights & Biases where asked.

Every line has at least `step`. On resume the log is cut back to the checkpoint.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backend.disk import replacing, write_atomic
from backend.errors import FileError, optional_package, os_reason
from train.run import status

if TYPE_CHECKING:
    from PIL.Image import Image


def on_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class Metrics:
    """Append-only log of one run. `resume_step` drops lines a crashed run wrote after its last checkpoint.

    `resume_step` 0: nothing is resumed, and the log begins anew. `say` is given every line as a person reads it.
    `wandb`: a project's name; None: not used. `about`: the config, for Weights & Biases. Raises CheckpointError for a
    log that was edited, LensError for a board that is not installed.
    """

    def __init__(
        self,
        run_dir: Path,
        resume_step: int = 0,
        *,
        say: Callable[[str], None] = on_stderr,
        wandb: str | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        run_dir.mkdir(parents=True, exist_ok=True)
        self.run_dir, self.path, self.say = run_dir, run_dir / "metrics.jsonl", say
        if self.path.exists():
            rows = status.read_log(self.path) if resume_step else []
            kept = [json.dumps(row) + "\n" for row in rows if row["step"] <= resume_step]
            write_atomic(self.path, "".join(kept).encode())  # a kill meanwhile loses nothing
        self.started = time.monotonic()
        self._board = _board(run_dir / "tensorboard", resume_step)
        self._wandb = None if wandb is None else _wandb(run_dir, wandb, about or {}, resume_step)

    def log(self, step: int, **values: float) -> None:
        """Write one line, and say it. Nine digits tell any two float32 apart."""
        row = {
            "step": step,
            **{k: float(f"{v:.9g}") for k, v in values.items()},
            "seconds": round(time.monotonic() - self.started, 1),
        }
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise FileError(
                f"cannot write {self.path}: {os_reason(error)}",
                hint="the checkpoints are whole: free some space and run the same command again",
            ) from error
        for name, value in values.items():
            self._board.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(dict(values), step=step)
        shown = {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()}
        self.say("  ".join(f"{k} {v}" for k, v in shown.items()))

    def picture(self, step: int, image: Image) -> None:
        """A sheet of previews: `previews/<step>.png`, and on the boards."""
        import numpy as np

        folder = self.run_dir / "previews"
        folder.mkdir(exist_ok=True)
        with replacing(folder / f"{step:07d}.png") as temporary:
            image.save(temporary, "PNG")
        self._board.add_image("preview", np.asarray(image.convert("RGB")), step, dataformats="HWC")

    def close(self) -> None:
        """Write out what the boards still hold."""
        self._board.close()
        if self._wandb is not None:
            self._wandb.finish()


def _board(folder: Path, resume_step: int) -> Any:
    # TensorBoard looks for TensorFlow, which it does not need, and takes seconds where it finds one.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with optional_package("tensorboard"):
        from torch.utils.tensorboard import SummaryWriter
    # Hides what a crashed run wrote after its last checkpoint: everything from that step on.
    return SummaryWriter(str(folder), purge_step=resume_step + 1)


def _wandb(run_dir: Path, project: str, about: Mapping[str, Any], resume_step: int) -> Any:
    with optional_package(otherwise="--set wandb=none"):
        import wandb  # pyright: ignore[reportMissingImports]
    noted = run_dir / "wandb-run"
    name = noted.read_text().strip() if noted.exists() and resume_step else None
    started = wandb.init(project=project, id=name, resume="allow", config=dict(about), dir=str(run_dir))
    write_atomic(noted, f"{started.id}\n".encode())
    return started
