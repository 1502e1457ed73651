"""A complete request -> saved pictures: the part that `gen` and `rerun` share.

One load and one text encoding serve all seeds. Ctrl-C stops after the step; a picture whose numbers fail does not end
the batch; what is finished stays.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

from backend.disk import check_folder, make_folder
from backend.errors import CancelledError, FileError, LensError, NumericsError, PartialBatchError, os_reason
from backend.events import Event, Generation, PhaseStarted
from backend.picture.outputs import OutputPlan
from backend.types import GenerationRequest, Phase
from lens_cli.terminal.console import Talk, write_bytes
from lens_cli.terminal.progress import Meter
from lens_cli.terminal.show import show

if TYPE_CHECKING:
    from backend.cache.store import Stores
    from backend.checkpoints.resolve import ModelFiles
    from backend.memory.plan import MemoryPlan
    from backend.text.shared_llama import SharedLlama


class Interrupt(AbstractContextManager["Interrupt"]):
    """Ctrl-C once: `pressed`, and the pipeline stops after its step. Twice: KeyboardInterrupt, at once."""

    def __init__(self, says: str = "stopping after this step; Ctrl-C again stops at once") -> None:
        self.pressed = False
        self._says = says
        self._before: Any = None

    def __enter__(self) -> Interrupt:
        self._before = signal.signal(signal.SIGINT, self._press)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.signal(signal.SIGINT, self._before)
        if isinstance(error, KeyboardInterrupt):
            # From here on it is an error like others, with its line or its JSON.
            raise CancelledError("stopped") from error

    def _press(self, number: int, frame: FrameType | None) -> None:
        if self.pressed:
            raise KeyboardInterrupt
        self.pressed = True
        # Not through Talk: the handler may run in the middle of one of its writes.
        with contextlib.suppress(OSError):
            os.write(2, f"\n{self._says}\n".encode())

    def check(self, event: Event) -> None:
        """Between phases nobody polls `pressed`; loading may take minutes. A finished picture is still decoded."""
        if self.pressed and isinstance(event, PhaseStarted) and event.phase is not Phase.decode:
            raise CancelledError("stopped")


@dataclass(frozen=True, kw_only=True)
class Failure:
    index: int  # position in request.seeds
    seed: int
    error: LensError


@dataclass(kw_only=True)
class Outcome:
    """What became of a run. `pictures` are the JSON rows of the saved ones."""

    total: int
    pictures: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    failures: list[Failure] = field(default_factory=list[Failure])
    stopped: LensError | None = None  # what ended the run before its last picture
    plan: MemoryPlan | None = None  # of memory, the last one made; None: none was

    def error(self) -> LensError | None:
        """The one error that decides the exit code; None: all pictures are there."""
        if isinstance(self.stopped, CancelledError):
            return CancelledError(f"stopped: {len(self.pictures)} of {self.total} pictures finished")
        cause = self.stopped or (self.failures[0].error if self.failures else None)
        if cause is None or not self.pictures:
            return cause
        missing = self.total - len(self.pictures)
        return PartialBatchError(f"{missing} of {self.total} pictures failed: {cause}", hint=cause.hint)

    def data(self) -> dict[str, Any]:
        return {
            "images": self.pictures,
            "plan": self.plan.data() if self.plan is not None else None,
            "failed": [
                {"index": item.index, "seed": item.seed, "code": item.error.code, "message": str(item.error)}
                for item in self.failures
            ],
        }


def check_loras(request: GenerationRequest, files: ModelFiles, talk: Talk) -> None:
    """Say what of the LoRAs does not fit the model, from their headers alone. Raises CheckpointError or UsageError."""
    if request.loras:
        from backend.checkpoints.packing_plan import plan_quant
        from backend.lora.names import settle

        rounds = plan_quant(files, request.quant).approximation is not None  # a packing that is kept rounds nothing
        settle(request.loras, files.preset.params.dit, quantised=rounds, warn=talk.warn)


def generations(
    request: GenerationRequest,
    meter: Meter,
    interrupt: Interrupt,
    talk: Talk,
    *,
    stores: Stores | None = None,
    llama: SharedLlama | None = None,
) -> Iterator[tuple[int, Generation | Failure]]:
    """(index, picture or failure) in order. A failure of one picture goes on with the next; every other is raised.

    `stores` and `llama` as `Pipeline` has them.
    """
    from backend.checkpoints.resolve import resolve_model
    from backend.text.shared_llama import choose_encoder

    files = resolve_model(request.model)  # before torch: a model that is not here is said at once
    choose_encoder(request.encoder, files)
    check_loras(request, files, talk)
    from backend.pipeline import Pipeline  # torch: 1.4 s, and this is the first moment that needs it

    def on_event(event: Event) -> None:
        interrupt.check(event)
        meter(event)

    for note in files.notes:
        talk.say(f"note: {note}")
    pipeline = Pipeline(files, dtype=request.dtype, device=request.device, stores=stores, llama=llama)
    done = 0
    while done < len(request.seeds):
        meter.first = done
        rest = replace(request, seeds=request.seeds[done:])
        try:
            for generation in pipeline.generate(rest, on_event=on_event, stop=lambda: interrupt.pressed):
                yield done, replace(generation, index=done, request=request)
                done += 1
            assert done == len(request.seeds), f"the pipeline made {done} of {len(request.seeds)} pictures"
        except NumericsError as error:
            yield done, Failure(index=done, seed=request.seeds[done], error=error)
            done += 1


def run(
    request: GenerationRequest,
    plan: OutputPlan,
    talk: Talk,
    *,
    parent_id: str | None = None,
    draw: bool = False,
    on_picture: Callable[[Generation, dict[str, Any]], None] | None = None,
    stores: Stores | None = None,
    llama: SharedLlama | None = None,
) -> Outcome:
    """Make and save every picture of `request`; each path goes to stdout the moment its file is whole.

    `on_picture` gets each saved picture with its record. Raises nothing that one picture's failure explains: see
    `Outcome.error`.
    """
    from backend.checkpoints.resolve import resolve_model

    started = time.monotonic()
    resolve_model(request.model)  # a model that is not here leaves no empty folder behind
    now = datetime.now()  # one time for all names of a run
    outcome = Outcome(total=len(request.seeds))
    if plan.template is not None:
        for folder in sorted(plan.folders(request, now)):
            check_folder(folder)
    meter = Meter(talk=talk, total=len(request.seeds))
    with Interrupt() as interrupt, meter:
        try:
            made_in_order = generations(
                request,
                meter,
                interrupt,
                talk,
                stores=stores,
                llama=llama,
            )
            for index, made in made_in_order:
                meter.pause()
                if isinstance(made, Failure):
                    outcome.failures.append(made)
                    talk.warn(f"picture {index + 1} (seed {made.seed}) failed: {made.error}")
                    talk.event("failed", image=index, seed=made.seed, code=made.error.code, message=str(made.error))
                    continue
                row, record = _save(made, plan, now, parent_id)
                outcome.pictures.append(row)
                talk.event("image", **row)
                talk.detail(f"seed {row['seed']}: pixels {row['pixel_sha256'][:16]}, id {row['id']}")
                if row["path"] is not None:
                    talk.data(Path(row["path"]))
                if draw:
                    show(made.image, talk)
                if on_picture is not None:
                    on_picture(made, record)
        except LensError as error:
            # A full disk, an unreadable checkpoint, too little memory: the next picture would meet the same.
            outcome.stopped = error
    outcome.plan = meter.plan
    if outcome.pictures:
        talk.say(meter.summary(len(outcome.pictures), time.monotonic() - started))
    return outcome


def _save(
    made: Generation, plan: OutputPlan, now: datetime, parent_id: str | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(JSON row, record) of a picture that is now on the disk or has gone to stdout. Raises FileError."""
    from backend.picture import metadata
    from backend.picture.images import encode, pixel_sha256, save_image

    if plan.template is None:
        record = metadata.make_record(made, pixels=pixel_sha256(made.image), parent_id=parent_id)
        try:
            write_bytes(encode(made.image, plan.format, quality=plan.quality, record=record if plan.metadata else None))
        except BrokenPipeError:
            raise  # the boundary knows what that means
        except OSError as error:
            raise FileError(f"cannot write to stdout: {os_reason(error)}") from error
        path = None
    else:
        wished = plan.path(made.request, made.index, now)
        make_folder(wished.parent)
        path, record = save_image(
            made,
            wished,
            format=plan.format,
            quality=plan.quality,
            with_metadata=plan.metadata,
            parent_id=parent_id,
        )
    row = {
        "path": None if path is None else str(path),
        "index": made.index,
        "seed": made.seed,
        "width": made.request.width,
        "height": made.request.height,
        "id": record["id"],
        "pixel_sha256": record["pixel_sha256"],
        "timings": record["timings"],
    }
    return row, record
